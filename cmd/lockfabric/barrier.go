package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

type barrierCmd struct {
	Name    string         `arg:"" complete:"lock" help:"Name of the barrier."`
	Command []string       `arg:"" optional:"" name:"cmd" passthrough:"partial" help:"Command that all parties run together, best after '--'."`
	Parties int            `short:"n" required:"" placeholder:"N" complete:"-" help:"How many have to come. All who use the name have to give the same."`
	Wait    *time.Duration `placeholder:"DURATION" help:"How long to wait for the others. Without it, as long as it takes."`
	holding
}

func (*barrierCmd) Help() string {
	return "Without CMD it ends when N parties have come, for all of them, and the next N are the next generation. One that gives up, at the end of --wait or by a signal, or dies " +
		"breaks the barrier for those who wait with it, and theirs is exit code 79.\n\n" +
		"With CMD it is a double barrier: CMD starts when N parties have come, with LOCKFABRIC_KEY and LOCKFABRIC_TOKEN, one token for all of them, " +
		"and this command ends when those of all parties have ended. One that gives up or dies while others come leaves its place to another; one that dies later counts as having ended. " +
		"The same name can't be used both with and without CMD at a time.\n\n" +
		"Exit code: CMD's own, or 128+n when signal n ended it; 75: not all came in the time of --wait; 76: the membership was lost; 79: the barrier was broken; " +
		"65: the number of parties is another one, or the name is something else; others as of run."
}

func (b *barrierCmd) Run(ctx context.Context, c *cli, s *streams) error {
	b.Command = afterDashes(b.Command)
	if err := b.validate(); err != nil {
		return err
	}
	t := &task{holding: &b.holding, name: "barrier", key: b.Name, command: b.Command, acquire: b.pass, advice: waitLonger}
	if len(b.Command) > 0 {
		t.acquire = b.enter
		t.after = func(ctx context.Context, h held) error { return h.(*primitives.Member).Leave(ctx) }
	}
	return t.run(ctx, c, s)
}

func (b *barrierCmd) validate() error {
	switch {
	case b.Parties < 1 || b.Parties > primitives.MaxParties:
		return usageError("barrier --parties=%d: give 1 to %d", b.Parties, primitives.MaxParties)
	case b.Wait != nil && *b.Wait <= 0:
		return usageError("barrier --wait=%v: give more than 0, or leave it out to wait without limit", *b.Wait)
	case len(b.Command) > 0 && b.Command[0] == "":
		return checkCommand("barrier", b.Command)
	}
	return cmp.Or(b.holding.validate("barrier"), checkName(b.Name))
}

func (b *barrierCmd) pass(ctx context.Context, m *fabric.Manager) (held, error) {
	barrier := primitives.NewBarrier(m, b.Name, b.Parties, fabric.WithMetadata(b.Meta))
	return nil, inTime(ctx, b.Name, b.Wait, func(ctx context.Context) error {
		_, err := barrier.Wait(ctx)
		return err
	})
}

func (b *barrierCmd) enter(ctx context.Context, m *fabric.Manager) (h held, err error) {
	double := primitives.NewDoubleBarrier(m, b.Name, b.Parties, fabric.WithMetadata(b.Meta))
	err = inTime(ctx, b.Name, b.Wait, func(ctx context.Context) error {
		member, err := double.Enter(ctx)
		if err == nil {
			h = member
		}
		return err
	})
	return h, err
}

var errNotPassed = errors.New("not passed in time")

// inTime calls fn with the time that there is to wait.
func inTime(ctx context.Context, key string, wait *time.Duration, fn func(context.Context) error) error {
	if wait == nil {
		return fn(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, *wait)
	defer cancel()
	err := fn(limited)
	if ctx.Err() == nil && timeOver(err) {
		return fmt.Errorf("%q: %w", key, errNotPassed)
	}
	return err
}

func waitLonger(err error) string {
	if errors.Is(err, errNotPassed) {
		return "see with 'lockfabric inspect' who is there, or wait longer with --wait"
	}
	return ""
}
