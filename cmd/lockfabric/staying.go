package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"
)

// staying are the flags of the commands that can hold it for longer than CMD runs.
type staying struct {
	HoldAtLeast  time.Duration `placeholder:"DURATION" help:"Hold it for this long, also when CMD ends earlier: others that start a little later, by other clocks, find it held. SIGINT and SIGTERM end that."`
	WaitChildren bool          `help:"Hold it until what CMD left in the background has ended, too, as far as it is in CMD's process group."`
}

func (f *staying) validate(what string) error {
	if f.HoldAtLeast < 0 {
		return usageError("%s --hold-at-least=%v: give a time", what, f.HoldAtLeast)
	}
	return nil
}

// stay keeps what is held until it was held for long enough since. It reports whether
// it did wait; what is lost meanwhile is no loss of the command, which has ended.
func (t *task) stay(ctx context.Context, h held, since time.Time, s *streams, visible bool, sigs <-chan os.Signal) bool {
	until := since.Add(t.HoldAtLeast)
	if !time.Now().Before(until) {
		return false
	}
	s.log.Info("the command has ended, holding on", "key", h.Key(), "hold_at_least", t.HoldAtLeast)
	if visible {
		defer showing(ctx, s.status, func() string {
			return fmt.Sprintf("%s has ended, holding %s for another %s", printable(label(t.command[0])), printable(h.Key()), age(time.Now(), until))
		}, func(context.Context) {})()
	}
	enough := make(chan struct{})
	defer listen(sigs, func(sig os.Signal) bool {
		end := slices.Contains(endings, sig)
		if end {
			close(enough)
		}
		return end
	})()
	over := time.NewTimer(time.Until(until))
	defer over.Stop()
	select {
	case <-over.C:
	case <-enough:
	case <-h.Lost():
		s.log.Warn("lost after the command has ended, and before it was held long enough: others can have it", "key", h.Key(), "hold_at_least", t.HoldAtLeast)
	}
	return true
}
