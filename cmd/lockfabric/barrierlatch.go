package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/primitives"
)

type barrierCmd struct {
	Name    string         `arg:"" complete:"barrier,gate" help:"Name of the barrier."`
	Command []string       `arg:"" optional:"" name:"cmd" passthrough:"partial" help:"Command that all parties run at the same time; put it after '--'."`
	Parties int            `short:"n" required:"" placeholder:"N" complete:"-" from:"1" to:"1024" help:"Number of parties. All users of the name must give the same number."`
	Wait    *time.Duration `placeholder:"DURATION" from:"1ns" give:"more than 0, or leave it out to wait without limit" help:"How long to wait for the other parties. Without it, there is no limit."`
	holding
}

func (b *barrierCmd) Run(ctx context.Context, c *cli, s *streams) error {
	b.Command = afterDashes(b.Command)
	if err := checkName(b.Name); err != nil {
		return err
	}
	t := &task{holding: &b.holding, name: "barrier", key: b.Name, command: b.Command, acquire: b.acquire, advice: waitLonger}
	if len(b.Command) > 0 {
		if err := checkCommand("barrier", b.Command); err != nil {
			return err
		}
		t.after = func(ctx context.Context, h held) error { return h.(*primitives.Member).Leave(ctx) }
	}
	return t.run(ctx, c, s)
}

// acquire waits for the other parties. With a command, it also enters, and nobody leaves before all others do.
func (b *barrierCmd) acquire(ctx context.Context, m *fabric.Manager) (h held, err error) {
	err = withinWait(ctx, b.Name, b.Wait, func(ctx context.Context) error {
		if len(b.Command) == 0 {
			_, err := primitives.NewBarrier(m, b.Name, b.Parties, fabric.WithMetadata(b.Meta)).Wait(ctx)
			return err
		}
		member, err := primitives.NewDoubleBarrier(m, b.Name, b.Parties, fabric.WithMetadata(b.Meta)).Enter(ctx)
		if err == nil {
			h = member
		}
		return err
	})
	return h, err
}

var errNotPassed = errors.New("not passed in time")

