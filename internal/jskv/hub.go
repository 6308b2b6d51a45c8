package jskv

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// DefaultPollInterval is how often a hub looks after a key that somebody waits for,
	// jittered by a quarter. The read rate may stretch it.
	DefaultPollInterval = 3 * time.Second

	// DefaultRestInterval is how often a hub looks whether it has missed something
	// about keys that are only followed, unless told otherwise.
	DefaultRestInterval = 15 * time.Second

	// DefaultReadRate is how many keys a hub reads per second at most. The one read that
	// confirms the absence of a new key is not counted.
	DefaultReadRate = 100

	leastPollInterval = 10 * time.Millisecond

	// dispatchers is how many goroutines at most call the functions given to Watch. A few, so that one slow function
	// does not hold up all keys. They live while there is something to deliver.
	dispatchers = 4
)

// Hub watches keys of one bucket for a whole process. Registrations share KV watchers, so that ten thousand
// goroutines that wait on thousands of keys take a handful of the 1,000 consumers that a stream allows by default.
//
// For every registered key the hub delivers the latest committed entry: first the state at registration, absence
// included, then the state after each change (states in between may be skipped). A watcher is not trusted to be
// complete. The stream's leader is asked too: for each of a few keys, and where there are more, for the state of the
// whole stream, by one request. While that stays as it was, nothing was written and nothing was removed, and no key
// is read. When it has changed, the keys somebody waits for are read within the poll interval, and those that are
// only followed by watchers opened anew, a few of them a minute. A watcher that missed what a read found is replaced.
// A watcher that ends is replaced too, and so are all of them when the connection comes back.
//
// What is delivered is a hint that was true once. Only a compare-and-set decides.
//
// Hub is safe for concurrent use. Close it before its connection.
type Hub struct {
	bucket   *Bucket
	interval time.Duration // of polling one key that somebody waits for
	rest     time.Duration // of looking after the others
	gap      time.Duration // between two polls of any keys
	doubt    func()
	// readTimeout is asked before each read how long to wait for its answer.
	readTimeout func() time.Duration

	cancel     context.CancelFunc
	done       sync.WaitGroup // every goroutine of the hub
	wakeOpener chan struct{}
	wakePoller chan struct{}

	// mu guards everything below, and the state of keys, groups and registrations. It is never held during a call to
	// the network or to a function given to Watch.
	mu      sync.Mutex
	closed  bool
	gone    bool // the bucket was not found, and no watcher has been opened since
	keys    map[string]*watchedKey
	hot     int             // keys that somebody waits for
	queue   []*registration // waiting for a dispatcher
	callers int             // dispatchers that run

	pending  []*watchedKey // keys that no group covers yet
	groups   []*group
	nextOpen time.Time // no watcher is opened before, because opening failed
	failures int       // of opening, in a row

	polls    pollHeap
	nextPoll time.Time     // no rate-limited read before
	urgent   []*watchedKey // to be read at once

	state    mark      // of the stream, as it was seen last
	nextLook time.Time // when it is looked at again
	looking  bool
	spent    time.Time // until when watchers were opened anew on credit, see afford

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
	Looks         uint64 // requests for the state of the stream
	Refreshed     uint64 // watchers opened anew to read the keys that they follow
	Missed        uint64 // entries that a read found and a watcher did not deliver in time
	LastError     error  // of the last failure to open, nil when one succeeded since
}

// HubOption changes how a hub works.
type HubOption func(*Hub)

// WithRestInterval sets how often the keys that are only followed are looked after,
// jittered by a quarter. Less than 10 ms counts as 10 ms.
func WithRestInterval(d time.Duration) HubOption {
	return func(h *Hub) { h.rest = max(d, leastPollInterval) }
}

// WithDoubt sets a function that is called when the bucket may not be the one that the hub was made for: whenever it
// is not found, when a read finds less than was seen, and some times after the server announced its deletion or
// change. See [Buckets.Verify] for what to ask then. The function is called on a goroutine of the hub: it must not
// block and must not call Close.
func WithDoubt(fn func()) HubOption { return func(h *Hub) { h.doubt = fn } }

