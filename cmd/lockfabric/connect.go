package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// connect opens the fabric on the server that was named, or on the local one.
// It is bounded by --timeout. The caller closes the manager.
func (c *cli) connect(ctx context.Context, s *streams, opts ...fabric.Option) (*fabric.Manager, error) {
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	opts = append(opts, fabric.WithFabric(c.Fabric), fabric.WithLogger(s.log),
		// The client's own way is to print them; they are all dealt with.
		fabric.WithNATS(nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.log.Debug("connection", "error", err)
		})))
	if c.Server == "" {
		var m *fabric.Manager
		err := c.connectLocal(limited, s, func(ctx context.Context, url string, o ...nats.Option) (err error) {
			m, err = fabric.Connect(ctx, url, append(opts[:len(opts):len(opts)], fabric.WithNATS(o...))...)
			return err
		})
		return m, interrupted(ctx, err)
	}
	m, err := fabric.Connect(limited, c.Server, opts...)
	switch {
	case err == nil:
		return m, nil
	case ctx.Err() != nil:
		return nil, interrupted(ctx, err)
	case errors.Is(err, context.DeadlineExceeded) || exitCode(err) == exitInternal:
		err = fmt.Errorf("%w: %w", fabric.ErrUnavailable, err)
	}
	if exitCode(err) == exitUnavailable {
		err = &redactedError{err, c.Server}
		return nil, fmt.Errorf("%w: check --server, and that the server runs with JetStream", err)
	}
	return nil, err
}

// with opens the fabric, calls fn with it and closes it; fn has --timeout, too.
func (c *cli) with(ctx context.Context, s *streams, fn func(ctx context.Context, m *fabric.Manager) error) error {
	m, err := c.connect(ctx, s)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return fn(ctx, m)
}

// interrupted gives an error that came of the end of ctx the reason of that end.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// redactedError hides the passwords of URLs in a message.
type redactedError struct {
	error
	urls string
}

func (e *redactedError) Unwrap() error { return e.error }

func (e *redactedError) Error() string {
	text := e.error.Error()
	for one := range strings.SplitSeq(e.urls, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil || u.User == nil {
			continue
		}
		secret, ok := u.User.Password()
		if !ok {
			secret = u.User.Username() // a lone user name is a token
		}
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "xxxxx")
			text = strings.ReplaceAll(text, url.PathEscape(secret), "xxxxx")
		}
	}
	return text
}
