package fabric

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

const (
	// spares is how many candidates wait for an owner's lock. Others only watch for its beats to stop.
	spares = 2
	// silence is how long no beat is heard before a candidate reads. An idle owner sends a beat every 5 s.
	silence = 12 * time.Second
	// How long an owner without active sessions keeps its lock, and one that no client has asked for.
	idleOwner = 30 * time.Second
	idleHeir  = 5 * time.Second
	// handover bounds how long an owner that ends its term takes to answer its clients.
	handover = time.Second
)

// WithCoalescer has this process serve as the fabric's coalescer when a client asks for one: it carries out the operations
// of contended locks for all clients, which is cheaper. One process serves at a time; "lockfabric serve" goes before
// others. Only speed depends on it. docs/coalescing.md says what it costs and which permissions it needs.
func WithCoalescer() ManagerOption { return func(c *config) error { c.rank = rankProcess; return nil } }

// coalescer is this process as a candidate for the shard, and as its owner.
//
//	rests -- hello --> waits for the lock -- granted --> serves
//	 ^ ^                     ^                            |
//	 | +-- idle -------------|----------------------------+
//	 |                       +----- better candidate -----+
//	 +---- too many candidates, until the beats stop
//
// A fabric without requests for an owner costs nothing: a candidate that rests has two subscriptions. One that
// volunteers does not wait for hellos: it knows itself when an owner is useful, see volunteer.
type coalescer struct {
	*shard
	hello chan struct{} // holds an element once a client has asked for an owner
	beat  chan struct{} // holds an element once a beat was received
}

// coalesce runs while the manager may serve.
func (s *session) coalesce() {
	defer close(s.coalesced)
	together(s.shards, (*shard).coalesce)
}

// coalesce is the shard's goroutine while the manager may serve.
func (sh *shard) coalesce() {
	s := sh.s
	if s.awaitReady(s.ctx, false) != nil {
		return
	}
	cfg := &s.m.cfg
	c := &coalescer{shard: sh, hello: make(chan struct{}, 1), beat: make(chan struct{}, 1)}
	beats, err := c.listen(coalesce.BeatSubject(cfg.buckets.Fabric, sh.n), "", c.beat)
	if err != nil {
		cfg.logger.Warn("this process can't serve as a coalescer", "error", err)
		return
	}
	defer func() { _ = beats.Unsubscribe() }()
	again := false // an owner was there just now
	for asked := cfg.onDemand; asked || again || c.standBy(&asked); asked = false {
		o, err := sh.own(s.ctx)
		if err == nil {
			err = c.serve(o, asked)
		}
		again = false
		switch {
		case s.ctx.Err() != nil:
			return
		case cfg.rank == rankVolunteer:
			pause.For(s.ctx, restOf(err))
		case errors.Is(err, errNobodyAsks):
			if cfg.onDemand && len(s.shards) == 1 {
				s.m.die(ErrClosed)
				return
			}
		case !errors.Is(err, errBetter):
			again = errors.Is(err, errOwnershipLost) || errors.Is(err, engine.ErrGone)
			cfg.logger.Warn("the coalescer stopped, and tries again", "error", err)
			pause.For(s.ctx, pause.Around(time.Second))
		}
	}
}

// listen puts an element into heard for every message.
func (c *coalescer) listen(subject, queue string, heard chan struct{}) (*nats.Subscription, error) {
	return c.s.m.nc.QueueSubscribe(subject, queue, func(*nats.Msg) { pause.Wake(heard) })
}

// standBy returns true once this process should queue for the lock, and false when the session ends.
func (c *coalescer) standBy(asked *bool) bool {
	if c.s.m.cfg.rank == rankVolunteer {
		*asked = c.volunteer()
		return *asked
	}
	for c.s.ctx.Err() == nil {
		rec, _, err := c.engine.Read(c.s.ctx, c.owner)
		switch {
		case err != nil:
			pause.For(c.s.ctx, pause.Around(time.Second))
		case rec == nil || len(rec.Holders) == 0:
			if int(c.s.resting.Add(1)) == len(c.s.shards) && c.s.m.cfg.onDemand {
				c.s.m.die(ErrClosed) // another process has served, and no client asks any more
			}
			*asked = c.rest()
			c.s.resting.Add(-1)
			if *asked {
				return true
			}
		case c.wanted(rec):
			return true
		default:
			c.awaitSilence()
		}
	}
	return false
}

// wanted reports whether one more candidate is useful beside those that wait already.
func (c *coalescer) wanted(rec *record.Record) bool {
	n := 0
	for i := range rec.Waiters {
		if rankOf(&rec.Waiters[i]) >= c.s.m.cfg.rank {
			n++
		}
	}
	return n < spares
}

