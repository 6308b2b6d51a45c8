package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
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

// failFastAttempt is the least time for the answer to a request of a caller that fails
// fast: that caller gets an error if no answer comes, instead of another attempt.
const failFastAttempt = 500 * time.Millisecond

// timeouts counts requests in a row that timed out. Reads and writes count apart: a
// leader that answers reads at once may still need long for a write.
type timeouts struct{ reads, writes atomic.Int32 }

func (s *timeouts) any() bool { return s.reads.Load()+s.writes.Load() > 0 }

// ask sends a request and waits for its answer hardly longer than answers take on this link, because a leader that
// resigns forgets its requests and the next leader answers soon. The limit doubles with each time-out in a row.
func (c *core) ask(ctx context.Context, timedOut *atomic.Int32, failFast bool, send func(ctx context.Context) error) (took time.Duration, err error) {
	before := timedOut.Load()
	limit := c.cfg.RTT.Backoff(int(before))
	if failFast {
		limit = max(limit, failFastAttempt)
	}
	sent := time.Now()
	actx := c.contextFor(limit, sent)
	if ctx != c.ctx {
		var cancel context.CancelFunc
		actx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err = send(actx)
	took = time.Since(sent)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		// Requests that were under way together count as one time-out.
		timedOut.CompareAndSwap(before, before+1)
		c.cfg.RTT.TimedOut()
	}
	return took, err
}

// read asks the leader for a key's newest entry.
func (c *core) read(ctx context.Context, key string, timeouts *timeouts, failFast bool) (entry jskv.Entry, err error) {
	c.reads.Add(1)
	took, err := c.ask(ctx, &timeouts.reads, failFast, func(ctx context.Context) error {
		entry, err = c.cfg.Store.Get(ctx, key)
		return err
	})
	switch {
	case err == nil:
		timeouts.reads.Store(0)
		c.cfg.RTT.ObserveQuick(took)
	case errors.Is(err, jskv.ErrBucketGone):
		c.cfg.Suspect()
	}
	return entry, err
}

// write stores value if the key's revision is rev; nil deletes the key. wrapCtx, if not nil, makes
// the context of the request.
func (c *core) write(key string, value []byte, rev uint64, timeouts *timeouts, failFast bool, wrapCtx func(context.Context) context.Context) (newRev uint64, err error) {
	c.rounds.Add(1)
	newRev, err = c.publish(c.ctx, timeouts, failFast, func(ctx context.Context) (uint64, error) {
		if wrapCtx != nil {
			ctx = wrapCtx(ctx)
		}
		if value == nil {
			return c.cfg.Store.Purge(ctx, key, rev, jskv.MarkerTTL)
		}
		return c.cfg.Store.Update(ctx, key, value, rev, 0)
	})
	if err == nil {
		c.writes.Add(1)
	}
	return newRev, err
}

// publish sends a conditional write and waits for its acknowledgement.
func (c *core) publish(ctx context.Context, timeouts *timeouts, failFast bool, send func(ctx context.Context) (uint64, error)) (newRev uint64, err error) {
	took, err := c.ask(ctx, &timeouts.writes, failFast, func(ctx context.Context) error {
		newRev, err = send(ctx)
		return err
	})
	switch {
	case err == nil:
		c.cfg.RTT.Observe(took)
	case errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrBusy):
		c.cfg.RTT.ObserveQuick(took)
	default:
		return newRev, err
	}
	timeouts.writes.Store(0)
	timeouts.reads.Store(0)
	return newRev, err
}
