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

// maxJudges bounds how many tombstones an observer writes at the same time.
const maxJudges = 16

// WatchFunc calls fn with the key's entry soon, also when the key is absent, and again when it changes, until stop is
// called; (*jskv.Hub).Watch is one. fn does not block.
type WatchFunc func(key string, fn func(jskv.Entry)) (stop func())

// State is what one read tells of a lease.
type State struct {
	// Dead is true when its tombstone is committed.
	Dead bool
	// Stale is true when the lease looks abandoned: its entry is missing, or by the server's time stamp was not
	// written for twice its limit, or this observer has seen it unchanged for its limit. It is a reason to start
	// observing, and never one to decide.
	Stale bool
	// Revision is the revision of its entry, 0 when it is missing.
	Revision uint64
}

// Observer finds out which leases are dead, and declares them so. It is safe for concurrent use.
type Observer struct {
	b     Bucket
	watch WatchFunc
	clk   clock.Clock
	by    string
	rtt   *rtt.Estimator
	log   *slog.Logger

	wg     sync.WaitGroup
	cancel context.CancelFunc // ends the goroutines
	done   <-chan struct{}    // closed by Close
	wake   chan struct{}      // has the loop look again

	mu           sync.Mutex
	closed       bool
	onTombstone  func(id string)           // see OnTombstone; may be nil
	observations map[string]*observation   // all that is remembered
	active       map[*observation]struct{} // those that somebody asks about
	schedule     schedule                  // those of them that will be due
	queue        []*observation            // those that are due
	dead         []*observation            // those whose subscribers are to be told
	judges       int                       // goroutines that work on queue
	memory       int                       // most observations remembered, those asked about apart
	pruneAt      int                       // number of observations at which to forget old ones
	reading      map[string]*reading       // under way for Check, by lease
	begun        int                       // how many of these have begun
}

// reading is a read of a lease that several may share.
type reading struct {
	n    int // how many had begun with it
	done chan struct{}
	e    jskv.Entry
	err  error
	left bool // err is because its caller gave up
}

// NewObserver returns an observer and starts its goroutine. clk is clock.Observer() but in tests; by, "host:pid", is
// who stands in its tombstones, this process if empty; log may be nil.
// link, which says how long answers take, may be nil.
func NewObserver(b Bucket, watch WatchFunc, clk clock.Clock, by string, link *rtt.Estimator, log *slog.Logger) *Observer {
	link = cmp.Or(link, new(rtt.Estimator))
	log = cmp.Or(log, slog.New(slog.DiscardHandler))
	clk = cmp.Or(clk, clock.Observer())
	by = cmp.Or(by, Self()) // a tombstone without it is none
	ctx, cancel := context.WithCancel(context.Background())
	o := &Observer{
		b: b, watch: watch, clk: clk, by: cut(by), rtt: link, log: log,
		cancel: cancel, done: ctx.Done(), wake: make(chan struct{}, 1),
		observations: make(map[string]*observation), active: make(map[*observation]struct{}), reading: make(map[string]*reading),
		memory: maxSights, pruneAt: maxSights / 100,
	}
	o.wg.Go(func() { o.run(ctx) })
	return o
}

// OnTombstone has fn called whenever this observer has committed a tombstone, before anybody who asked is told that
// the lease is dead; if the acknowledgement got lost, once a read has shown the tombstone. fn runs in a goroutine of
// the observer with no lock held, and must be quick. Call it before the first question.
func (o *Observer) OnTombstone(fn func(id string)) {
	o.mu.Lock()
	o.onTombstone = fn
	o.mu.Unlock()
}

// Observe watches the lease and calls dead once, from a goroutine of the observer, when its tombstone is known to be
// committed; the observer writes it when the lease is due. ttl is what the subscriber knows of the lease's TTL, in case
// its entry cannot tell. An urgent subscriber is the one whose turn it is next; without one the tombstone is delayed a
// little at random.
//
// stop ends it. It may be called at any time, also from dead, with any lock held, and again. A call of dead that is
// under way is not waited for, so dead can still arrive while, or shortly after, stop is called. dead must be quick
// and must not call Close.
func (o *Observer) Observe(id string, ttl time.Duration, urgent bool, dead func(id string)) (stop func()) {
	return o.subscribe(id, &subscriber{ttl: ttl, urgent: urgent, dead: dead})
}

