package demo

import (
	"context"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// Connect opens the fabric on the given server. If the URL is empty, it starts an embedded server. The returned
// function closes both.
func Connect(ctx context.Context, server string, opts ...fabric.Option) (*fabric.Manager, func(), error) {
	if server != "" {
		m, err := fabric.Connect(ctx, server, opts...)
		if err != nil {
			return nil, nil, err
		}
		return m, func() { _ = m.Close() }, nil
	}
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		return nil, nil, err
	}
	stop := func() { _ = srv.Shutdown(context.WithoutCancel(ctx)) }
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		stop()
		return nil, nil, err
	}
	m, err := fabric.New(ctx, nc, opts...)
	if err != nil {
		nc.Close()
		stop()
		return nil, nil, err
	}
	return m, func() { _ = m.Close(); nc.Close(); stop() }, nil
}