// WithReadTimeout sets a function that says how long to wait for the answer to a read from the leader, 2 s by
// default. It is called before each read: on a link that gets slower the time has to grow with it, as reads are what
// a lost watcher is found by. It must be quick and safe for concurrent use.
func WithReadTimeout(fn func() time.Duration) HubOption { return func(h *Hub) { h.readTimeout = fn } }

// NewHub starts a hub on a bucket. It opens no watcher before the first Watch. Close stops it.
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
		rest:        DefaultRestInterval,
		gap:         time.Second / DefaultReadRate,
		doubt:       func() {},
		readTimeout: func() time.Duration { return readTimeout },
		wakeOpener:  make(chan struct{}, 1),
		wakePoller:  make(chan struct{}, 1),
		keys:        make(map[string]*watchedKey),
	}
	for _, opt := range opts {
		opt(h)
	}
	return h
}

// run starts the hub's goroutines; listen starts one more.
func (h *Hub) run(ctx context.Context) {
	h.done.Go(func() { h.runOpener(ctx) })
	h.done.Go(func() { h.runPoller(ctx) })
}

// registration is one call of Watch.
type registration struct {
	key     *watchedKey
	fn      func(Entry)
	waits   bool   // made by Watch and not by Follow
	seen    uint64 // key.version at the last call of fn
	busy    bool   // in the queue, or in fn
	stopped bool
}

// Watch registers fn for a key and returns at once. fn is called on goroutines of the hub, never twice at a time for
// one registration, with the key's newest known entry: soon after registration, at once if the key is registered
// already, and then whenever it has changed.
//
// An entry older than the newest one that this hub has seen for the key is never delivered, with one exception: a
// leader read that finds no entry is delivered as absence (revision 0), and what it means is fn's to judge, since a
// leader that was deposed and does not know it yet can be behind.
//
// fn must not block, must not change the entry's value and must not call Close. It may call stop and Watch, and take
// a lock that is held elsewhere around calls of Watch and stop.
//
// stop ends the registration and can be called more than once. It does not
// wait: a call of fn in progress may still finish, no further one starts.
//
// A key that is not a valid KV key, or has wildcards, never exists, and fn is not called. Nor is it on a closed hub.
func (h *Hub) Watch(key string, fn func(Entry)) (stop func()) { return h.register(key, fn, true) }

// Follow is Watch for who does not wait for a change but has to learn of one, as a
// holder of its lock does. What a watcher misses is found later, but following a
// key costs nothing while nothing changes, however many keys there are.
func (h *Hub) Follow(key string, fn func(Entry)) (stop func()) { return h.register(key, fn, false) }

func (h *Hub) register(key string, fn func(Entry), waits bool) (stop func()) {
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
	r := &registration{key: k, fn: fn, waits: waits}
	k.regs = append(k.regs, r)
	if waits {
		h.heat(k)
	}
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
	r.key.regs = slices.DeleteFunc(r.key.regs, func(o *registration) bool { return o == r })
	if r.waits {
		h.cool(r.key)
	}
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
		s.Wide = s.Wide || g.wholeBucket()
	}
	return s
}

// Close ends all registrations, stops every goroutine of the hub and waits for them, and with them for calls of fn in
// progress. It deletes the consumers on the server, and waits up to a second for the answer. It can be called more
// than once.
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
		h.queue = nil
	}
	h.mu.Unlock()
	h.cancel()
	h.done.Wait()
}

// announce delivers the key's state to all its registrations. Lock held.
func (h *Hub) announce(k *watchedKey) {
	k.version++
	for _, r := range k.regs {
		h.enqueue(r)
	}
}

// enqueue hands a registration to a dispatcher. One that is busy looks at the key again by itself. Lock held.
func (h *Hub) enqueue(r *registration) {
	if r.busy || h.closed {
		return
	}
	r.busy = true
	h.queue = append(h.queue, r)
	if h.callers < dispatchers {
		h.callers++
		h.done.Go(h.dispatch)
	}
}

// dispatch calls the functions of the registrations in the queue until it is empty. It takes the entry from the key
// only at the call, so that what is delivered is the newest and two dispatchers can't deliver in the wrong order.
func (h *Hub) dispatch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.callers-- }()
	for len(h.queue) > 0 && !h.closed {
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
