package engine

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// failFastAttempt is the least time that a request is given where a caller fails
// fast: its silence is what that caller is told, and not only repeated.
const failFastAttempt = 500 * time.Millisecond

// silence counts requests in a row that nobody answered, by what they were: a
// leader that answers reads at once may still need long for a write.
type silence struct{ reads, writes atomic.Int32 }

func (s *silence) any() bool { return s.reads.Load()+s.writes.Load() > 0 }

// ask sends a request and waits for its answer hardly longer than answers take on this link,
// since a leader that resigns forgets what it was asked and the next one answers soon; then
// twice as long each time that nobody answers.
func (c *core) ask(ctx context.Context, silent *atomic.Int32, failFast bool, send func(ctx context.Context) error) (took time.Duration, err error) {
	before := silent.Load()
	limit := c.cfg.RTT.Backoff(int(before))
	if failFast {
		limit = max(limit, failFastAttempt)
	}
	sent := time.Now()
	actx := c.within(limit, sent)
	if ctx != c.ctx {
		var cancel context.CancelFunc
		actx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err = send(actx)
	took = time.Since(sent)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		// Those that were out together are one silence.
		silent.CompareAndSwap(before, before+1)
		c.cfg.RTT.TimedOut()
	}
	return took, err
}

// read asks the leader for a key's newest entry.
func (c *core) read(ctx context.Context, key string, silent *silence, failFast bool) (entry jskv.Entry, err error) {
	c.reads.Add(1)
	took, err := c.ask(ctx, &silent.reads, failFast, func(ctx context.Context) error {
		entry, err = c.cfg.Store.Get(ctx, key)
		return err
	})
	switch {
	case err == nil:
		silent.reads.Store(0)
		c.cfg.RTT.ObserveQuick(took)
	case errors.Is(err, jskv.ErrBucketGone):
		c.cfg.Suspect()
	}
	return entry, err
}

// write stores value, nil for none, if the key's revision is rev. in, if it is not nil, gives
// the context of the request.
func (c *core) write(key string, value []byte, rev uint64, silent *silence, failFast bool, in func(context.Context) context.Context) (newRev uint64, err error) {
	c.rounds.Add(1)
	newRev, err = c.publish(c.ctx, silent, failFast, func(ctx context.Context) (uint64, error) {
		if in != nil {
			ctx = in(ctx)
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
func (c *core) publish(ctx context.Context, silent *silence, failFast bool, send func(ctx context.Context) (uint64, error)) (newRev uint64, err error) {
	took, err := c.ask(ctx, &silent.writes, failFast, func(ctx context.Context) error {
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
	silent.writes.Store(0)
	silent.reads.Store(0)
	return newRev, err
}
