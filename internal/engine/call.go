package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Outcome is what a committed record says about an operation.
type Outcome struct {
	Entry    record.Entry   // an acquire's or a conversion's: the grant, with its token
	Revision uint64         // of the record the outcome was read from
	Record   *record.Record // that record, nil if it was deleted; not to be modified
	// Existed is whether a release, cancel or removal found something to remove,
	// now or in an earlier attempt whose outcome was not known.
	Existed bool
}

// Options change how one operation is carried out.
type Options struct {
	FailFast bool            // end with ErrUnavailable at the first sign that no leader answers
	Stop     <-chan struct{} // ends the wait with ErrStopped, like the end of the context
	// Detached, if above 0, is how long to wait instead of until the context
	// ends, which is ignored.
	Detached time.Duration
	// Known is a revision at which the caller knows that the key's record was
	// written, as that of the hold which the operation is about. What is older proves
	// nothing, also where the engine has forgotten what it has seen.
	Known uint64
	// Queued is called once, from the goroutine that called Do and before Do
	// returns, if the operation had to wait in a committed record. No lock is held.
	Queued func(record.Place)
}

// call is one submitted operation. Its fields are guarded by its resource's mu.
type call struct {
	r              *resource
	op             record.Op
	asked          time.Time // when it was submitted, if it has patience for a time
	failFast       bool
	ledger         bool // a cleanup: goes on without a caller
	attempted      bool // some write that contained it was sent
	outcomeUnknown bool // the outcome of such a write was unknown
	found          bool // the last attempt's base contained the id
	maybeFound     bool // so did the base of an attempt whose outcome was unknown
	resolved       bool
	dropped        bool // its caller gave up; a cleanup took over
	out            Outcome
	err            error
	done           chan struct{} // made when somebody has to wait
	placed         chan struct{} // closed when place is known; nil if nobody wants to
	place          *record.Place
	reported       bool // Options.Queued was called
}

// resolve ends the call. Called with r.mu held.
func (c *call) resolve(out Outcome, err error) {
	if c.resolved {
		return
	}
	c.resolved, c.out, c.err = true, out, err
	if err != nil {
		// Its leases are observed again, should their entries still be in the way.
		for _, id := range c.op.Leases {
			delete(c.r.dead, id)
		}
	}
	if c.done != nil {
		close(c.done)
	}
	delete(c.r.waiting, c.op.ID)
	if c.ledger {
		c.r.e.ledgerRemove(c)
	}
}

// Do carries out one operation and returns what the committed record says.
//
// An acquire returns when it is granted, and otherwise waits in the resource's
// queue until the context ends or opt.Stop is closed; its entry is then removed,
// in the background if need be. A conversion waits likewise, before the queue, and
// is taken back; one that only gives up something (see record.Op.Undo) is carried
// through instead, like a release. Errors: *RefusedError, ErrGone, ErrStopped, ErrUnavailable
// (with FailFast), ErrUnconfirmed for operations other than an acquire, ErrClosed, the
// context's error, and record.ErrMalformed or record.ErrNewerSchema, in which
// case the stored bytes are left as they are.
func (e *Engine) Do(ctx context.Context, key string, op record.Op, opt Options) (Outcome, error) {
	if opt.Detached > 0 {
		// From the first request on, which may be waited for as long as the link makes it.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(e.ctx, opt.Detached)
		defer cancel()
	} else if err := ctx.Err(); err != nil {
		return Outcome{}, err
	}
	e.operations.Add(1)
	r := e.resource(key)
	defer e.done(r)
	c := &call{r: r, op: op, failFast: opt.FailFast}
	if opt.Queued != nil {
		c.placed = make(chan struct{})
		defer c.reportPlace(opt.Queued)
	}

	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return Outcome{}, ErrClosed
	}
	r.newestRev = max(r.newestRev, opt.Known)
	if op.Blind() {
		c.op.Hold = r.holdTime
		if op.Patience > 0 {
			c.asked = time.Now()
		}
	} else {
		e.held(op.Hold)
	}
	r.pending = append(r.pending, c)
	if !r.running {
		// Nobody works on this resource: do it here, without a goroutine.
		r.running = true
		r.mu.Unlock()
		r.run(ctx, c)
		r.mu.Lock()
	}
	if c.resolved {
		r.mu.Unlock()
		return c.out, c.err
	}
	c.done = make(chan struct{})
	r.mu.Unlock()

	for placed := c.placed; ; placed = nil {
		select {
		case <-placed:
			c.reportPlace(opt.Queued)
		case <-c.done:
			return c.out, c.err
		case <-ctx.Done():
			if e.ctx.Err() != nil && opt.Detached > 0 {
				return r.withdraw(c, ErrClosed)
			}
			return r.withdraw(c, ctx.Err())
		case <-opt.Stop:
			return r.withdraw(c, ErrStopped)
		}
	}
}

