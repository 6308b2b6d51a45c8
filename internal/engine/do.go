package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Options change how one operation is done.
type Options struct {
	FailFast bool            // end with ErrUnavailable at the first sign that no leader answers
	Stop     <-chan struct{} // ends the wait with ErrStopped, like the end of the context
	// Bound, if above 0, limits the wait. The end of the context is then ignored.
	Bound   time.Duration
	AtLeast uint64 // as in Request
	Held    bool   // as in Request
	Turns   bool   // as in Request
	Keeper  Keeper // as in Request
	// Queued is called once, from the goroutine that called Do and before Do
	// returns, if the operation had to wait. No lock is held.
	Queued func(record.Place)
}

// proofTimeout bounds how long a caller that gave up an operation waits for the proof of its outcome,
// see record.Op.Proven. It is longer than the election of a leader takes.
const proofTimeout = 10 * time.Second

// cleanupTime bounds how long Do waits for the removal of its queue entry after its wait was ended; the
// Doer goes on beyond it. It does not depend on the link, since the caller has no time left.
const cleanupTime = 500 * time.Millisecond

// call is a request with a blocked caller.
type call struct {
	Request
	done  atomic.Pointer[chan struct{}] // closed when the request is done; nil while the caller does not wait yet
	ended func(Outcome, error)          // the method end, as a value
}

// calls recycles calls that are done and that nobody else refers to.
var calls = sync.Pool{New: func() any {
	c := new(call)
	c.ended = c.end
	return c
}}

// callDone is the value of call.done once the request is done.
var callDone = new(chan struct{})

func (c *call) end(out Outcome, err error) {
	c.out, c.err = out, err // needed if the Doer is no engine
	if done := c.done.Swap(callDone); done != nil {
		close(*done)
	}
}

// waitable returns a channel that is closed when the request is done.
func (c *call) waitable() <-chan struct{} {
	done := make(chan struct{})
	if !c.done.CompareAndSwap(nil, &done) {
		close(done)
	}
	return done
}

// Do has d carry out one operation and returns its outcome, as the committed record says.
//
// An acquire returns when it is granted. Until then it waits in the key's queue, until the context ends or opt.Stop is
// closed; then its entry is removed, in the background if need be. A conversion waits likewise, before the queue, and
// is undone; a conversion that only gives up something (see record.Op.Undo) is completed instead, as a release is.
// Errors: *RefusedError, ErrGone, ErrStopped, ErrUnavailable (with FailFast), ErrUnconfirmed for operations other than
// an acquire, ErrClosed, the context's error, and record.ErrMalformed or record.ErrNewerSchema, in which case the
// stored bytes stay as they are.
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
		defer func() { // needed if the select below saw the answer first
			select {
			case p := <-placed:
				opt.Queued(p)
			default:
			}
		}()
	}
	reusable := false
	if h, ok := d.(interface{ SubmitHere(r *Request) bool }); ok {
		reusable = h.SubmitHere(&c.Request)
	} else {
		d.Submit(&c.Request)
	}
	if c.done.Load() == callDone {
		out, err := c.out, c.err
		if reusable {
			c.Request = Request{}
			c.done.Store(nil)
			calls.Put(c)
		}
		return out, err
	}
	done, spent := c.waitable(), time.Since(began)
	if cause := opt.wait(ctx, done, opt.timeout(spent), placed); cause != nil {
		d.Withdraw(&c.Request, cause)
		return c.afterWithdrawal(done, spent, cause)
	}
	return c.out, c.err
}

// timeout delivers at the end of Bound, of which spent has passed already. It is nil without a Bound.
func (opt *Options) timeout(spent time.Duration) <-chan time.Time {
	if opt.Bound <= 0 {
		return nil
	}
	return time.After(opt.Bound - spent)
}

// wait waits until done is closed. It returns the cause if the caller gives up before.
func (opt *Options) wait(ctx context.Context, done <-chan struct{}, timeout <-chan time.Time, placed <-chan record.Place) (cause error) {
	ended := ctx.Done()
	if opt.Bound > 0 {
		ended = nil
	}
	for {
		select {
		case <-done:
			return nil
		case p := <-placed:
			opt.Queued(p)
		case <-ended:
			return ctx.Err()
		case <-timeout:
			return context.DeadlineExceeded
		case <-opt.Stop:
			return ErrStopped
		}
	}
}

// afterWithdrawal waits for the outcome of a withdrawn operation. The submission itself took spent.
func (c *call) afterWithdrawal(done <-chan struct{}, spent time.Duration, cause error) (Outcome, error) {
	limit := cleanupTime - spent // the caller may have given up at the beginning of the submission
	if c.Op.Proven() {
		limit = proofTimeout
	}
	select {
	case <-done:
		return c.out, c.err
	case <-time.After(limit):
	}
	if c.Op.Proven() {
		return Outcome{}, fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	return Outcome{}, cause
}

// Call is one operation of DoAll.
type Call struct {
	Key     string
	Op      record.Op // not one that is Proven
	AtLeast uint64    // as in Request

	Outcome Outcome // set by DoAll
	Err     error   // as that of Do
}

// DoAll has d carry out operations on different keys at once, each as Do does, and returns when
// all have ended. d sends them in the order of calls, see Engine.SubmitInOrder. Of opt it uses FailFast,
// Stop and Bound, for all calls together.
func DoAll(ctx context.Context, d Doer, calls []*Call, opt Options) {
	pending := make([]call, len(calls))
	reqs := make([]*Request, len(calls))
	done := make([]<-chan struct{}, len(calls))
	for i, c := range calls {
		p := &pending[i]
		p.Request = Request{Key: c.Key, Op: c.Op, AtLeast: c.AtLeast, FailFast: opt.FailFast, Done: p.end}
		reqs[i], done[i] = &p.Request, p.waitable()
	}
	timeout := opt.timeout(0)
	if o, ok := d.(interface{ SubmitInOrder(reqs ...*Request) }); ok {
		o.SubmitInOrder(reqs...)
	} else {
		d.Submit(reqs...)
	}
	var cause error
	for i := 0; i < len(done) && cause == nil; i++ {
		cause = opt.wait(ctx, done[i], timeout, nil)
	}
	if cause != nil {
		for _, r := range reqs {
			d.Withdraw(r, cause)
		}
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for i, c := range calls {
		select {
		case <-done[i]:
		case <-cleanup.Done():
		}
		if p := &pending[i]; p.done.Load() == callDone {
			c.Outcome, c.Err = p.out, p.err
		} else {
			c.Err = cause
		}
	}
}
