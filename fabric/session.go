package fabric

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
)

const closeAtOnce = 256

// Holds that last longer than watchAfter are watched, for an operator's interference.
const (
	watchAfter  = 250 * time.Millisecond
	retireEvery = 4 // times watchAfter
)

// seenEvery is the number of lock writes after which a session notes their revision.
const seenEvery = 1 << 17

// leaseRest is the interval at which the hub reads the process's own leases. Each renewal detects the same problems.
const leaseRest = 5 * time.Minute

// session is all that belongs to one incarnation of the fabric's buckets.
type session struct {
	m          *Manager
	buckets    *jskv.Buckets
	shards     []*shard
	leaseHub   *jskv.Hub
	observer   *lease.Observer
	detection  *detection    // of deadlocks; nil = off
	ready      chan struct{} // closed when grants are allowed
	stop       context.CancelFunc
	ctx        context.Context // ends when the session or the manager begins to end
	finished   chan struct{}   // closed when end has finished
	coalesced  chan struct{}   // closed when this process no longer serves as a coalescer
	wg         sync.WaitGroup  // added to under mu while ended is nil
	liveLeases sync.Map        // lease id -> *leaseShare: leases of this process that are not disposed of
	lostLeases sync.Map        // lease id -> struct{}: lost leases of this process, whose tombstone is not known to be written
	longest    atomic.Int64    // longest TTL that was noted
	doubts     *doubts         // doubts about the buckets
	resting    atomic.Int32    // number of shards for which nobody asks for a coalescer

	mu          sync.Mutex
	ended       error
	shares      map[timing]*leaseShare // shared leases
	making      ctxMutex               // locked while a shared lease is created
	unwatched   []*Hold                // holds since the last call of watchLongHolds
	old         []*Hold                // holds from before that, which are not watched yet
	orphanLocks sync.Map               // encoded names of locks with orphans that will be checked soon
}

func openSession(ctx context.Context, m *Manager) (*session, error) {
	cfg := m.cfg.buckets
	m.mu.Lock()
	cfg.Seen, cfg.Again = slices.Clone(m.seen), len(m.seen)
	m.mu.Unlock()
	buckets, err := jskv.Open(ctx, m.nc, cfg)
	if err != nil {
		return nil, err
	}
	s := &session{
		m: m, buckets: buckets, ready: make(chan struct{}), finished: make(chan struct{}), coalesced: make(chan struct{}), doubts: newDoubts(),
		shares: map[timing]*leaseShare{}, making: newCtxMutex(),
	}
	s.ctx, s.stop = context.WithCancel(m.life)
	hub := []jskv.HubOption{jskv.WithDoubt(s.suspect), jskv.WithReadTimeout(m.rtt.Patience)}
	s.leaseHub = jskv.NewHub(buckets.Leases, append(hub, jskv.WithRestInterval(leaseRest))...)
	s.observer = lease.NewObserver(buckets.Leases, s.leaseHub.Watch, clock.Observer(), "", &m.rtt, m.cfg.logger)
	s.observer.OnTombstone(func(id string) { m.report(Event{Type: EventTakeover, Time: time.Now(), Lease: id}) })
	for _, b := range buckets.Locks {
		if err := s.addShard(b, hub); err != nil {
			for _, sh := range s.shards {
				sh.close()
				sh.hub.Close()
			}
			s.observer.Close()
			s.leaseHub.Close()
			return nil, err
		}
	}
	s.detect()
	s.goUnlessEnded(s.housekeep)
	s.goUnlessEnded(s.checkBuckets)
	if m.cfg.sweep > 0 {
		s.goUnlessEnded(s.sweep)
	}
	if m.cfg.rank > 0 {
		s.goUnlessEnded(s.coalesce)
	} else {
		close(s.coalesced)
	}
	if buckets.Quarantine == 0 {
		close(s.ready)
	} else {
		m.cfg.logger.Warn("a locks bucket was replaced or set back; nothing is granted until every lease of before has ended",
			"fabric", cfg.Fabric, "wait", buckets.Quarantine)
		s.goUnlessEnded(func() { s.quarantine(buckets.Quarantine) })
	}
	return s, nil
}

// quarantine waits until no lease from before the replacement of the bucket can be alive, and then allows grants.
func (s *session) quarantine(d time.Duration) {
	if !pause.For(s.ctx, d) {
		return
	}
	for {
		ctx, cancel := context.WithTimeout(s.ctx, closeTimeout)
		err := s.buckets.ConfirmIncarnation(ctx)
		cancel()
		if err == nil {
			close(s.ready)
			return
		}
		if !pause.For(s.ctx, time.Second) {
			return
		}
	}
}

// awaitReady waits until grants are allowed.
func (s *session) awaitReady(ctx context.Context, failFast bool) error {
	select {
	case <-s.ready:
		return nil
	default:
	}
	if failFast {
		return fmt.Errorf("%w: the locks bucket was replaced; waiting for the leases of before to end", ErrUnavailable)
	}
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return s.endReason()
	}
}

