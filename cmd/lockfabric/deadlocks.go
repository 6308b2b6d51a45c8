package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

type deadlocksCmd struct {
	Watch bool          `help:"Show it again whenever it has changed, until interrupted."`
	Every time.Duration `default:"1s" help:"With --watch: how often to look."`
}

// minEvery keeps a look from following the other at once.
const minEvery = 10 * time.Millisecond

func (*deadlocksCmd) Help() string {
	return "Shown are units of work that hold something and have waited for longer than the delay of deadlock detection, one second by default, and the " +
		"deadlocks among them, each with the one first that is about to give up. It only reads. A deadlock that stays has somebody in it whose process is " +
		"stopped: its lease ends it. With --output json each look is one line with --watch. SIGINT and SIGTERM end it with exit code 0."
}

func (c *deadlocksCmd) Run(ctx context.Context, cl *cli, s *streams) error {
	if c.Every < minEvery {
		return usageError("deadlocks --every=%v: give %v or more", c.Every, minEvery)
	}
	if c.Watch {
		return cl.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error { return c.watch(ctx, cl, s, m) })
	}
	return show(ctx, cl, s, func(ctx context.Context, m *fabric.Manager) (fabric.Waits, error) { return m.Waits(ctx) }, drawWaits)
}

func (c *deadlocksCmd) watch(ctx context.Context, cl *cli, s *streams, m *fabric.Manager) error {
	last := ""
	for {
		w, err := m.Waits(ctx)
		if err != nil {
			return err
		}
		if now := fmt.Sprint(w); now != last {
			last = now
			if err := s.again(cl.Output, w, func(out io.Writer) { drawWaits(out, w) }); err != nil {
				return err
			}
		}
		if !pause.For(ctx, c.Every) {
			return nil
		}
	}
}

func drawWaits(out io.Writer, w fabric.Waits) {
	if len(w.Units) == 0 {
		fmt.Fprintln(out, "nobody who holds something waits for long")
		return
	}
	fmt.Fprintln(out, "OWNER\tPROCESS\tWAITS FOR\tHOLDS")
	for _, u := range w.Units {
		var waits []string
		for _, uw := range u.Waits {
			waits = append(waits, fmt.Sprintf("%s (%s)", printable(uw.Key), uw.Mode))
		}
		fmt.Fprintf(out, "%s\t%s:%d\t%s\t%s\n", orDash(printable(u.Owner)), u.Host, u.PID, strings.Join(waits, " "), strings.Join(u.Holds, " "))
	}
	for _, c := range w.Deadlocks {
		e := fabric.DeadlockError{Key: c[0].Waits, Cycle: c}
		fmt.Fprintln(out, e.Error())
	}
}
