package engine

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// failFastAttempt is the least time for the answer to a request of a caller that fails
// fast: that caller gets an error if no answer comes, instead of another attempt.
const failFastAttempt = 500 * time.Millisecond

// timeouts counts requests in a row that timed out. Reads and writes count apart: a
// leader that answers reads at once may still need long for a write.
type timeouts struct{ reads, writes atomic.Int32 }

func (s *timeouts) any() bool { return s.reads.Load()+s.writes.Load() > 0 }

// ask sends a request and waits for its answer hardly longer than answers take on this link,
// because a leader that resigns forgets its requests and the next leader answers soon. The limit
// doubles with each time-out in a row.
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
