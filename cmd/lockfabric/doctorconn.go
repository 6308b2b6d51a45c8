package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// conn returns a connection to the server that was named, which is to, or to the
// local one, when to is nil, and opens no fabric on it.
func (c *cli) conn(ctx context.Context, s *streams, to *target) (nc *nats.Conn, err error) {
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	open := func(ctx context.Context, servers string, opts ...nats.Option) (err error) {
		nc, err = connectPlain(ctx, s, servers, opts...)
		return err
	}
	if to == nil {
		err = c.connectLocal(limited, s, open)
		return nc, interrupted(ctx, err)
	}
	if err := open(limited, to.servers, to.options...); err != nil {
		return nil, to.explain(err, c.Timeout)
	}
	return nc, nil
}

func (d *doctorCmd) system(ctx context.Context, c *cli, s *streams, to *target) (*nats.Conn, error) {
	account, err := to.as(d.SystemServer, d.SystemCreds)
	if err != nil {
		return nil, err
	}
	return c.conn(ctx, s, account)
}

// as returns the target with other credentials, and at another address if one is
// given: who the server is stays as it was.
func (t *target) as(servers, creds string) (*target, error) {
	other := &target{origin: "--system-server", setup: t.setup, who: "--system-creds"}
	other.setup.Forget()
	other.setup.Creds = creds
	if servers == "" {
		servers, other.origin = t.servers, t.origin
	}
	urls, inURL, err := parseServers(servers, other.origin)
	if err != nil {
		return nil, err
	}
	if creds == "" && inURL {
		other.who = "the credentials in " + other.origin
	}
	other.servers = joined(urls, creds == "")
	return other, other.prepare()
}

// connectPlain connects until ctx ends. The error is ErrUnavailable.
func connectPlain(ctx context.Context, s *streams, servers string, opts ...nats.Option) (*nats.Conn, error) {
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
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fabric.ErrUnavailable, err)
	}
	return nc, nil
}
