package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// connect opens the fabric on the server that was named, or on the local one.
// It is bounded by --timeout. The caller closes the manager.
func (c *cli) connect(ctx context.Context, s *streams, opts ...fabric.Option) (*fabric.Manager, error) {
	to, err := c.target()
	if err != nil {
		return nil, err
	}
	if to == nil {
		to = &target{origin: "the local server"}
	}
	c.welcome = newWelcome(s.log, to)
	guarded, done := c.welcome.guard(ctx)
	defer done()
	limited, cancel := context.WithTimeout(guarded, c.Timeout)
	defer cancel()
	opts = append(opts, fabric.WithFabric(c.Fabric), fabric.WithLogger(s.log), fabric.WithNATS(c.welcome.options()...))
	// The client does not stop to wait for a silent server when a context ends, and
	// whoever has interrupted us does not wait for the client.
	opened := make(chan *fabric.Manager, 1)
	err = unless(guarded.Done(), func() error {
		var m *fabric.Manager
		open := func(ctx context.Context, servers string, o ...nats.Option) (err error) {
			m, err = fabric.Connect(ctx, servers, append(opts[:len(opts):len(opts)], fabric.WithNATS(o...))...)
			return err
		}
		var err error
		if to.servers == "" {
			err = c.connectLocal(limited, s, open)
		} else {
			// One attempt ends after some seconds of silence.
			for err = open(limited, to.servers, to.options...); silent(err) && limited.Err() == nil; {
				err = open(limited, to.servers, to.options...)
			}
		}
		opened <- m
		return err
	})
	switch {
	case err == nil:
		c.welcome.opened()
		return <-opened, nil
	case ctx.Err() != nil:
		return nil, interrupted(ctx, err)
	case to.servers == "":
		return nil, interrupted(guarded, err)
	}
	return nil, to.explain(interrupted(guarded, err), c.Timeout)
}

// silent reports whether an attempt to connect ended because nobody said anything.
func silent(err error) bool {
	var slow net.Error
	return errors.Is(err, fabric.ErrUnavailable) && (errors.Is(err, nats.ErrTimeout) || errors.As(err, &slow) && slow.Timeout())
}

// with opens the fabric, calls fn with it and closes it; fn has --timeout, too.
func (c *cli) with(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	return c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		limited, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		return fn(limited, m)
	})
}

// withoutLimit is with for what takes as long as it takes.
func (c *cli) withoutLimit(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	// Most of these only look, and their user may not be allowed more.
	m, err := c.connect(ctx, s, fabric.WithLazyLease(), fabric.WithSweepInterval(0))
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	guarded, done := c.welcome.guard(ctx)
	defer done()
	return c.welcome.why(guarded, fn(guarded, m))
}

// untilInterrupted is withoutLimit for what ends by a signal only, which is a success therefore.
func (c *cli) untilInterrupted(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := c.withoutLimit(ctx, s, fn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// interrupted gives an error that came of the end of ctx the reason of that end.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
