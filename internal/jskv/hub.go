package jskv

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// DefaultPollInterval is how often a hub polls a key that has waiters,
	// jittered by a quarter. The read rate may stretch it.
	DefaultPollInterval = 3 * time.Second

	// DefaultRestInterval is how often a hub checks keys that are only followed
	// for missed changes, unless WithRestInterval says otherwise.
	DefaultRestInterval = 15 * time.Second

	// quietFactor is how many times longer the hub waits after it found the state of the stream unchanged, as long as it gets
	// no new key and nobody asks to purge the stream.
	quietFactor = 3

	// DefaultReadRate bounds how many keys a hub reads per second. It does not count the one read that
	// confirms the absence of a new key.
	DefaultReadRate = 100

	leastPollInterval = 10 * time.Millisecond

	// dispatchers bounds the goroutines that call the functions given to Watch. There are several, so that one slow
	// function does not delay all keys. They live while there is something to deliver.
	dispatchers = 4
)

// Hub watches keys of one bucket for a whole process. Registrations share KV watchers: ten thousand
// goroutines that wait on thousands of keys need only a few of the 1,000 consumers that a stream allows by default.
//
// For every registered key the hub delivers the latest committed entry: first the state at registration, absence
// included, then the state after each change (it may skip states in between). It does not trust a watcher to be
// complete, and also asks the stream's leader: for each key if there are few, else for the state of the
// whole stream, by one request. While that state stays the same, nothing was written or removed, and the hub reads no
// key. After a change it reads the keys with waiters within the poll interval, and for keys that are
// only followed it opens watchers again, a few of them a minute. It replaces a watcher that missed what a read found,
// a watcher that ends, and all watchers when the connection comes back.
//
// A delivered entry is a hint that was true once. Only a compare-and-set decides.
//
// Hub is safe for concurrent use. Close it before its connection.
type Hub struct {
	bucket       *Bucket
	interval     time.Duration // for polling one key with waiters
	restInterval time.Duration // for checking the other keys
	readGap      time.Duration // between two polls of any keys
	onDoubt      func()
	// readTimeout returns how long to wait for the answer to a read; called before each read.
	readTimeout func() time.Duration

	cancel     context.CancelFunc
	done       sync.WaitGroup // every goroutine of the hub
	wakeOpener chan struct{}
	wakePoller chan struct{}

	// mu guards everything below, and the state of keys, groups and registrations. Methods that use these and do not
	// lock mu are called with it held. It is never held during a call to the network or to a function given to Watch.
	mu         sync.Mutex
	closed     bool
	gone       bool // the bucket was not found, and no watcher was opened since
	keys       map[string]*watchedKey
	waitedKeys int             // number of keys with waiters
	queue      []*registration // for the dispatchers
	callers    int             // number of dispatchers that run

	pending  []*watchedKey // keys that no group covers yet
	groups   []*group
	nextOpen time.Time // no watcher is opened before this time, because opening failed
	failures int       // to open, in a row

	polls    pollHeap
	nextPoll time.Time     // no rate-limited read before this time
	urgent   []*watchedKey // to be read at once

	streamState     streamMark // of the stream, as last seen
	nextStreamCheck time.Time  // when to ask for the state again
	checkingStream  bool
	purgeAsked      time.Time // when somebody last asked to purge the stream
	creditUsed      time.Time // up to this time the credit for opening watchers again is used, see takeCredit

	registrations int // calls of Watch and Follow not stopped yet
	counters
}

// counters count what has happened to watchers since NewHub.
type counters struct{ opened, reopened, openFailures, missed int }

// HubOption is an option of NewHub.
type HubOption func(*Hub)

// WithRestInterval sets how often the hub checks keys that are only followed, jittered by a quarter. With more than two
// keys, it does so a third as often while the stream does not change. Less than 10 ms counts as 10 ms.
func WithRestInterval(d time.Duration) HubOption {
	return func(h *Hub) { h.restInterval = max(d, leastPollInterval) }
}

// WithDoubt sets a function that is called when the bucket may not be the one that the hub was made for: each time it
// is not found, when a read finds an older revision than was seen, and several times after the server announced its
// deletion or change. See [Buckets.Verify] for the check to make then. The function is called on a goroutine of the hub: it must
// not block and must not call Close.
func WithDoubt(fn func()) HubOption { return func(h *Hub) { h.onDoubt = fn } }

// WithReadTimeout sets a function that returns how long to wait for the answer to a read from the leader, 2 s by
// default. It is called before each read: on a link that becomes slower the time has to grow, since reads
// are how the hub finds a lost watcher. It must be quick and safe for concurrent use.
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
		bucket:       b,
		interval:     DefaultPollInterval,
		restInterval: DefaultRestInterval,
		readGap:      time.Second / DefaultReadRate,
		onDoubt:      func() {},
		readTimeout:  func() time.Duration { return readTimeout },
		wakeOpener:   make(chan struct{}, 1),
		wakePoller:   make(chan struct{}, 1),
		keys:         make(map[string]*watchedKey),
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
	waits   bool   // made by Watch, not by Follow
	seen    uint64 // key.version at the last call of fn
	busy    bool   // in the queue, or fn is running
	stopped bool
}

// Watch registers fn for a key and returns at once. fn is called on goroutines of the hub, never concurrently for
// one registration, with the key's newest known entry: soon after registration, at once if the key is registered
// already, and then after each change.
//
// Watch never delivers an entry older than the newest one that this hub has seen for the key, with one exception: a
// leader read that finds no entry is delivered as absence (revision 0). fn has to judge that, since a
// deposed leader that does not know it yet can be behind.
//
// fn must not block, must not change the entry's value and must not call Close. It may call stop and Watch, and take
// a lock that is held elsewhere around calls of Watch and stop.
//
// stop ends the registration and can be called more than once. It does not
// wait: a call of fn in progress may still finish, but no further one starts.
//
// fn is never called for an invalid key or one with wildcards, and never on a closed hub.
func (h *Hub) Watch(key string, fn func(Entry)) (stop func()) { return h.register(key, fn, true) }

// Follow is Watch for a caller that does not wait for a change but has to learn of it, such as the
// holder of a lock. A change that a watcher misses is found later, but following a
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
		h.addWaiter(k)
	}
	h.registrations++
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
	h.registrations--
	r.key.regs = slices.DeleteFunc(r.key.regs, func(o *registration) bool { return o == r })
	if r.waits {
		h.removeWaiter(r.key)
	}
	if len(r.key.regs) == 0 {
		h.removeKey(r.key)
	}
}

// Registrations returns the number of calls of Watch and Follow that are not stopped yet.
func (h *Hub) Registrations() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.registrations
}

// Close ends all registrations, stops every goroutine of the hub and waits for them, and so for calls of fn in
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
		h.registrations = 0
		clear(h.keys)
		h.queue = nil
	}
	h.mu.Unlock()
	h.cancel()
	h.done.Wait()
}

// enqueue gives a registration to a dispatcher. A busy one checks the key again by itself.
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
// only at the call. So it delivers the newest entry, and two dispatchers can't deliver in the wrong order.
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
