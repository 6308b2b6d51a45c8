package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricprom"
)

// coalescing is this process while it stands by as the coalescer of the fabrics on its server.
type coalescing struct {
	nc   *nats.Conn // nil if it does not
	stop context.CancelFunc
	done chan struct{}
}

// coalesceFor begins to stand by. Locks do without it, so what is in its way is only logged.
func coalesceFor(srv *embedded.Server, log *slog.Logger, counted *fabricprom.Collector) *coalescing {
	c := &coalescing{done: make(chan struct{})}
	nc, err := srv.Connect(nats.Name("lockfabric coalescer"), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Debug("the NATS client of the coalescer reports an error", "error", err)
		}))
	switch {
	case errors.Is(err, embedded.ErrCredentials):
		log.Info("no coalescer here: the configuration file has accounts of its own, and programs in them can be one")
	case err != nil:
		log.Warn("no coalescer here", "error", err)
	}
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	if err != nil {
		close(c.done)
		return c
	}
	c.nc = nc
	go func() {
		defer close(c.done)
		err := fabric.StandBy(ctx, nc, fabric.WithLabel("serve"), fabric.WithLogger(log), fabric.WithSweepInterval(0),
			fabric.WithEvents(counted.Event), fabric.WithWatch(counted.Watch))
		if err != nil {
			log.Warn("no coalescer here", "error", err)
		}
	}()
	return c
}

// clients is how many of the server's clients are this one.
func (c *coalescing) clients() int {
	if c == nil || c.nc == nil || !c.nc.IsConnected() {
		return 0
	}
	return 1
}

// end hands over what is served, within some seconds.
func (c *coalescing) end() {
	if c == nil {
		return
	}
	c.stop()
	<-c.done
	if c.nc != nil {
		c.nc.Close()
	}
}
