package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Options change how one operation is carried out.
type Options struct {
	FailFast bool            // end with ErrUnavailable at the first sign that no leader answers
	Stop     <-chan struct{} // ends the wait with ErrStopped, like the end of the context
	// Bound, if above 0, is how long to wait instead of until the context ends, which is ignored.
	Bound   time.Duration
	AtLeast uint64 // as in Request
	Held    bool   // likewise
	Turns   bool   // likewise
	Keeper  Keeper // likewise
	// Queued is called once, from the goroutine that called Do and before Do
	// returns, if the operation had to wait. No lock is held.
	Queued func(record.Place)
}

// proofTimeout bounds how long whoever gave an operation up waits for the proof of what became of it,
// see record.Op.Proven. It is longer than electing a leader takes.
const proofTimeout = 10 * time.Second

// cleanup bounds how long Do waits, after its wait was ended, for its queue entry to be gone; the
// Doer goes on beyond it. It does not follow the link: the caller's time is up.
const cleanup = 500 * time.Millisecond

// call is a request whose caller blocks.
type call struct {
	Request
	done  atomic.Pointer[chan struct{}] // closed when it is over; nil while nobody waits
	ended func(Outcome, error)          // end
}

// calls has those that are over and that nobody else has, for their room.
var calls = sync.Pool{New: func() any {
	c := new(call)
	c.ended = c.end
	return c
}}

// over is what done points to when it is over.
var over = new(chan struct{})

func (c *call) end(out Outcome, err error) {
	c.out, c.err = out, err // of another Doer
	if done := c.done.Swap(over); done != nil {
		close(*done)
	}
}

// Do has d carry out one operation and returns what the committed record says.
//
// An acquire returns when it is granted, and otherwise waits in the key's
// queue until the context ends or opt.Stop is closed; its entry is then removed,
// in the background if need be. A conversion waits likewise, before the queue, and
// is taken back; one that only gives up something (see record.Op.Undo) is carried
// through instead, like a release. Errors: *RefusedError, ErrGone, ErrStopped, ErrUnavailable
// (with FailFast), ErrUnconfirmed for operations other than an acquire, ErrClosed, the
// context's error, and record.ErrMalformed or record.ErrNewerSchema, in which
// case the stored bytes are left as they are.
func Do(ctx context.Context, d Doer, key string, op record.Op, opt Options) (Outcome, error) {
	if err := ctx.Err(); err != nil && opt.Bound <= 0 {
		return Outcome{}, err
	}
	began := time.Now()
	c := calls.Get().(*call)
	c.Request = Request{Key: key, Op: op, AtLeast: opt.AtLeast, Held: opt.Held, Turns: opt.Turns, FailFast: opt.FailFast, Keeper: opt.Keeper, Done: c.ended}
	var placed chan record.Place
	if opt.Queued != nil {
		placed = make(chan record.Place, 1)
		c.Queued = func(p record.Place) { placed <- p }
		defer func() { // also if the answer was seen first
			select {
			case p := <-placed:
				opt.Queued(p)
			default:
			}
		}()
	}
	free := false
	if h, ok := d.(interface{ SubmitHere(r *Request) bool }); ok {
		free = h.SubmitHere(&c.Request)
	} else {
		d.Submit(&c.Request)
	}
	if c.done.Load() == over {
		out, err := c.out, c.err
		if free {
			c.Request = Request{}
			c.done.Store(nil)
			calls.Put(c)
		}
		return out, err
	}
	done := make(chan struct{})
	if !c.done.CompareAndSwap(nil, &done) {
		return c.out, c.err
	}
	here := time.Since(began)
	var ended <-chan struct{}
	var late <-chan time.Time
	if opt.Bound > 0 {
		t := time.NewTimer(opt.Bound - here)
		defer t.Stop()
		late = t.C
	} else {
		ended = ctx.Done()
	}
	var cause error
	for cause == nil {
		select {
		case <-done:
			return c.out, c.err
		case p := <-placed:
			opt.Queued(p)
		case <-ended:
			cause = ctx.Err()
		case <-late:
			cause = context.DeadlineExceeded
		case <-opt.Stop:
			cause = ErrStopped
		}
	}
	d.Withdraw(&c.Request, cause)
	return c.afterWithdrawal(done, here, cause)
}

// afterWithdrawal waits for what becomes of an operation whose wait has ended, here after the submission began.
func (c *call) afterWithdrawal(done <-chan struct{}, here time.Duration, cause error) (Outcome, error) {
	limit := cleanup - here // the wait may have ended when that began
	if c.Op.Proven() {
		limit = proofTimeout
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return c.out, c.err
	case <-t.C:
	}
	if c.Op.Proven() {
		return Outcome{}, fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	return Outcome{}, cause
}
