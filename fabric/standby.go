package fabric

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// standIns is how many fabrics one process serves at a time at most.
const standIns = 64

// openStandIn bounds the time to open a fabric that a client asks for.
const openStandIn = 10 * time.Second

// StandBy serves as the coalescer of every fabric on the connection whose clients ask for one, until ctx ends. It takes precedence over
// processes with [WithCoalescer]. `lockfabric serve` does this beside its server. StandBy opens a
// fabric when a client asks, and closes it when no client asks any more, so at rest it costs one subscription.
// It makes no buckets. Options are those of New. The fabric's name is ignored.
//
// It returns the error of the subscription, or ErrInvalidOption.
func StandBy(ctx context.Context, nc *nats.Conn, opts ...Option) error {
	cfg, err := newConfig(opts)
	if err != nil {
		return err
	}
	if nc == nil {
		return errNoConnection
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	sb := &standBy{nc: nc, js: js, opts: opts, cfg: cfg, serving: map[string]bool{}}
	// No queue group: a process that serves already must answer the same message.
	sub, err := nc.Subscribe(coalesce.AnyHello, func(m *nats.Msg) {
		if at := strings.Split(m.Subject, "."); sb.begin(at[1]) {
			go sb.serve(ctx, at[1], at[2])
		}
	})
	if err != nil {
		return fmt.Errorf("fabric: stand by: %w", err)
	}
	<-ctx.Done()
	err = sub.Unsubscribe()
	sb.mu.Lock()
	sb.over = true
	sb.mu.Unlock()
	sb.wg.Wait()
	if errors.Is(err, nats.ErrConnectionClosed) {
		return nil
	}
	return err
}

// WithWatch has StandBy call watch with each manager that it opens, and stop when that manager is closed. It is made
// for fabricprom's Collector.Watch. It has no effect elsewhere.
func WithWatch(watch func(m *Manager) (stop func())) ManagerOption {
	return func(c *config) error { c.watch = watch; return nil }
}

type standBy struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	opts []Option
	cfg  config

	mu      sync.Mutex
	over    bool
	serving map[string]bool
	wg      sync.WaitGroup // grows only under mu, while not over
}

// begin notes that a fabric is served. It returns false if the fabric is served already, or must not be.
func (sb *standBy) begin(fabric string) bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.over || sb.serving[fabric] || len(sb.serving) >= standIns {
		return false
	}
	sb.serving[fabric] = true
	sb.wg.Add(1)
	return true
}

// serve serves as the coalescer of a fabric until no client asks for it any more.
func (sb *standBy) serve(ctx context.Context, fabric, shard string) {
	defer sb.wg.Done()
	err := sb.open(ctx, fabric, shard)
	if err != nil && ctx.Err() == nil {
		sb.cfg.logger.Debug("no coalescer for a fabric that asks for one", "fabric", fabric, "error", err)
		pause.For(ctx, time.Second)
	}
	sb.mu.Lock()
	delete(sb.serving, fabric)
	sb.mu.Unlock()
}

func (sb *standBy) open(ctx context.Context, fabric, shard string) error {
	octx, cancel := context.WithTimeout(ctx, openStandIn)
	defer cancel()
	stream := "KV_" + kv.LocksBucket(fabric)
	_, err := sb.js.Stream(octx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = sb.js.Stream(octx, stream+"-"+shard)
	}
	if err != nil {
		return err // New would make the bucket
	}
	standIn := ManagerOption(func(c *config) error {
		c.rank, c.onDemand = rankServer, true
		return nil
	})
	m, err := New(octx, sb.nc, append(sb.opts[:len(sb.opts):len(sb.opts)], WithFabric(fabric), standIn)...)
	if err != nil {
		return err
	}
	if sb.cfg.watch != nil {
		defer sb.cfg.watch(m)()
	}
	select {
	case <-m.life.Done():
	case <-ctx.Done():
	}
	return m.Close()
}
