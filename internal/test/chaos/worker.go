package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// worker is one goroutine of the load.
type worker struct {
	w     *Workload
	id    int
	at    int // index of its manager
	names []string
	rand  *rand.Rand
}

// Ways to acquire.
type way int

const (
	plain   way = iota
	try         // ErrHeld is an answer
	short       // may end with its wait limit
	cancel      // is cancelled at some moment
	owned       // with an explicit owner, whose second acquire is refused
	limited     // under a lease of its own that is not renewed
)

func (c *worker) choose() way {
	switch n := c.rand.IntN(100); {
	case n < 12:
		return try
	case n < 24:
		return short
	case n < 36:
		return cancel
	case n < 40:
		return owned
	case n < 41:
		return limited
	}
	return plain
}

// limitedTTL is the life of a hold that is not renewed. It is so long that the hold expires
// before its release only under a fault.
const limitedTTL = 2 * time.Second

// step is one acquire with everything that follows.
func (c *worker) step() {
	key, how := c.names[c.rand.IntN(len(c.names))], c.choose()
	var opts []fabric.AcquireOption
	if c.rand.IntN(100) < 30 {
		opts = append(opts, fabric.WithMode(fabric.Shared))
	}
	ctx, stop := context.WithTimeout(context.Background(), c.w.Patience)
	defer stop()
	end := c.w.Patience
	switch how {
	case short:
		end = time.Duration(1+c.rand.IntN(30)) * time.Millisecond
		opts = append(opts, fabric.WithWaitLimit(end))
	case cancel:
		end = time.Duration(c.rand.IntN(20_000)) * time.Microsecond
		defer time.AfterFunc(end, stop).Stop()
	case owned:
		opts = append(opts, fabric.WithOwner(fmt.Sprintf("worker-%d", c.id)))
	case limited:
		opts = append(opts, fabric.WithTTL(limitedTTL), fabric.WithAutoRenew(false))
	}

	t := &c.w.tally
	t.operations.Add(1)
	before := c.w.Oracle.Mark(key)
	called := time.Now()
	acquire := c.manager().Acquire
	if how == try {
		acquire = c.manager().TryAcquire
	}
	l, err := acquire(ctx, key, opts...)
	took := time.Since(called)
	if how == short || how == cancel {
		atMost(&t.latest, took-end)
	} else {
		atMost(&t.longest, took)
	}
	if err != nil {
		c.refused(key, how, took, end, err)
		return
	}
	c.w.Recorder.acquired(c.id, l, called)
	c.hold(l, before, how, opts)
}

func (c *worker) manager() *fabric.Manager { return c.w.Managers[c.at] }

// refused checks the error of an acquire.
func (c *worker) refused(key string, how way, took, end time.Duration, err error) {
	t := &c.w.tally
	switch {
	case !errors.Is(err, fabric.ErrNotAcquired):
		t.violated("acquire of %q: error that is not ErrNotAcquired: %v", key, err)
	case how == try && errors.Is(err, fabric.ErrHeld):
		t.refused.Add(1)
	case how == short && errors.Is(err, context.DeadlineExceeded):
		t.timedOut.Add(1)
		if took < end {
			t.violated("acquire of %q with a limit of %v ended after %v", key, end, took)
		}
	case how == cancel && errors.Is(err, context.Canceled):
		t.cancelled.Add(1)
	case !c.w.Tolerance.Anything:
		t.violated("acquire of %q (way %d, manager %d) failed after %v: %v", key, how, c.at, took, err)
	}
}

// hold uses the lock as a holder does, and releases it.
func (c *worker) hold(l *fabric.Lock, before Mark, how way, opts []fabric.AcquireOption) {
	t := &c.w.tally
	t.granted.Add(1)
	t.byManager[c.at].Add(1)
	c.w.Oracle.Granted(l, before)

	if how == owned {
		c.again(l, opts)
	}
	c.linger(l)
	if c.rand.IntN(100) < 3 {
		l.IsValid(context.Background())
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if c.rand.IntN(100) < 8 {
		stop() // a release does not depend on its context
	}
	c.w.Oracle.Ending(l)
	called := time.Now()
	err := l.Release(ctx)
	c.w.Recorder.released(c.id, l, called, err)
	c.ended(l, how, err)
	if c.rand.IntN(100) < 5 {
		if second := l.Release(ctx); !errors.Is(second, err) && !errors.Is(err, second) {
			t.violated("second release of %s on %q: %v, the first: %v", l.ID(), l.Key(), second, err)
		}
	}
	if l.Err() == nil {
		t.violated("%s on %q is valid after its release", l.ID(), l.Key())
	}
}

// linger holds the lock for a while, or until it is lost.
func (c *worker) linger(l *fabric.Lock) {
	d := time.Duration(c.rand.IntN(2_000)) * time.Microsecond
	if c.rand.IntN(c.w.LongOneIn) == 0 {
		d = time.Duration(c.rand.Int64N(int64(c.w.LongHold)))
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.Lost():
		if l.Err() == nil {
			c.w.tally.violated("%s on %q is valid, and Lost is closed", l.ID(), l.Key())
		}
	}
}

// again tries the lock once more as the same owner. The try is never granted
// while the first hold is valid.
func (c *worker) again(l *fabric.Lock, opts []fabric.AcquireOption) {
	ctx, stop := context.WithTimeout(context.Background(), c.w.Patience)
	defer stop()
	before := c.w.Oracle.Mark(l.Key())
	second, err := c.manager().TryAcquire(ctx, l.Key(), opts...)
	switch {
	case err == nil:
		// The first hold must have ended meanwhile. If not, the oracle reports it.
		c.w.Oracle.Granted(second, before)
		c.w.Oracle.Ending(second)
		_ = second.Release(ctx)
	case !errors.Is(err, fabric.ErrAlreadyHeld) && l.Err() == nil && !c.w.Tolerance.Anything && !c.w.Oracle.TokensOnly:
		c.w.tally.violated("acquire of %q by an owner that holds it: %v", l.Key(), err)
	}
}

// ended checks what a release returned.
func (c *worker) ended(l *fabric.Lock, how way, err error) {
	t := &c.w.tally
	counter := map[bool]*atomic.Uint64{true: &t.lost, false: &t.unconfirmed}[errors.Is(err, fabric.ErrLost)]
	if err == nil {
		counter = &t.released
	}
	counter.Add(1)
	if how == limited && errors.Is(err, fabric.ErrLost) && errors.Is(err, fabric.ErrExpired) {
		return // its time was up
	}
	if !c.w.Tolerance.tolerates(err) {
		t.violated("release of %s on %q (manager %d): %v", l.ID(), l.Key(), c.at, err)
	}
}
