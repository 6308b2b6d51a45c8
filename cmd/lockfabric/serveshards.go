package main

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// divide creates the fabric with its shards. In a cluster, it does so in the background, when enough servers run.
func (v *serveCmd) divide(ctx context.Context, srv *embedded.Server, name string, s *streams) error {
	made := make(chan error, 1)
	g, err := startSelfClient(srv, "shards", s.log, func(ctx context.Context, nc *nats.Conn) {
		made <- makeFabric(ctx, nc, fabric.WithFabric(name), fabric.WithShards(v.Shards), fabric.WithLabel("serve"))
	})
	if err != nil {
		return err
	}
	wait := func() error {
		defer g.end()
		select {
		case err := <-made:
			return err
		case <-ctx.Done():
			return nil
		}
	}
	if srv.ClusterAddr() == nil {
		return wait()
	}
	go func() {
		if err := wait(); err != nil {
			s.log.Error("the fabric is not as --shards says", "fabric", name, "error", err)
		}
	}()
	return nil
}

// makeFabric opens a fabric when the servers answer.
func makeFabric(ctx context.Context, nc *nats.Conn, opts ...fabric.Option) error {
	for {
		octx, cancel := context.WithTimeout(ctx, shutdownTimeout)
		m, err := fabric.New(octx, nc, opts...)
		cancel()
		switch {
		case err == nil:
			return m.Close()
		case ctx.Err() != nil || !errors.Is(err, fabric.ErrUnavailable):
			return err
		}
		pause.For(ctx, time.Second)
	}
}
