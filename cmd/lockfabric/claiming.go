package main

import (
	"context"
	"errors"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type claiming struct {
	Wait       *time.Duration `placeholder:"DURATION" help:"How long to wait; 0 only tries. Without it, as long as it takes. A holder that looks dead is observed for about its TTL on top."`
	Owner      string         `help:"Identity to hold it under; the same one can't take it twice. Each run is its own by default."`
	NoTakeover bool           `help:"When the time to wait is over, don't observe a holder that looks dead."`

	ConflictExitCode *int `short:"E" placeholder:"N" complete:"-" help:"Exit code when others hold it, in place of 75."`
	Quiet            bool `short:"q" help:"Say nothing when others hold it, and show no progress. Other errors are told."`
}

func (c *claiming) validate(what string) error {
	if c.Wait != nil && *c.Wait < 0 {
		return usageError("%s --wait=%v: give 0 to only try, or leave it out to wait without limit", what, *c.Wait)
	}
	if n := c.ConflictExitCode; n != nil && (*n < 0 || *n > maxExit) {
		return usageError("%s --conflict-exit-code=%d: give 0 to %d", what, *n, maxExit)
	}
	return nil
}

// conflict gives the refusal of what others hold the exit code of the caller's choice.
func (c *claiming) conflict(err error) error {
	var passed *exitError
	if errors.As(err, &passed) || exitCode(err) != exitNotAcquired {
		return err
	}
	refused := &exitError{code: exitNotAcquired, cause: err}
	if c.ConflictExitCode != nil {
		refused.code = *c.ConflictExitCode
	}
	if c.Quiet {
		refused.cause = nil
	}
	return refused
}

func (c *claiming) claim(ctx context.Context, m *fabric.Manager, key string, what fabric.Claim, opts ...fabric.AcquireOption) (held, error) {
	return c.ask(ctx, func(ctx context.Context, try bool, opts ...fabric.AcquireOption) (held, error) {
		if try {
			what.Verb = "try"
		}
		return granted(m.Claim(ctx, key, what, opts...))
	}, opts...)
}

// acquirer waits for what a command holds, or tries.
type acquirer func(ctx context.Context, try bool, opts ...fabric.AcquireOption) (held, error)

func (c *claiming) ask(ctx context.Context, acquire acquirer, opts ...fabric.AcquireOption) (held, error) {
	if c.Owner != "" {
		opts = append(opts, fabric.WithOwner(c.Owner))
	}
	if c.Wait == nil {
		return acquire(ctx, false, opts...)
	}
	if *c.Wait > 0 {
		h, err := acquire(ctx, false, append(opts, fabric.WithWaitLimit(*c.Wait))...)
		if err == nil || ctx.Err() != nil || !timeOver(err) {
			return h, err
		}
	}
	// To try, also after a wait: it tells who is in the way, and it replaces a
	// dead holder whose TTL is longer than the wait. Else a job that never waits so
	// long would never run again.
	if c.NoTakeover {
		opts = append(opts, fabric.WithoutTakeover())
	}
	return acquire(ctx, true, append(opts, fabric.WithFailFast())...)
}

// granted makes no hold a nil one.
func granted(h *fabric.Hold, err error) (held, error) {
	if err != nil {
		return nil, err
	}
	return h, nil
}

// timeOver says whether a wait ended because its time was over, and no server's silence is to blame.
func timeOver(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, fabric.ErrUnavailable) && !errors.Is(err, fabric.ErrUncertain)
}

func (*claiming) advice(err error) string {
	switch {
	case errors.Is(err, fabric.ErrAlreadyHeld):
		return "end the other run of this --owner, or give another one"
	case exitCode(err) == exitNotAcquired:
		return "see 'lockfabric inspect', or wait longer with --wait"
	}
	return ""
}
