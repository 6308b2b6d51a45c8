package lease

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// maxWriters bounds how many tombstones an observer writes at the same time.
const maxWriters = 16

// WatchFunc calls fn with the key's entry soon, even if the key is absent, and again after every change, until stop is
// called; (*jskv.Hub).Watch is one. fn does not block.
type WatchFunc func(key string, fn func(jskv.Entry)) (stop func())

// State is the result of one read of a lease.
type State struct {
	// Dead is true if its tombstone is committed.
	Dead bool
	// Stale is true if the lease looks abandoned: its entry is missing, or the server's time stamp says that it was not
	// written for twice its limit, or this observer has seen it unchanged for its limit. It is a reason to start
	// an observation, and proves nothing.
	Stale bool
	// Revision is the revision of its entry, 0 if it is missing.
	Revision uint64
}

// Observer finds out which leases are dead, and writes their tombstones. It is safe for concurrent use.
type Observer struct {
	b     Bucket
	watch WatchFunc
	clk   clock.Clock
	by    string
	rtt   *rtt.Estimator
	log   *slog.Logger

	wg      sync.WaitGroup
	ctx     context.Context // ends at Close
	cancel  context.CancelFunc
	writers chan struct{} // full while maxWriters tombstones are being written

	mu            sync.Mutex
	onTombstone   func(id string)         // see OnTombstone; may be nil
	observations  map[string]*observation // all that are remembered, those with subscribers among them
	maxRemembered int                     // most observations remembered, besides those with subscribers
	pruneAt       int                     // number of observations at which to forget old ones
	reading       map[string]*reading     // reads of Check under way, by lease
	readsBegun    int                     // number of reads of Check that have begun
}

// reading is a read of a lease that several callers may share.
type reading struct {
	seq        int // its number among all reads
	done       chan struct{}
	e          jskv.Entry
	err        error
	callerLeft bool // err is because the caller that reads gave up
}

// NewObserver returns an observer. Close stops it. clk is clock.Observer() except in tests. by, "host:pid", is
// the writer named in its tombstones; empty means this process. log may be nil. link, which estimates how long
// answers take, may be nil.
func NewObserver(b Bucket, watch WatchFunc, clk clock.Clock, by string, link *rtt.Estimator, log *slog.Logger) *Observer {
	link = cmp.Or(link, new(rtt.Estimator))
	log = cmp.Or(log, slog.New(slog.DiscardHandler))
	clk = cmp.Or(clk, clock.Observer())
	by = cmp.Or(by, Self()) // a tombstone needs a writer
	ctx, cancel := context.WithCancel(context.Background())
	return &Observer{
		b: b, watch: watch, clk: clk, by: truncate(by), rtt: link, log: log,
		ctx: ctx, cancel: cancel, writers: make(chan struct{}, maxWriters),
		observations: make(map[string]*observation), reading: make(map[string]*reading),
		maxRemembered: maxObservations, pruneAt: maxObservations / 100,
	}
}

// OnTombstone calls fn whenever this observer has committed a tombstone, before it tells any subscriber that
// the lease is dead. If the acknowledgement got lost, it calls fn once a read has shown the tombstone. fn runs in a goroutine
// of the observer with no lock held, and must be quick. Call OnTombstone before the first observation.
func (o *Observer) OnTombstone(fn func(id string)) {
	o.mu.Lock()
	o.onTombstone = fn
	o.mu.Unlock()
}

// Observe watches the lease and calls dead once, from a goroutine of the observer, when its tombstone is known to be
// committed; the observer writes it when the lease is due. ttl is what the subscriber knows of the lease's TTL, in case
// its entry can't be read. urgent means that the subscriber is granted next. Without an urgent subscriber the tombstone is
// delayed a little at random.
//
// stop ends the observation. It may be called at any time, also from dead, with any lock held, and repeatedly. It does not
// wait for a call of dead that is under way, so dead can still be called during stop or shortly after. dead must be quick
// and must not call Close.
func (o *Observer) Observe(id string, ttl time.Duration, urgent bool, dead func(id string)) (stop func()) {
	return o.subscribe(id, &subscriber{ttl: ttl, urgent: urgent, dead: dead})
}