// withdraw ends the caller's wait. Whatever the operation wrote, or may still
// write, is undone by a cleanup call; the caller waits a bounded time for it.
func (r *resource) withdraw(c *call, cause error) (Outcome, error) {
	r.mu.Lock()
	if c.resolved {
		r.mu.Unlock()
		return c.out, c.err
	}
	if !c.attempted && !c.op.Owed() {
		// Nothing of it was written, so there is nothing to undo. The entry that a
		// release is about is there all the same, under a lease that lives on.
		c.resolve(Outcome{}, cause)
		r.mu.Unlock()
		return Outcome{}, cause
	}
	if _, ok := c.op.Undo(); !ok {
		// A release goes on as it is, in the ledger.
		c.ledger = true
		r.e.ledgerAdd(c)
		r.mu.Unlock()
		return Outcome{}, fmt.Errorf("%w: %w", ErrUnconfirmed, cause)
	}
	op := c.op
	clean := r.cleanup(c, cause)
	r.mu.Unlock()
	if op.Proven() {
		return r.proof(clean, &op, cause)
	}
	r.awaitCleanup(clean, r.e.cfg.Cleanup)
	return Outcome{}, cause
}

// proof waits until the undo of op is committed, and reads off that record what became of op.
func (r *resource) proof(clean *call, op *record.Op, cause error) (Outcome, error) {
	r.awaitCleanup(clean, proofTimeout)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !clean.resolved || clean.err != nil {
		return Outcome{}, fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	out := clean.out
	switch st := out.Record.Standing(op); st.Standing {
	case record.Granted:
		if st.Entry != nil {
			out.Entry = *st.Entry
		}
		return out, nil
	case record.Refused:
		return out, &RefusedError{Result: record.Result{Verdict: st.Why}, Record: out.Record, Cause: cause}
	}
	return out, cause
}

// cleanup ends an acquire or a conversion with cause and replaces it by what
// takes it back, a release of the same id for an acquire, which stays in the
// ledger until a committed write proves that it is done. Called with r.mu held.
func (r *resource) cleanup(c *call, cause error) *call {
	c.dropped = true
	c.resolve(Outcome{}, cause)
	undo, ok := c.op.Undo()
	if !ok {
		undo = c.op
	}
	clean := &call{r: r, ledger: true, outcomeUnknown: c.outcomeUnknown, done: make(chan struct{}), op: undo}
	r.e.ledgerAdd(clean)
	r.submit(clean)
	return clean
}

func (r *resource) awaitCleanup(clean *call, limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-clean.done:
	case <-t.C:
	case <-r.e.ctx.Done():
	}
}

// proofTimeout bounds how long whoever gave an operation up waits for the proof of what became of it,
// see record.Op.Proven. It is longer than electing a leader takes.
const proofTimeout = 10 * time.Second

// Forget releases an id in the background, without a caller: for a grant that
// turned out to be useless. It returns at once. known is as in Options.
func (e *Engine) Forget(key, lease, id string, known uint64) {
	r := e.resource(key)
	defer e.done(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newestRev = max(r.newestRev, known)
	r.carryOut(record.Op{Verb: record.OpRelease, ID: id, Lease: lease})
}

// Abandon takes an operation back in the background, without a caller, where
// nobody waits for its outcome any more. It returns at once. An operation that
// can't be taken back is carried through. known is as in Options.
func (e *Engine) Abandon(key string, op record.Op, known uint64) {
	r := e.resource(key)
	defer e.done(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newestRev = max(r.newestRev, known)
	if undo, ok := op.Undo(); ok {
		op = undo
	}
	r.carryOut(op)
}

// carryOut submits an operation to the ledger. Called with r.mu held.
func (r *resource) carryOut(op record.Op) {
	if r.closed {
		return
	}
	c := &call{r: r, ledger: true, op: op}
	r.e.ledgerAdd(c)
	r.submit(c)
}

// Read returns the resource's record as the leader has it, never older than
// what this process has seen already; nil means that nobody holds or waits.
// Errors: ErrUnavailable, and those of record.Decode.
func (e *Engine) Read(ctx context.Context, key string) (*record.Record, uint64, error) {
	r := e.resource(key)
	defer e.done(r)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := r.read(ctx, false)
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.rec, r.rev, nil
		}
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, jskv.ErrBucketGone) || ctx.Err() != nil {
			return nil, 0, err
		}
		if !e.sleep(ctx, wait) {
			return nil, 0, err
		}
	}
}

// sleep waits for d, or less when the context or the engine ends, and reports
// whether it may go on.
func (e *Engine) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-e.ctx.Done():
	}
	return false
}
