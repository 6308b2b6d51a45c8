package fabric

import (
	"context"
	"fmt"
	"maps"
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

// Holds that last are watched for an operator's interference; short ones are not worth a watcher.
const (
	watchAfter  = 250 * time.Millisecond
	retireEvery = time.Second
)

// seenEvery is how many writes of locks pass until a session notes their revision.
const seenEvery = 1 << 17

// leaseRest is how often the process's own leases are looked after in their bucket
// beside their renewals, each of which is a compare-and-set that finds out the same.
const leaseRest = 5 * time.Minute

// session is everything that hangs on one incarnation of the fabric's buckets.
// When they are deleted or created again the manager makes a new one.
type session struct {
	m          *Manager
	buckets    *jskv.Buckets
	shards     []*shard
	leaseHub   *jskv.Hub
	observer   *lease.Observer
	detection  *detection    // of deadlocks; nil = off
	ready      chan struct{} // closed when grants are allowed
	stop       context.CancelFunc
	ctx        context.Context // ends when the session, or the manager, begins to end
	finished   chan struct{}   // closed when end has done all
	coalesced  chan struct{}   // closed when this process serves no more
	wg         sync.WaitGroup  // added to under mu while ended is nil
	liveLeases sync.Map        // lease id -> *slot: live leases of this process
	lostLeases sync.Map        // lease id -> struct{}: its lost ones, without a tombstone yet
	longest    atomic.Int64    // longest TTL noted
	doubts     *doubts         // about the buckets
	resting    atomic.Int32    // shards for which nobody asks for a coalescer

	mu          sync.Mutex
	ended       error
	slots       map[timing]*slot // shared leases
	making      ctxMutex         // of making a shared lease
	all         map[*slot]struct{}
	unwatched   []unwatchedHold // not watched yet, oldest first
	orphanLocks sync.Map        // locks that are looked at soon, by their encoded names
}

type unwatchedHold struct {
	hold  *Hold
	since time.Time
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
		slots: map[timing]*slot{}, making: newCtxMutex(), all: map[*slot]struct{}{},
	}
	s.ctx, s.stop = context.WithCancel(m.life)
	hub := []jskv.HubOption{jskv.WithDoubt(s.suspect), jskv.WithReadTimeout(m.rtt.Patience)}
	s.leaseHub = jskv.NewHub(buckets.Leases, append(hub, jskv.WithRestInterval(leaseRest))...)
	s.observer = lease.NewObserver(buckets.Leases, s.leaseHub.Watch, clock.Observer(), "", &m.rtt, m.cfg.logger)
	s.observer.OnTombstone(s.tookOver)
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

// quarantine waits until no lease from before the bucket was replaced can be alive, and then allows grants.
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

// leaseState tells of a lease whether it is one of this process that lives, or one that it
// has lost and whose tombstone is not known to be written yet.
func (s *session) leaseState(id string) (live, over bool) {
	if sl, ok := s.liveLeases.Load(id); ok {
		live = sl.(*slot).lease.Valid() // the clock comes before the news of it
		return live, !live
	}
	_, over = s.lostLeases.Load(id)
	return false, over
}

// endReason returns nil while the session works, and then endReason it does not any more.
func (s *session) endReason() error {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	if ended != nil {
		return ended
	}
	return s.m.endReason()
}

// goUnlessEnded runs fn in a goroutine that the session's end waits for.
func (s *session) goUnlessEnded(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.wg.Go(fn)
	}
}

// noteTTL notes that a TTL is in use, for the quarantine. It writes only for a TTL longer than all before.
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

// housekeep watches holds that last and retires leases.
func (s *session) housekeep() {
	watch := time.NewTicker(watchAfter)
	defer watch.Stop()
	retire := time.NewTicker(retireEvery)
	defer retire.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-watch.C:
			s.watchLongHolds()
		case <-retire.C:
			s.retireLeases()
			for _, sh := range s.shards {
				sh.noteSeen()
			}
		}
	}
}

// watchLongHolds has those holds watched that last.
func (s *session) watchLongHolds() {
	s.mu.Lock()
	old := time.Now().Add(-watchAfter)
	n := 0
	for n < len(s.unwatched) && s.unwatched[n].since.Before(old) {
		n++
	}
	due := s.unwatched[:n:n]
	s.unwatched = s.unwatched[n:]
	s.mu.Unlock()
	for _, f := range due {
		f.hold.watch()
	}
}

// suspect reports that the buckets may not be those that were opened. It never blocks.
func (s *session) suspect() { s.doubts.raise() }

// checkBuckets looks, whenever there is a doubt, whether the buckets are still
// those that were opened, and ends the session if not.
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
		// Not in this goroutine, which end waits for; Manager.Close waits for that one.
		s.m.ending.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			defer cancel()
			s.end(ctx, ErrBucketGone, false)
		})
	}
}

// end ends every hold with reason, then the leases, and stops the session. With sweep it also removes the entries of
// the holds from their records. What it asks the servers for ends with ctx.
func (s *session) end(ctx context.Context, reason error, sweep bool) {
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		<-s.finished
		return
	}
	defer close(s.finished)
	s.ended = reason
	all := slices.Collect(maps.Keys(s.all))
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
		// The tombstone ends these in the engine.
		for _, sh := range s.shards {
			for _, r := range sh.engine.Owed(sl.id) {
				left = append(left, engine.Request{Key: r.Key, Op: r.Op})
			}
		}
		sl.endHolds(reason)
	}
	// The tombstones first: they free everything at once, whatever happens to the sweep.
	forEach(ctx, closeAtOnce, all, func(sl *slot) {
		if sl.timing.owner {
			// A coalescer answers what it was asked, and lets the shard go: nobody is to wait for its lease.
			select {
			case <-s.coalesced:
			case <-ctx.Done():
			}
		}
		s.closeLease(ctx, sl.lease)
	})
	if sweep && s.m.nc.IsConnected() {
		// So that nobody has to evict them.
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

// forEach calls fn for every item, at most so many at a time, until ctx ends.
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
