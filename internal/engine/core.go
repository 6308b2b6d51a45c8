package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// core is the state that all keys of an engine share.
type core struct {
	cfg    Config
	ctx    context.Context // ends at Close; every write runs under it
	cancel context.CancelFunc
	newest atomic.Uint64 // highest revision seen in the bucket
	ledger ledger

	operations, rounds, writes, reads, conflicts, busy, unknown atomic.Uint64
	holdTime                                                    atomic.Int64 // smoothed hold time

	shared atomic.Pointer[deadline] // of the newest requests

	mu      sync.Mutex
	closed  bool
	wg      sync.WaitGroup       // added to under mu while not closed
	watched map[watched]struct{} // keys with an open watch
}

// watched is a key with an open watch.
type watched interface {
	sweep() // closes the watch if nobody has used it for a while
	expectedWait() (waiting int, longest time.Duration)
}

func newCore(cfg Config) *core {
	c := &core{cfg: cfg.withDefaults(), watched: map[watched]struct{}{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// limits returns the present limits of a record. The server's limit can change.
func (c *core) limits() record.Limits { return c.cfg.Limits.Within(c.cfg.Store.MaxValue()) }

// noteRevision raises newest to a revision of the bucket.
func (c *core) noteRevision(rev uint64) {
	for {
		old := c.newest.Load()
		if rev <= old || c.newest.CompareAndSwap(old, rev) {
			return
		}
	}
}

// noteHold takes a released hold of length d into the smoothed hold time.
func (c *core) noteHold(d time.Duration) {
	for d > 0 {
		old := c.holdTime.Load()
		if c.holdTime.CompareAndSwap(old, int64(record.SmoothHold(time.Duration(old), d))) {
			return
		}
	}
}

// goIfOpen runs fn in a goroutine that Close waits for.
func (c *core) goIfOpen(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(fn)
	return true
}

// sleep waits for d, or less when the context or the engine ends. It returns false if one of them ended.
func (c *core) sleep(ctx context.Context, d time.Duration) bool {
	return pause.Until(ctx, d, c.ctx.Done()) && c.ctx.Err() == nil
}

// deadline is a context of the engine that ends limit after begun, or up to a sixteenth later.
type deadline struct {
	ctx    context.Context
	cancel context.CancelFunc // not called, since requests that end at different times share ctx
	begun  time.Time
	limit  time.Duration
}

// contextFor returns a context of the engine that ends limit from now, or up to a sixteenth of it later.
// Requests of that time share one context, since making one costs more than making a request.
func (c *core) contextFor(limit time.Duration, now time.Time) context.Context {
	slack := limit / 16
	if d := c.shared.Load(); d != nil && d.limit == limit && now.Sub(d.begun) < slack {
		return d.ctx
	}
	d := &deadline{begun: now, limit: limit}
	d.ctx, d.cancel = context.WithDeadline(c.ctx, now.Add(limit+slack))
	c.shared.Store(d)
	return d.ctx
}