// Check reads the lease once, for at most two seconds unless answers take longer
// on this link, and remembers the result for later observations. Calls of the same time
// share a read that begins after they came. An error means that nothing was learned.
func (o *Observer) Check(ctx context.Context, id string, ttl time.Duration) (State, error) {
	e, err := o.read(ctx, id, ttl)
	if err != nil {
		return State{}, fmt.Errorf("lease: check: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.observationLocked(id, ttl)
	now := o.clk.Now()
	o.noteEntryLocked(s, e)
	st := State{Dead: s.dead, Revision: e.Revision}
	if !st.Dead {
		st.Stale = e.Deleted || now >= s.since+s.limit() || time.Since(e.Created) > 2*s.limit()
	}
	return st, nil
}

// read reads for Check, or shares a read that begins after this call.
func (o *Observer) read(ctx context.Context, id string, ttl time.Duration) (jskv.Entry, error) {
	o.mu.Lock()
	asked := o.readsBegun
	for r := o.reading[id]; r != nil; r = o.reading[id] {
		o.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return jskv.Entry{}, ctx.Err()
		}
		if r.seq > asked && !r.callerLeft {
			return r.e, r.err
		}
		o.mu.Lock()
	}
	o.readsBegun++
	r := &reading{seq: o.readsBegun, done: make(chan struct{})}
	o.reading[id] = r
	o.mu.Unlock()
	r.e, r.err = get(ctx, o.b, o.patience(ttl), id) // an answer can get lost
	r.callerLeft = ctx.Err() != nil
	o.mu.Lock()
	delete(o.reading, id)
	o.mu.Unlock()
	close(r.done)
	return r.e, r.err
}

// WaitDead observes the lease until it is known to be dead (true) or alive (false), which means that it was renewed
// during the observation. That takes at most its TTL + margin and the time for the server's answers. The error
// wraps the context's, or is ErrClosed.
func (o *Observer) WaitDead(ctx context.Context, id string, ttl time.Duration) (bool, error) {
	verdict := make(chan bool, 2) // each callback is called once at most
	stop := o.subscribe(id, &subscriber{
		ttl: ttl, urgent: true,
		dead:    func(string) { verdict <- true },
		renewed: func() { verdict <- false },
	})
	defer stop()
	select {
	case dead := <-verdict:
		return dead, nil
	case <-o.ctx.Done():
		return false, fmt.Errorf("lease: observe: %w", ErrClosed)
	case <-ctx.Done():
		return false, fmt.Errorf("lease: observe: %w", context.Cause(ctx))
	}
}

// Close ends all observations without calling dead, and waits for the observer's goroutines.
func (o *Observer) Close() {
	o.mu.Lock()
	o.cancel()
	var stops []func()
	for _, s := range o.observations {
		if s.stop != nil {
			stops = append(stops, s.stop)
		}
		if s.timer != nil {
			s.timer.Stop()
		}
		s.stop, s.subscribers, s.urgent = nil, nil, 0
	}
	o.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
	o.wg.Wait()
}

// subscribe adds a subscriber and opens a watch of the lease if there is none.
func (o *Observer) subscribe(id string, a *subscriber) (stop func()) {
	o.mu.Lock()
	if o.ctx.Err() != nil {
		o.mu.Unlock()
		return func() {}
	}
	s := o.observationLocked(id, a.ttl)
	s.addLocked(a)
	open := !s.dead && s.stop == nil && !s.opening
	s.opening = s.opening || open
	o.armLocked(s)
	o.mu.Unlock()
	if open {
		// Without the lock, since the watch may call at once.
		unwatch := o.watch(id, func(e jskv.Entry) { o.received(s, e) })
		o.mu.Lock()
		s.opening = false
		if len(s.subscribers) > 0 {
			s.stop, unwatch = unwatch, nil
		}
		o.mu.Unlock()
		if unwatch != nil { // the last subscriber has left meanwhile
			unwatch()
		}
	}
	return func() {
		o.mu.Lock()
		unwatch := o.removeLocked(s, a)
		o.mu.Unlock()
		if unwatch != nil {
			unwatch()
		}
	}
}

// removeLocked removes a subscriber. If a was the last one, it returns the function that ends the watch.
func (o *Observer) removeLocked(s *observation, a *subscriber) (unwatch func()) {
	if _, ok := s.subscribers[a]; !ok {
		return nil
	}
	delete(s.subscribers, a)
	if a.urgent {
		s.urgent--
	}
	if len(s.subscribers) > 0 {
		return nil
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.armed = false
	s.lastUsed = o.clk.Now()
	// What is remembered counts again only after an entry was received.
	s.confirmed = false
	unwatch, s.stop = s.stop, nil
	return unwatch
}

// received handles an entry from the watch.
func (o *Observer) received(s *observation, e jskv.Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.tombstoneValue != nil && bytes.Equal(e.Value, s.tombstoneValue) {
		return // our own tombstone: its writer reports it, as soon as it is acknowledged
	}
	o.noteEntryLocked(s, e)
	o.armLocked(s)
}
