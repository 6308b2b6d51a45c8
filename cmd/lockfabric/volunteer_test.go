//go:build unix

package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Commands are short, so none serves as the coalescer, whatever road its manager takes and whom it meets.
func TestCommandsDoNotVolunteer(t *testing.T) {
	t.Parallel()
	name := "no-volunteers"
	c := &cli{Fabric: name, Timeout: testTimeout}
	c.Server = server.ClientURL()
	s := &streams{out: io.Discard, err: io.Discard, log: slog.New(slog.DiscardHandler)}
	var managers []*fabric.Manager
	for range 5 {
		m, err := c.connect(t.Context(), s, fabric.WithRoad(fabric.RoadAutomatic))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		managers = append(managers, m)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // others have served by then
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range managers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if l, err := m.Acquire(ctx, "crowded"); err == nil {
					time.Sleep(5 * time.Millisecond)
					_ = l.Release(t.Context())
				}
			}
		})
	}
	wg.Wait()
	for _, m := range managers {
		if info, err := m.Coalescer(t.Context()); err != nil || len(info.Holders)+len(info.Waiters) > 0 || m.Stats().Serving > 0 {
			t.Errorf("a command serves: %+v, %v", info, err)
		}
	}
}
