package engine

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Store is the bucket the records live in; *jskv.Bucket is one.
type Store interface {
	Get(ctx context.Context, key string) (jskv.Entry, error)
	Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error)
	Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error)
	MaxValue() int // size of the largest value that can be written at present
}

// Watcher delivers the newest committed entry of a key, now and after every
// change; jskv.Hub is one.
type Watcher interface {
	Watch(key string, fn func(jskv.Entry)) (stop func())
	// Follow is Watch for holds: nobody waits, so the change may be found later, and
	// nothing may be asked for the key while nothing changes.
	Follow(key string, fn func(jskv.Entry)) (stop func())
}

// Observer reports leases whose tombstone is committed; lease.Observer is one.
type Observer interface {
	Observe(id string, ttl time.Duration, urgent bool, dead func(id string)) (stop func())
}

// Config is what an engine is made of. Store, Watcher and Observer are needed.
type Config struct {
	Store    Store
	Watcher  Watcher
	Observer Observer
	Limits   record.Limits // a zero field means its default; never more bytes than Store takes
	// RTT says how long to wait for an answer, and is told of every one; leases on
	// the same connection share it. nil is one of its own.
	RTT *rtt.Estimator
	// Cleanup bounds how long a caller whose context ended waits for its queue
	// entry to be gone; the engine goes on beyond it. The default is 500 ms. It
	// does not follow the link: the caller's time is up.
	Cleanup time.Duration
	// Suspect is called when the bucket may not be the one that was opened: it is
	// not found, nobody answers for it, or a key's revision went backwards, as it
	// does when the bucket was created again or restored. It is called with locks
	// held, as often as that is seen, and must return at once.
	Suspect func()
	// Evicted is called, if it is not nil, when a write of this engine that removed
	// entries of dead leases is acknowledged, before anybody is told of a grant that
	// this led to. It runs in the goroutine that wrote, with no lock held, and must
	// be quick. An eviction whose acknowledgement got lost is not reported.
	Evicted func(key string, leases []string, entries int)
	Logger  *slog.Logger
}

// Stats counts what an engine has done since it was made.
type Stats struct {
	Operations uint64 // submitted
	Rounds     uint64 // compare-and-set attempts
	Writes     uint64 // committed
	Reads      uint64 // leader reads
	Conflicts  uint64
	Busy       uint64 // code 10164
	Unknown    uint64 // writes whose outcome was not known at once

	HoldTime     time.Duration // how long this process's holds last, smoothed; 0 = none was released yet
	Waiting      int           // operations that stand in a queue now
	ExpectedWait time.Duration // the longest that one of these is expected to wait from now; 0 = not known
}

// Engine applies operations to resources. It is safe for concurrent use.
type Engine struct {
	cfg    Config
	ctx    context.Context // ends at Close; bounds the engine's own goroutines
	cancel context.CancelFunc
	seen   atomic.Uint64

	operations, rounds, writes, reads, conflicts, busy, unknown atomic.Uint64
	holdTime                                                    atomic.Int64 // smoothed hold time

	mu        sync.Mutex
	closed    bool
	wg        sync.WaitGroup // added to under mu while not closed
	resources map[string]*resource
	watched   map[*resource]struct{} // those with an open watch
	ledger    map[*call]time.Time    // unresolved cleanups, and since when
}

// failFastAttempt is the least time that a request is given where a caller fails
// fast: its silence is what that caller is told, and not only repeated.
const failFastAttempt = 500 * time.Millisecond

// maxIdle bounds how many idle resources keep their cached record.
const maxIdle = 1 << 16

// linger is how long a watch is kept after its last user left.
const linger = 2 * time.Second

// New returns an engine. Close it to stop its goroutines.
func New(cfg Config) *Engine {
	if cfg.RTT == nil {
		cfg.RTT = new(rtt.Estimator)
	}
	if cfg.Cleanup <= 0 {
		cfg.Cleanup = 500 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Suspect == nil {
		cfg.Suspect = func() {}
	}
	e := &Engine{cfg: cfg, resources: map[string]*resource{}, watched: map[*resource]struct{}{}, ledger: map[*call]time.Time{}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.goIfOpen(e.janitor)
	return e
}

// limits returns what a record may have now: the server's limit can change.
func (e *Engine) limits() record.Limits { return e.cfg.Limits.Within(e.cfg.Store.MaxValue()) }

// goIfOpen runs fn in a goroutine that Close waits for.
func (e *Engine) goIfOpen(fn func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.wg.Go(fn)
	return true
}

// Close stops the engine and waits for its goroutines. Operations that are not
// resolved end with ErrClosed; what they wrote stays, under leases that the
// caller ends.
func (e *Engine) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	e.cancel()
	all := slices.Collect(maps.Values(e.resources))
	e.mu.Unlock()
	for _, r := range all {
		r.close()
	}
	e.wg.Wait()
}

// Seen returns the highest revision that this engine has seen in the bucket.
func (e *Engine) Seen() uint64 { return e.seen.Load() }

func (e *Engine) saw(rev uint64) {
	for {
		old := e.seen.Load()
		if rev <= old || e.seen.CompareAndSwap(old, rev) {
			return
		}
	}
}

// resource returns the key's resource, making it on first use.
func (e *Engine) resource(key string) *resource {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.resources[key]
	if r == nil {
		if len(e.resources) >= maxIdle {
			e.forgetSome()
		}
		r = &resource{e: e, key: key, closed: e.closed}
		e.resources[key] = r
	}
	r.users++
	return r
}

func (e *Engine) done(r *resource) {
	e.mu.Lock()
	r.users--
	e.mu.Unlock()
}

// forgetSome drops a few idle resources; map order makes the choice random.
// Called with mu held.
func (e *Engine) forgetSome() {
	tries := 64
	for key, r := range e.resources {
		if r.users == 0 && r.idle() {
			delete(e.resources, key)
		}
		if tries--; tries == 0 {
			return
		}
	}
}

// janitor closes watches that nobody has used for a while.
func (e *Engine) janitor() {
	t := time.NewTicker(linger / 2)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		e.mu.Lock()
		all := slices.Collect(maps.Keys(e.watched))
		e.mu.Unlock()
		for _, r := range all {
			r.sweep()
		}
	}
}

// Unresolved returns how long the oldest unresolved cleanup under the lease has
// been going on; 0 means that there is none.
func (e *Engine) Unresolved(lease string) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	var longest time.Duration
	for c, since := range e.ledger {
		if c.op.Lease == lease {
			longest = max(longest, time.Since(since), 1)
		}
	}
	return longest
}

// DropLease ends every cleanup under a lease whose tombstone is committed: its
// entries are evicted by whoever needs the resource.
func (e *Engine) DropLease(lease string) {
	e.mu.Lock()
	var dropped []*call
	for c := range e.ledger {
		if c.op.Lease == lease {
			dropped = append(dropped, c)
		}
	}
	e.mu.Unlock()
	for _, c := range dropped {
		c.r.mu.Lock()
		c.resolve(Outcome{}, ErrGone)
		c.r.mu.Unlock()
	}
}

func (e *Engine) ledgerAdd(c *call) {
	e.mu.Lock()
	e.ledger[c] = time.Now()
	e.mu.Unlock()
}

func (e *Engine) ledgerRemove(c *call) {
	e.mu.Lock()
	delete(e.ledger, c)
	e.mu.Unlock()
}