// withinWait calls fn with a context that ends after --wait.
func withinWait(ctx context.Context, key string, wait *time.Duration, fn func(context.Context) error) error {
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

type latchCmd struct {
	Wait      latchWaitCmd      `cmd:"" help:"Wait until a latch is open."`
	CountDown latchCountDownCmd `cmd:"" help:"Count a latch down; at 0 it opens permanently."`
	Delete    latchDeleteCmd    `cmd:"" help:"Delete a latch, so that its name can be used for a new one."`
}

// countFlags are the flags of latch commands whose users must agree on the count.
type countFlags struct {
	Name  string `arg:"" complete:"latch" help:"Name of the latch."`
	Count *int   `placeholder:"N" complete:"-" from:"1" to:"2147483647" give:"1 to 2147483647, or leave it out for one that there is" help:"Number of counts after which the latch opens. The first user sets it; others must give the same number or omit it."`
}

// latch returns the latch. Without --count it uses the count with which the latch was created.
func (c *countFlags) latch(ctx context.Context, m *fabric.Manager) (*primitives.Latch, error) {
	if c.Count != nil {
		return primitives.NewLatch(m, c.Name, *c.Count), nil
	}
	info, err := m.Read(ctx, c.Name)
	switch {
	case err != nil:
		return nil, err
	case info.Kind == "":
		return nil, &exitError{code: exitData, cause: fmt.Errorf("there is no latch %q: say with --count after how many counts it opens", c.Name)}
	}
	return primitives.NewLatch(m, c.Name, max(info.Initial, 1)), nil // the count is 0 if the name has another kind, which is then refused
}

type latchWaitCmd struct {
	countFlags
	Wait       *time.Duration `placeholder:"DURATION" from:"0" give:"0 to only look, or leave it out to wait without limit" help:"How long to wait; 0 only checks. Without it, there is no limit."`
	TTL        time.Duration  `default:"30s" help:"How long others wait after the last renewal until they regard this waiter as dead."`
	NoProgress bool           `help:"Don't show the waiting time on the terminal."`
}

func (l *latchWaitCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(l.Name); err != nil {
		return err
	}
	t := &task{holding: &holding{TTL: l.TTL, NoProgress: l.NoProgress}, name: "latch", key: l.Name, acquire: l.pass, advice: waitLonger}
	return t.run(ctx, c, s)
}

func (l *latchWaitCmd) pass(ctx context.Context, m *fabric.Manager) (held, error) {
	latch, err := l.latch(ctx, m)
	if err != nil {
		return nil, err
	}
	if l.Wait != nil && *l.Wait == 0 {
		count, err := latch.Count(ctx)
		if err == nil && count > 0 {
			err = fmt.Errorf("%q: %w", l.Name, errNotPassed)
		}
		return nil, err
	}
	err = withinWait(ctx, l.Name, l.Wait, latch.Wait)
	if errors.Is(err, errNotPassed) { // or no server could say whether it opened
		if _, rerr := pause.Within(ctx, nameTime, latch.Count); rerr != nil {
			err = fmt.Errorf("%w: %w", fabric.ErrUnavailable, rerr)
		}
	}
	return nil, err
}

type latchCountDownCmd struct {
	countFlags
	Times int `short:"n" default:"1" placeholder:"K" complete:"-" from:"1" to:"2147483647" help:"How many times to count."`
}

// countResult is the JSON of latch count-down.
type countResult struct {
	Key   string `json:"key"`
	Count int    `json:"count"` // number of missing counts; 0 = open
}

func (l *latchCountDownCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(l.Name); err != nil {
		return err
	}
	return show(ctx, c, s, func(ctx context.Context, m *fabric.Manager) (countResult, error) {
		now := countResult{Key: l.Name}
		latch, err := l.latch(ctx, m)
		if err == nil {
			err = latch.CountDownN(ctx, l.Times)
		}
		if err == nil {
			now.Count, err = latch.Count(ctx)
		}
		return now, withHolderName(err, m, l.Name)
	}, func(w io.Writer, now countResult) {
		if now.Count == 0 {
			fmt.Fprintf(w, "%s: open\n", printable(l.Name))
		} else {
			fmt.Fprintf(w, "%s: %d to go\n", printable(l.Name), now.Count)
		}
	})
}

type latchDeleteCmd struct {
	Name string        `arg:"" complete:"latch" help:"Name of the latch."`
	Wait time.Duration `placeholder:"DURATION" from:"0" give:"a time, or leave it out to only try" help:"How long to wait until it has no waiters. A waiter that looks dead is observed for about its TTL in addition."`
}

func (l *latchDeleteCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(l.Name); err != nil {
		return err
	}
	return c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		defer c.showLater(ctx, s, since("waiting %s for those who wait for the latch"))()
		err := l.delete(ctx, m, c.Timeout)
		if errors.Is(err, fabric.ErrHeld) {
			return fmt.Errorf("%q: %w: that one waits for the latch: wait longer with --wait, or take it away with 'lockfabric release --force %s'", l.Name, withHolderName(err, m, l.Name), printable(l.Name))
		}
		return withHolderName(err, m, l.Name)
	})
}

// delete tries until --wait is over. A try takes as long as the observation of a waiter that looks dead.
func (l *latchDeleteCmd) delete(ctx context.Context, m *fabric.Manager, timeout time.Duration) error {
	for end := time.Now().Add(l.Wait); ; {
		info, err := pause.Within(ctx, timeout, func(ctx context.Context) (fabric.Info, error) { return m.Read(ctx, l.Name) })
		if err != nil {
			return err
		}
		observed := time.Duration(0)
		for _, p := range info.Waiters {
			observed = max(observed, 2*p.Lease.TTL)
		}
		limited, cancel := context.WithTimeout(ctx, timeout+observed)
		err = primitives.NewLatch(m, l.Name, 1).Delete(limited)
		cancel()
		left := time.Until(end)
		if !errors.Is(err, fabric.ErrHeld) || left <= 0 || !pause.For(ctx, min(time.Second, left)) {
			return err
		}
	}
}