// Check reads the lease once, for two seconds at most unless answers take longer
// on this link, and remembers what it saw for later observations. Those who ask at the same time
// share a read that begins after they have asked. An error means that nothing was learned.
func (o *Observer) Check(ctx context.Context, id string, ttl time.Duration) (State, error) {
	e, err := o.read(ctx, id, ttl)
	if err != nil {
		return State{}, fmt.Errorf("lease: check: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.observationLocked(id, ttl)
	now := o.clk.Now()
	o.seeLocked(s, e)
	st := State{Dead: s.dead, Revision: e.Revision}
	if !st.Dead {
		st.Stale = e.Deleted || now >= s.first+s.limit() || time.Since(e.Created) > 2*s.limit()
	}
	return st, nil
}

// read is the read of Check.
func (o *Observer) read(ctx context.Context, id string, ttl time.Duration) (jskv.Entry, error) {
	o.mu.Lock()
	asked := o.begun
	for r := o.reading[id]; r != nil; r = o.reading[id] {
		o.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return jskv.Entry{}, ctx.Err()
		}
		if r.n > asked && !r.left {
			return r.e, r.err
		}
		o.mu.Lock()
	}
	o.begun++
	r := &reading{n: o.begun, done: make(chan struct{})}
	o.reading[id] = r
	o.mu.Unlock()
	r.e, r.err = get(ctx, o.b, o.patience(ttl), id) // an answer can get lost
	r.left = ctx.Err() != nil
	o.mu.Lock()
	delete(o.reading, id)
	o.mu.Unlock()
	close(r.done)
	return r.e, r.err
}

// WaitDead observes the lease until it is known to be dead (true) or alive, which is when it was renewed under
// observation (false). That takes no longer than its TTL + margin and what the server needs to answer. The error
// wraps the context's, or is ErrClosed.
func (o *Observer) WaitDead(ctx context.Context, id string, ttl time.Duration) (bool, error) {
	verdict := make(chan bool, 2) // each is called once at most
	stop := o.subscribe(id, &subscriber{
		ttl: ttl, urgent: true,
		dead:    func(string) { verdict <- true },
		renewed: func() { verdict <- false },
	})
	defer stop()
	select {
	case dead := <-verdict:
		return dead, nil
	case <-o.done:
		return false, fmt.Errorf("lease: observe: %w", ErrClosed)
	case <-ctx.Done():
		return false, fmt.Errorf("lease: observe: %w", context.Cause(ctx))
	}
}

// Close ends all observations, without a call of dead, and waits for the observer's goroutines.
func (o *Observer) Close() {
	o.mu.Lock()
	o.closed = true
	var stops []func()
	for s := range o.active {
		if s.stop != nil {
			stops = append(stops, s.stop)
		}
		s.stop, s.subscribers, s.urgent = nil, nil, 0
	}
	clear(o.active)
	o.schedule, o.queue, o.dead = nil, nil, nil
	o.mu.Unlock()
	o.cancel()
	for _, stop := range stops {
		stop()
	}
	o.wg.Wait()
}

// subscribe adds a subscriber and sees to it that the lease is watched.
func (o *Observer) subscribe(id string, a *subscriber) (stop func()) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return func() {}
	}
	s := o.observationLocked(id, a.ttl)
	s.addLocked(a)
	o.active[s] = struct{}{}
	open := !s.dead && s.stop == nil && !s.opening
	s.opening = s.opening || open
	o.scheduleLocked(s)
	o.mu.Unlock()
	if open {
		// Without the lock: the watch may deliver at once.
		unwatch := o.watch(id, func(e jskv.Entry) { o.received(s, e) })
		o.mu.Lock()
		s.opening = false
		if len(s.subscribers) > 0 {
			s.stop, unwatch = unwatch, nil
		}
		o.mu.Unlock()
		if unwatch != nil { // nobody asks any more
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

// removeLocked returns what ends the watch, if a was the last subscriber.
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
	delete(o.active, s)
	o.schedule.remove(s)
	s.used = o.clk.Now()
	// What is remembered counts again once a read has confirmed it.
	s.fresh = false
	unwatch, s.stop = s.stop, nil
	return unwatch
}

// received takes an entry from the watch.
func (o *Observer) received(s *observation, e jskv.Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.tombstoneValue != nil && bytes.Equal(e.Value, s.tombstoneValue) {
		return // our own: whoever wrote it tells of it first, as soon as it is answered
	}
	o.seeLocked(s, e)
	o.scheduleLocked(s)
}
