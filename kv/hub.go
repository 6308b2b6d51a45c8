package kv

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// DefaultPollInterval is how often a hub reads every key, unless told otherwise.
	DefaultPollInterval = 3 * time.Second

	// DefaultReadRate is how many such reads a hub does per second at most,
	// unless told otherwise.
	DefaultReadRate = 100

	leastPollInterval = 10 * time.Millisecond

	// dispatchers is how many goroutines call the functions given to Watch. A
	// few, so that one slow function does not hold up all keys.
	dispatchers = 4
)

// Hub watches keys of one bucket for a whole process. Registrations share KV
// watchers, so that ten thousand goroutines that wait on thousands of keys take
// a handful of the 1,000 consumers that a stream allows by default.
//
// For every registered key the hub delivers the latest committed entry: first
// the state at registration, absence included, then the state after each change
// (states in between may be skipped). A watcher is not trusted to be complete:
// every key is also read from the stream leader once per poll interval, and a
// watcher that missed what a read found is replaced. A watcher that ends is
// replaced too, and so are all of them when the connection comes back.
//
// What is delivered is a hint that was true once. Only a compare-and-set
// decides.
//
// Hub is safe for concurrent use. Close it before its connection.
type Hub struct {
	bucket   *Bucket
	interval time.Duration // of polling one key
	gap      time.Duration // between two polls of any keys
	doubt    func()
	// readTimeout is asked before each read how long to wait for its answer.
	readTimeout func() time.Duration

	cancel     context.CancelFunc
	done       sync.WaitGroup // every goroutine of the hub
	wakeOpener chan struct{}
	wakePoller chan struct{}

	// mu guards everything below, and the state of keys, groups and
	// registrations. It is never held during a call to the network or to a
	// function given to Watch.
	mu     sync.Mutex
	ready  *sync.Cond // the queue is not empty, or the hub is closed
	closed bool
	gone   bool // the bucket was not found, and no watcher has been opened since
	keys   map[string]*watchedKey
	queue  []*registration // waiting for a dispatcher

	pending  []*watchedKey // keys that no group covers yet
	groups   []*group
	nextOpen time.Time // no watcher is opened before, because opening failed
	failures int       // of opening, in a row

	polls    pollHeap
	nextPoll time.Time     // no rate-limited read before
	urgent   []*watchedKey // to be read at once

	stats HubStats
}

// HubStats describes a hub at one moment. The counters begin at NewHub.
type HubStats struct {
	Watchers      int    // KV watchers open, each one consumer of the stream
	Keys          int    // keys registered
	Registrations int    // calls of Watch not stopped yet
	Wide          bool   // one watcher follows the whole bucket, because the keys are too many
	Opened        uint64 // watchers opened
	Reopened      uint64 // of these, those that replace a watcher that ended, missed an entry or outlived its connection
	OpenFailures  uint64 // watchers that could not be opened
	Polls         uint64 // keys read from the leader
	Missed        uint64 // entries that a read found and a watcher did not deliver in time
	LastError     error  // of the last failure to open, nil when one succeeded since
}

// HubOption changes how a hub works.
type HubOption func(*Hub)

// WithPollInterval sets how often every key is read, jittered by a quarter.
// The read rate may stretch it. Less than 10 ms counts as 10 ms.
func WithPollInterval(d time.Duration) HubOption {
	return func(h *Hub) { h.interval = max(d, leastPollInterval) }
}

// WithReadRate sets how many polls a hub does per second at most, over all
// keys; the interval grows with the number of keys. Less than 1 counts as 1.
// The one read that confirms the absence of a new key is not counted.
func WithReadRate(perSecond int) HubOption {
	return func(h *Hub) { h.gap = time.Second / time.Duration(max(perSecond, 1)) }
}

// WithDoubt sets a function that is called when the bucket may not be the one that
// the hub was made for: whenever it is not found, when a read finds less than was
// seen, and some times after the server announced its deletion or change. See
// [Buckets.Verify] for what to ask then. The function is called on a goroutine of
// the hub: it must not block and must not call Close.
func WithDoubt(fn func()) HubOption {
	return func(h *Hub) { h.doubt = fn }
}

// WithReadTimeout sets a function that says how long to wait for the answer to a
// read from the leader, 2 s by default. It is called before each read: on a link
// that gets slower the time has to grow with it, as reads are what a lost watcher is
// found by. It must be quick and safe for concurrent use.
func WithReadTimeout(fn func() time.Duration) HubOption {
	return func(h *Hub) { h.readTimeout = fn }
}

