package main

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// servedPage is the page of serve --ui, which only looks. nil is none.
type servedPage struct {
	nc   *nats.Conn
	stop context.CancelFunc
	done chan struct{}
}

// showPage serves the page of a fabric on this server. It listens already; who opens it waits until the
// server, which may still wait for its cluster, can be asked.
func showPage(srv *embedded.Server, l *pageListener, name string, s *streams) (*servedPage, error) {
	if l == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	nc, err := srv.Connect(nats.Name("lockfabric ui"), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
	if err != nil {
		return nil, fmt.Errorf("serve --ui: %w", err)
	}
	p := &servedPage{nc: nc, done: make(chan struct{})}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	go func() {
		defer close(p.done)
		m, err := fabric.New(ctx, nc, fabric.WithFabric(name), fabric.WithLazyLease(), fabric.WithSweepInterval(0), fabric.WithLogger(s.log))
		if err == nil {
			err = (&uiCmd{}).serve(ctx, l, m, name, s.log)
			_ = m.Close()
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("no page here", "error", err)
		}
	}()
	return p, nil
}

// clients is how many of the server's clients are this one.
func (p *servedPage) clients() int {
	if p == nil || !p.nc.IsConnected() {
		return 0
	}
	return 1
}

func (p *servedPage) end() {
	if p != nil {
		p.stop()
		<-p.done
		p.nc.Close()
	}
}
