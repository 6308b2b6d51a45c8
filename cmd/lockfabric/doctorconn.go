package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// conn returns a connection to the server that was named, or to the local one, and
// opens no fabric on it.
func (c *cli) conn(ctx context.Context, s *streams) (*nats.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var nc *nats.Conn
	open := func(ctx context.Context, url string, opts ...nats.Option) (err error) {
		nc, err = plain(ctx, s, url, opts...)
		return err
	}
	if c.Server == "" {
		err := interrupted(ctx, c.connectLocal(limited, s, open))
		return nc, err
	}
	if err := open(limited, c.Server); err != nil {
		return nil, fmt.Errorf("%w: check --server", err)
	}
	return nc, nil
}

// system returns a connection to the system account.
func (d *doctorCmd) system(ctx context.Context, c *cli, s *streams) (*nats.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	servers := d.SystemServer
	if servers == "" {
		servers = c.Server
	}
	var opts []nats.Option
	if d.SystemCreds != "" {
		opts = append(opts, nats.UserCredentials(d.SystemCreds))
	}
	return plain(limited, s, servers, opts...)
}

// plain connects until ctx ends. The error is ErrUnavailable.
func plain(ctx context.Context, s *streams, servers string, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{
		nats.Name("lockfabric doctor"),
		nats.ReconnectBufSize(-1), // what was given up must not be sent later
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { s.log.Debug("connection", "error", err) }),
	}, opts...)
	if deadline, ok := ctx.Deadline(); ok {
		// The servers are tried one after the other, and each may be silent.
		opts = append(opts, nats.Timeout(max(time.Until(deadline)/time.Duration(1+strings.Count(servers, ",")), time.Millisecond)))
	}
	nc, err := nats.Connect(servers, opts...)
	var unreadable *url.Error
	if errors.As(err, &unreadable) {
		// It quotes the URL, and what is wrong with it may be a part of a password.
		err = errors.New("a URL can't be read: write nats://host:4222, and special characters of a user or password before the host as %XX")
	}
	if err != nil {
		return nil, &redactedError{fmt.Errorf("%w: %w", fabric.ErrUnavailable, err), servers}
	}
	return nc, nil
}
