package fabric

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// standIns is how many fabrics one process serves at a time at most.
const standIns = 64

// openStandIn bounds the time to open a fabric that a client asks for.
const openStandIn = 10 * time.Second

// StandBy serves as the coalescer of every fabric on the connection whose clients ask for one, until ctx ends, as
// `lockfabric serve` does beside its server, before processes with [WithCoalescer]. It opens a fabric when a client asks,
// and closes it when none does, so at rest it costs one subscription. It makes no buckets. Options are those of New; the
// fabric's name is ignored. Errors: that of the subscription, ErrConnectionClosed, or ErrInvalidOption.
func StandBy(ctx context.Context, nc *nats.Conn, opts ...Option) error {
	cfg, err := newConfig(opts)
	if err != nil {
		return err
	}
	if err := checkConnection(nc); err != nil {
		return err
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

// When a process volunteers to serve: it had crowdConflicts conflicts in a second, or crowdLeases leases of others were
// ahead of its waiters, and twice no process served.
const (
	crowdConflicts = 20
	crowdLeases    = 3
	againLeast     = 200 * time.Millisecond // between the two times; up to twice as long, so that few volunteer at once
	volunteerFor   = 2                      // clients at least, or its term ends as unused
	// A process that had too few clients does not volunteer for unusedRest, and one that may not serve for unheardRest.
	unusedRest  = time.Minute
	unheardRest = 10 * time.Minute
)

// WithoutVolunteering has the manager never serve as the fabric's coalescer, as it does with [RoadAutomatic] or
// [RoadCoalesced] while its locks are contended and nobody else serves. It is for programs that run for a short time.
func WithoutVolunteering() ManagerOption {
	return func(c *config) error { c.noVolunteering = true; return nil }
}

// volunteers reports whether this process may serve without [WithCoalescer].
func (c *config) volunteers() bool {
	return c.rank == 0 && !c.noVolunteering && (c.road == RoadAutomatic || c.road == RoadCoalesced)
}

// crowd is what a process that may volunteer knows about other processes.
type crowd struct {
	unserved chan struct{}          // holds an element once locks were contended and no process served
	key      atomic.Pointer[string] // the key that was contended last
	met      chan struct{}          // holds an element once a key was contended
	meetings meetings
}

// meetings is the number n of conflicts until the time at, which is about a second ago or longer.
type meetings struct {
	n  uint64
	at time.Time
}

// often reports whether conflicts are so frequent that an owner helps. n is the number of conflicts until now.
func (m *meetings) often(n uint64, now time.Time) bool {
	passed := max(now.Sub(m.at), time.Second)
	often := float64(n-m.n) >= crowdConflicts*passed.Seconds()
	if now.Sub(m.at) >= time.Second {
		*m = meetings{n, now}
	}
	return often
}

// foreignAhead returns how many leases of other processes are ahead of this process's waiters on the lock that was contended last.
func (sh *shard) foreignAhead() int {
	key := sh.crowd.key.Load()
	if key == nil {
		return 0
	}
	rec, _, _ := sh.engine.Known(*key)
	mine := func(id string) bool { live, _ := sh.s.leaseState(record.LeaseOf(id)); return live }
	all, _ := rec.Ahead(mine)
	leases := map[string]bool{}
	for id := range all {
		if live, _ := sh.s.leaseState(id); !live {
			leases[id] = true
		}
	}
	return len(leases)
}

// volunteer returns true once this process should queue for the shard's lock, and false when the session ends.
func (c *coalescer) volunteer() bool {
	for {
		select {
		case <-c.s.ctx.Done():
			return false
		case <-c.crowd.unserved:
		}
		c.awaitMeeting()
		met := c.engine.Stats().Conflicts
		crowded := c.crowd.meetings.often(met, time.Now()) || c.foreignAhead() >= crowdLeases
		if !crowded || !pause.For(c.s.ctx, againLeast+rand.N(againLeast)) || !c.stillMet(met) || !c.nobodyServes() {
			continue
		}
		rec, _, err := c.engine.Read(c.s.ctx, c.owner)
		if err == nil && (rec == nil || c.wanted(rec)) {
			return true
		}
	}
}

// awaitMeeting waits until a key is contended, at most a second: at the first operations nothing may wait for an owner.
func (c *coalescer) awaitMeeting() {
	select {
	case <-c.crowd.met: // this contention may be long past
	default:
	}
	pause.Until(c.s.ctx, time.Second, c.crowd.met)
}

// stillMet reports whether there were more conflicts than this number, or many leases of others are ahead.
func (c *coalescer) stillMet(conflicts uint64) bool {
	c.awaitMeeting()
	return c.engine.Stats().Conflicts > conflicts || c.foreignAhead() >= crowdLeases
}

// nobodyServes sends a hello, and reports whether the server says that no process is subscribed to it.
func (c *coalescer) nobodyServes() bool {
	ctx, cancel := context.WithTimeout(c.s.ctx, time.Second)
	defer cancel()
	_, err := c.s.m.nc.RequestWithContext(ctx, coalesce.HelloSubject(c.s.m.cfg.buckets.Fabric, c.n), nil)
	return errors.Is(err, nats.ErrNoResponders)
}

// restOf returns how long a process does not volunteer after a term that ended for this reason.
func restOf(why error) time.Duration {
	switch {
	case errors.Is(why, coalesce.ErrUnheard):
		return unheardRest
	case errors.Is(why, errNobodyAsks):
		return unusedRest
	}
	return 0
}