// NewHub starts a hub on a bucket. It opens no watcher before the first Watch.
// Close stops it.
func NewHub(b *Bucket, opts ...HubOption) *Hub {
	h := newHub(b, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.run(ctx)
	h.listen(ctx)
	return h
}

func newHub(b *Bucket, opts ...HubOption) *Hub {
	h := &Hub{
		bucket:      b,
		interval:    DefaultPollInterval,
		gap:         time.Second / DefaultReadRate,
		doubt:       func() {},
		readTimeout: func() time.Duration { return readTimeout },
		wakeOpener:  make(chan struct{}, 1),
		wakePoller:  make(chan struct{}, 1),
		keys:        make(map[string]*watchedKey),
	}
	h.ready = sync.NewCond(&h.mu)
	for _, opt := range opts {
		opt(h)
	}
	return h
}

// run starts the hub's goroutines; listen starts one more.
func (h *Hub) run(ctx context.Context) {
	for range dispatchers {
		h.done.Go(h.dispatch)
	}
	h.done.Go(func() { h.runOpener(ctx) })
	h.done.Go(func() { h.runPoller(ctx) })
}

// registration is one call of Watch.
type registration struct {
	key     *watchedKey
	fn      func(Entry)
	seen    uint64 // key.version at the last call of fn
	busy    bool   // in the queue, or in fn
	stopped bool
}

// Watch registers fn for a key and returns at once. fn is called on goroutines
// of the hub, never twice at a time for one registration, with the key's newest
// known entry: soon after registration, at once if the key is registered
// already, and then whenever it has changed.
//
// An entry older than the newest one that this hub has seen for the key is
// never delivered, with one exception: a leader read that finds no entry is
// delivered as absence (revision 0), and what it means is fn's to judge, since
// a leader that was deposed and does not know it yet can be behind.
//
// fn must not block, must not change the entry's value and must not call Close.
// It may call stop and Watch, and take a lock that is held elsewhere around
// calls of Watch and stop.
//
// stop ends the registration and can be called more than once. It does not
// wait: a call of fn in progress may still finish, no further one starts.
//
// A key that is not a valid KV key, or has wildcards, never exists, and fn is
// not called. Nor is it on a closed hub.
func (h *Hub) Watch(key string, fn func(Entry)) (stop func()) {
	if !validKey(key) {
		return func() {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return func() {}
	}
	k := h.keys[key]
	if k == nil {
		k = h.addKey(key)
	}
	r := &registration{key: k, fn: fn}
	k.regs[r] = struct{}{}
	h.stats.Registrations++
	if k.version > 0 {
		h.enqueue(r)
	}
	return func() { h.stop(r) }
}

func (h *Hub) stop(r *registration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.stopped || h.closed {
		return
	}
	r.stopped = true
	h.stats.Registrations--
	delete(r.key.regs, r)
	if len(r.key.regs) == 0 {
		h.removeKey(r.key)
	}
}

// Stats returns the hub's counters.
func (h *Hub) Stats() HubStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Watchers, s.Keys = len(h.groups), len(h.keys)
	for _, g := range h.groups {
		s.Wide = s.Wide || g.wide()
	}
	return s
}

// Close ends all registrations, stops every goroutine of the hub and waits for
// them, and with them for calls of fn in progress. It deletes the consumers on
// the server, and waits up to a second for the answer. It can be called more than
// once.
func (h *Hub) Close() {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		for _, g := range h.groups {
			h.retire(g)
		}
		h.groups = nil
		h.stats.Registrations = 0
		clear(h.keys)
		h.ready.Broadcast()
	}
	h.mu.Unlock()
	h.cancel()
	h.done.Wait()
}

// announce delivers the key's state to all its registrations. Lock held.
func (h *Hub) announce(k *watchedKey) {
	k.version++
	for r := range k.regs {
		h.enqueue(r)
	}
}

// enqueue hands a registration to a dispatcher. One that is busy looks at the
// key again by itself. Lock held.
func (h *Hub) enqueue(r *registration) {
	if r.busy || h.closed {
		return
	}
	r.busy = true
	h.queue = append(h.queue, r)
	h.ready.Signal()
}

// dispatch calls the functions of the registrations in the queue. It takes the
// entry from the key only at the call, so that what is delivered is the newest
// and two dispatchers can't deliver in the wrong order.
func (h *Hub) dispatch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		for len(h.queue) == 0 && !h.closed {
			h.ready.Wait()
		}
		if h.closed {
			return
		}
		r := h.queue[0]
		h.queue[0] = nil
		h.queue = h.queue[1:]
		if !r.stopped && r.seen != r.key.version {
			r.seen = r.key.version
			e := r.key.entry
			h.mu.Unlock()
			r.fn(e)
			h.mu.Lock()
		}
		r.busy = false
		if !r.stopped && r.seen != r.key.version {
			h.enqueue(r)
		}
	}
}

// wake makes a loop look at its work again. A wake that is already waiting to
// be received is enough.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits for d, a wake or the end of ctx, and reports whether to go on.
func sleep(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-woken:
	case <-t.C:
	}
	return true
}

// jitter returns d changed by up to a quarter either way, so that many
// processes that began together do not stay together.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}