// leaseState reports whether this process has the lease, or has lost it and may not have written the tombstone.
func (s *session) leaseState(id string) (live, over bool) {
	if sl := s.leaseShareOf(id); sl != nil {
		live = sl.lease.Valid() // the clock decides, even before the loss is reported
		return live, !live
	}
	_, over = s.lostLeases.Load(id)
	return false, over
}

// leaseShareOf returns a lease of this process, or nil.
func (s *session) leaseShareOf(id string) *leaseShare {
	sl, _ := s.liveLeases.Load(id)
	share, _ := sl.(*leaseShare)
	return share
}

func (s *session) leaseShares() (all []*leaseShare) {
	s.liveLeases.Range(func(_, sl any) bool {
		all = append(all, sl.(*leaseShare))
		return true
	})
	return all
}

// endReason returns nil while the session works, and then the reason why it does not.
func (s *session) endReason() error {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	if ended != nil {
		return ended
	}
	return s.m.endReason()
}

// goUnlessEnded runs fn in a goroutine for which the session's end waits. If the session has ended, it does nothing.
func (s *session) goUnlessEnded(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.wg.Go(fn)
	}
}

// noteTTL notes, for the quarantine, that a TTL is in use. It writes only if the TTL is longer than all before.
func (s *session) noteTTL(ctx context.Context, ttl time.Duration) error {
	if int64(ttl) <= s.longest.Load() {
		return nil
	}
	if err := s.buckets.NoteTTL(ctx, ttl, s.seen()); err != nil {
		return err
	}
	s.longest.Store(max(s.longest.Load(), int64(ttl)))
	return nil
}

func (s *session) housekeep() {
	for n := 1; pause.For(s.ctx, watchAfter); n++ {
		s.watchLongHolds()
		if n%retireEvery == 0 {
			s.retireLeases()
			for _, sh := range s.shards {
				sh.noteSeen()
			}
		}
	}
}

func (s *session) watchLongHolds() {
	s.mu.Lock()
	due := s.old
	s.old, s.unwatched = s.unwatched, nil
	s.mu.Unlock()
	for _, h := range due {
		h.watch()
	}
}

// suspect reports that the buckets may not be those that were opened. It never blocks.
func (s *session) suspect() { s.doubts.raise() }

// checkBuckets checks, for each doubt, that the buckets are still those that were opened. If not, it ends the session.
func (s *session) checkBuckets() {
	err := s.doubts.run(s.ctx, func(ctx context.Context) error {
		last, err := s.buckets.Verify(ctx, s.seen())
		if err == nil {
			for n, sh := range s.shards {
				raiseTo(&sh.confirmed, last[n])
			}
		}
		return err
	})
	if err != nil {
		s.m.cfg.logger.Error("a bucket was deleted, created again or set back; every hold is lost", "error", err)
		// end waits for the present goroutine, so it must run in another one. Manager.Close waits for that one.
		s.m.ending.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			defer cancel()
			s.end(ctx, ErrBucketGone, false)
		})
	}
}

// end ends every hold and lease, and stops the session. With sweep, it also removes the holds from their records.
func (s *session) end(ctx context.Context, reason error, sweep bool) {
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		<-s.finished
		return
	}
	defer close(s.finished)
	s.ended = reason
	all := s.leaseShares()
	s.mu.Unlock()
	s.m.forget(s)
	s.stop()
	defer s.m.ended(s)

	var hubs sync.WaitGroup
	hubs.Go(s.leaseHub.Close)
	for _, sh := range s.shards {
		hubs.Go(sh.hub.Close)
	}
	var left []engine.Request
	for _, sl := range all {
		for _, l := range sl.all() {
			left = append(left, engine.Request{Key: l.enc, Op: releaseOp(l), AtLeast: l.revision()})
		}
		// In the engine, the tombstone ends these.
		for _, sh := range s.shards {
			for _, r := range sh.engine.Owed(sl.id) {
				left = append(left, engine.Request{Key: r.Key, Op: r.Op})
			}
		}
		sl.endHolds(reason)
	}
	// The tombstones come first, because they free everything at once, even if the sweep fails.
	forEach(ctx, closeAtOnce, all, func(sl *leaseShare) {
		if sl.timing.owner {
			// A coalescer first answers the operations that it has, and releases the shard's lock.
			select {
			case <-s.coalesced:
			case <-ctx.Done():
			}
		}
		s.closeLease(ctx, sl.lease)
	})
	if sweep && s.m.nc.IsConnected() {
		// This spares others from evicting them.
		forEach(ctx, closeAtOnce, left, func(r engine.Request) {
			_, _ = engine.Do(ctx, s.shard(r.Key).doer, r.Key, r.Op, engine.Options{FailFast: true, AtLeast: r.AtLeast})
		})
	}
	for _, sh := range s.shards {
		sh.close()
	}
	s.observer.Close()
	hubs.Wait()
	s.wg.Wait()
}

func together[T any](items []T, fn func(T)) { forEach(context.Background(), len(items), items, fn) }

// forEach calls fn for every item until ctx ends, for at most the given number of items at the same time.
func forEach[T any](ctx context.Context, most int, items []T, fn func(T)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(most, len(items)) {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(len(items)) && ctx.Err() == nil; i = next.Add(1) {
				fn(items[i-1])
			}
		})
	}
	wg.Wait()
}