// rest waits until a client asks for an owner or a beat arrives. It returns true if a client has asked.
func (c *coalescer) rest() (asked bool) {
	hellos, err := c.listen(coalesce.HelloSubject(c.s.m.cfg.buckets.Fabric, c.n), coalesce.QueueGroup, c.hello)
	if err != nil {
		pause.For(c.s.ctx, pause.Around(time.Second))
		return false
	}
	defer func() { _ = hellos.Unsubscribe() }()
	select {
	case <-c.s.ctx.Done():
	case <-c.hello:
		return true
	case <-c.beat:
		pause.For(c.s.ctx, rand.N(time.Second)) // many candidates may have heard the same beat
	}
	return false
}

// awaitSilence waits until no beat was received for about the time silence.
func (c *coalescer) awaitSilence() {
	for {
		select {
		case <-c.s.ctx.Done():
			return
		case <-time.After(silence + rand.N(silence/4)):
			return
		case <-c.beat:
		}
	}
}

// Reasons why a term ends.
var (
	errOwnershipLost = errors.New("fabric: the lock of the coalescer is lost")
	errNobodyAsks    = errors.New("fabric: nobody asks")
	errBetter        = errors.New("fabric: a better candidate waits")
)

// serve serves one term as the owner. Its error is the reason why the term ended.
func (c *coalescer) serve(o *ownership, asked bool) error {
	s, cfg := c.s, &c.s.m.cfg
	c.bucket.CommitInGroups() // a coalescer writes many keys at a time
	svc, err := coalesce.Serve(coalesce.ServiceConfig{
		Conn: s.m.nc, Fabric: cfg.buckets.Fabric, Shard: c.n, Stamp: c.stamp(), Term: o.term, Lease: o.share.id,
		Rank: cfg.rank, Version: version(), Metadata: map[string]string{"process": lease.Self()},
		Doer: c.engine, Known: c.engine.Known, Writes: func() uint64 { return c.engine.Stats().Writes }, Batched: c.bucket.Batched, Valid: o.share.lease.Valid, LeaseAlive: s.leaseAlive, Logger: cfg.logger,
	})
	if err != nil {
		o.release(s.ctx)
		return err
	}
	cfg.logger.Info("this process is the fabric's coalescer", "term", o.term)
	c.here(o.term)
	why := c.term(o, svc, asked)
	c.here(0)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), handover)
	defer cancel()
	if err := svc.Close(ctx); err != nil {
		cfg.logger.Debug("not everybody was told that the coalescer ends", "error", err)
	}
	o.release(ctx)
	cfg.logger.Info("this process is the fabric's coalescer no more", "term", o.term, "reason", why)
	return why
}

// term waits until there is a reason to end the term, and returns it.
func (c *coalescer) term(o *ownership, svc *coalesce.Service, asked bool) error {
	long := c.s.m.cfg.idleLimit
	limit, clients := min(idleHeir, long), 1
	if asked {
		limit = long
	}
	if c.s.m.cfg.rank == rankVolunteer {
		if err := svc.Heard(c.s.ctx); err != nil {
			return err
		}
		clients = volunteerFor
	}
	tick := time.NewTicker(limit / 10)
	defer tick.Stop()
	used, looked := time.Now(), time.Now()
	for {
		select {
		case <-c.s.ctx.Done():
			return c.s.endReason()
		case <-o.share.lease.Lost():
			return errOwnershipLost
		case <-o.gone:
			return errOwnershipLost
		case <-o.better:
			return errBetter
		case <-tick.C:
			if svc.Active(looked) >= clients {
				used, limit = time.Now(), long
			}
			looked = time.Now()
			if time.Since(used) >= limit {
				return errNobodyAsks
			}
		}
	}
}

// stamp identifies the bucket and the number of shards. Sessions on the same bucket have the same stamp.
func (sh *shard) stamp() coalesce.Stamp {
	return coalesce.NewStamp(sh.bucket.Incarnation(), 0, len(sh.s.buckets.Locks))
}

// leaseAlive reports whether a lease exists and has no tombstone.
func (s *session) leaseAlive(ctx context.Context, id string) (bool, error) {
	st, err := s.observer.Check(ctx, id, DefaultTTL)
	return err == nil && !st.Dead && st.Revision > 0, err
}

// version returns this library's version, or "" if the program does not know it.
func version() string {
	const path = "github.com/lockfabric/lockfabric"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, mod := range append(info.Deps, &info.Main) {
		if mod.Path == path {
			return strings.TrimPrefix(mod.Version, "v")
		}
	}
	return ""
}

