package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type inspectCmd struct {
	Key   string `arg:"" complete:"lock" help:"Name of the lock."`
	Watch bool   `help:"Show it again after each change, until interrupted."`
}

func (*inspectCmd) Help() string {
	return "With --watch each state is a block that begins with the time, or with --output json one object on one line. " +
		"Changes that come faster than they can be written are shown together; the last one is never left out. SIGINT and SIGTERM end it with exit code 0."
}

// Run shows one lock. The JSON is a fabric.Info; a lock that nobody uses has no
// holders and no waiters, and is no error.
func (i *inspectCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(i.Key); err != nil {
		return err
	}
	if i.Watch {
		return i.watch(ctx, c, s)
	}
	return show(ctx, c, s,
		func(ctx context.Context, m *fabric.Manager) (fabric.Info, error) { return m.Inspect(ctx, i.Key) },
		func(w io.Writer, info fabric.Info) { describe(w, info, time.Now()) })
}

func (i *inspectCmd) watch(ctx context.Context, c *cli, s *streams) error {
	return c.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		for info, err := range m.Watch(ctx, i.Key) {
			if err == nil {
				err = s.printWatched(c.Output, watched{time.Now(), info})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// watched is the JSON of one line of inspect --watch.
type watched struct {
	Time time.Time `json:"time"` // when it was seen, by the clock of this host
	fabric.Info
}

func (s *streams) printWatched(format string, v watched) error {
	return s.again(format, v, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s %s, revision %d\n", v.Time.Format(time.RFC3339), printable(v.Key), state(v.Info), v.Revision)
		facts(w, v.Info)
		allParties(w, v.Info, v.Time)
		fmt.Fprintln(w)
	})
}
