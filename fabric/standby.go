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

// standIns bounds the fabrics that one process serves at a time.
const standIns = 64

// openStandIn bounds the opening of a fabric that somebody asks for.
const openStandIn = 10 * time.Second

// StandBy serves as the coalescer of every fabric on the connection whose clients ask for one, before
// those with [WithCoalescer], until ctx ends: what `lockfabric serve` does beside its server. It opens a
// fabric when somebody asks and closes it when nobody does any more, so it costs a subscription
// at rest. It makes no buckets. Options are those of New; the fabric's name is of no use.
//
// Its error is that of the subscription, or ErrInvalidOption.
func StandBy(ctx context.Context, nc *nats.Conn, opts ...Option) error {
	cfg, err := newConfig(opts)
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	sb := &standBy{nc: nc, js: js, opts: opts, cfg: cfg, serving: map[string]bool{}}
	// No queue group: whoever serves already answers the same message.
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

// WithWatch has StandBy call watch with each manager that it opens, and stop when that is closed: as made
// for fabricprom's Collector.Watch. It is of no use elsewhere.
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
	wg      sync.WaitGroup // added to under mu while not over
}

// begin notes that a fabric is served, and reports false if it is already, or must not be.
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

// serve is the coalescer of a fabric until nobody asks for it any more.
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
		return err // opening would make it
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