// here notes the term in which this process owns the shard; 0 = none. An owner's operations take the direct road.
func (sh *shard) here(term uint64) {
	sh.serving.Store(term)
	if sh.router != nil {
		sh.router.SetHere(term > 0)
	}
}

// The process that serves a shard holds a lock on it: an exclusive one, on a key that no name encodes to, taken on the direct road under a
// lease of its own. Its token is the owner's term. Losing it in a failover is harmless, so its TTL is short.
const (
	ownerTTL = 4 * time.Second
	metaRank = "rank" // of an owner and of the candidates that wait
)

// Ranks of owners. An owner ends its term if a candidate with a higher rank waits.
const (
	rankVolunteer = 1 // a process whose locks are contended while no process serves
	rankProcess   = 2 // a process with WithCoalescer
	rankServer    = 3 // a server, which is next to the data
)

// ownership is the lock on the shard while this process holds it.
type ownership struct {
	*shard
	share *leaseShare
	id    string
	rev   uint64
	term  uint64

	gone   chan struct{} // holds an element once the lock was removed
	better chan struct{} // holds an element once a better candidate waits for it
	stop   []func()
}

// own waits until this process owns the shard.
func (sh *shard) own(ctx context.Context) (*ownership, error) {
	sl, err := sh.s.newLeaseShare(ctx, timing{ttl: ownerTTL, owner: true})
	if err != nil {
		return nil, err
	}
	op := record.Op{
		Kind: record.KindLock, Verb: record.OpAcquire, Mode: record.X, ID: sl.lease.NextOp(), Lease: sl.id,
		TTL: ownerTTL, Since: time.Now(), Meta: map[string]string{metaRank: strconv.Itoa(sh.s.m.cfg.rank)},
	}
	o := &ownership{shard: sh, share: sl, id: op.ID, gone: make(chan struct{}, 1), better: make(chan struct{}, 1)}
	sl.register(op.ID, nil)
	before := sh.seen()
	out, err := engine.Do(ctx, sh.engine, o.owner, op, engine.Options{Stop: sl.lease.Lost()})
	if err != nil {
		o.leave()
		return nil, err
	}
	o.term, o.rev = out.Entry.Token, out.Revision
	if err := sh.confirm(ctx, out, before); err != nil {
		sh.engine.ReleaseInBackground(o.owner, sl.id, o.id, o.rev)
		o.leave()
		return nil, err
	}
	o.stop = append(o.stop,
		sh.engine.WatchHold(o.owner, o.id, 0, o.rev, func(error) { pause.Wake(o.gone) }),
		sh.hub.Follow(o.owner, o.see))
	return o, nil
}

// see looks for a better candidate among the waiters.
func (o *ownership) see(e jskv.Entry) {
	rec, err := record.Decode(e.Value)
	if err != nil || rec == nil {
		return
	}
	for i := range rec.Waiters {
		if rankOf(&rec.Waiters[i]) > o.s.m.cfg.rank {
			pause.Wake(o.better)
		}
	}
}

func rankOf(e *record.Entry) int {
	n, _ := strconv.Atoi(e.Meta[metaRank])
	return n
}

func (o *ownership) release(ctx context.Context) {
	op := record.Op{Verb: record.OpRelease, ID: o.id, Lease: o.share.id}
	_, _ = engine.Do(ctx, o.engine, o.owner, op, engine.Options{FailFast: true, AtLeast: o.rev}) // after an error, the lock ends with its lease
	o.leave()
}

// leave ends the lease, which has no other user. The lock ends with it if it was not released.
func (o *ownership) leave() {
	for _, stop := range o.stop {
		stop()
	}
	o.share.unregister(o.id)
}

// Coalescer is Inspect for the lock of the fabric's coalescer (see docs/coalescing.md), which has no name: the holder is
// the process that serves, and the waiters are those that stand by. CoalescerOf is for any shard; this is shard 0's.
func (m *Manager) Coalescer(ctx context.Context) (Info, error) { return m.CoalescerOf(ctx, 0) }

// CoalescerOf is Coalescer for one of the fabric's shards.
func (m *Manager) CoalescerOf(ctx context.Context, shard int) (Info, error) {
	return m.readEncoded(ctx, "", kv.CoalescerOf(shard), true)
}

// Shards returns the number of the fabric's shards in the last session. It changes only if all buckets are made anew.
func (m *Manager) Shards() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		return len(m.current.shards)
	}
	return max(1, len(m.seen))
}
