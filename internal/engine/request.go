package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Doer carries requests out: an engine in this process, or a client of a process that has one.
type Doer interface {
	// Submit takes requests of one moment, for any keys. It never blocks. Each request's Done
	// is called exactly once: from within Submit, or later from a goroutine of the Doer.
	Submit(reqs ...*Request)
	// Withdraw says that nobody waits for the request any more. What it wrote, or may still
	// write, is undone, and Done is called after that, at the latest when its lease ends: with
	// cause, or for an operation that is Proven with what became of it. A request that can't be undone is carried through in the background, and Done gets
	// ErrUnconfirmed with cause at once. A request that is done is left alone.
	//
	// With ErrElsewhere as its cause nothing is undone: what was written stays, and
	// nothing more is written for it but by a write that is under way.
	Withdraw(r *Request, cause error)
}

// Request is an operation on the record of a key. It is used once. The engine owns it from
// Submit until Done is called.
type Request struct {
	Key string
	Op  record.Op
	// AtLeast is a revision at which the caller knows that the key's record was written, as
	// that of the hold which the operation is about. What is older proves nothing, also where
	// the engine has forgotten what it has seen.
	AtLeast uint64
	// Held is, of a release, whether the hold was handed out, was never to be converted, and is over: its turn
	// can be passed on before anything is written. Turns is, of an acquire in mode X, whether it can hold by a
	// turn. Both are for a Doer that passes requests on; this engine does not use them.
	Held, Turns bool
	// Guest, if it is not nil, makes this the request of another process, which may have it carried
	// out by somebody else as well. It is called right before each write that contains the request is
	// sent: whether this process is still entitled to. If not, the request ends with ErrNotEntitled.
	// Whatever becomes of a guest, this engine never takes it back: only who asked for it knows
	// whether it is wanted. It is not held back by the window of this process. It must be quick.
	Guest func() bool
	// Since is, of a guest that is to have an entry, a revision that was committed before its operation was sent anywhere. If
	// others have written the key after that it ends with ErrOvertaken, unless its entry stands in the record that is known.
	Since uint64
	// Prove has the outcome read off a record that was committed after the request came, by a write
	// that changes nothing if need be: whatever was sent for its id before, by anybody who
	// sends no more of it, can't be committed any more.
	Prove bool
	// Keeper, if it is not nil, is the lease of a plain exclusive request whose entry may be kept: it may be granted one
	// that another request with the same Keeper has left.
	Keeper   Keeper
	FailFast bool // end with ErrUnavailable at the first sign that no leader answers
	// Queued is called once, before Done, if the operation has to wait; nil if nobody wants to
	// know. Done is called with the outcome. No lock is held in either. They must be quick, and
	// may call Submit and Withdraw.
	Queued func(record.Place)
	Done   func(Outcome, error)
	// Via is for a Doer that passes requests on; this engine does not use it.
	Via any

	progress
}

// progress is how far a request is. It is guarded by the mutex of the request's key.
type progress struct {
	asked          time.Time // when it was submitted, if it has patience for a time or a Keeper, or is a guest
	fresh          bool      // the state was read after it was submitted
	attempted      bool      // a write that contained it was sent
	outcomeUnknown bool      // the outcome of such a write was unknown
	found          bool      // the last attempt's base contained the id
	maybeFound     bool      // so did the base of an attempt whose outcome was unknown
	heldBack       bool      // it was held back by the window
	owed           bool      // in the ledger: goes on without a caller

	over     bool // it needs no further attempt: it has its outcome, or was replaced by its undo
	answered bool // Done was called, or is about to be
	out      Outcome
	err      error
	next     *Request // in the list of those whose Done is to be called

	place   *record.Place
	told    bool // Queued was called, or is about to be
	telling bool // it has not returned yet, so Done has to wait

	after <-chan struct{} // closed when the request that is to be sent before was sent; nil: at once
	sent  func()          // lets the others go on that wait until this one was sent; nil if none waits

	in func(context.Context) context.Context // the context of its write; nil: as it is

	undoes *Request // the withdrawn request that is answered when this one is over
	cause  error    // of a withdrawal: what Done gets
}

// queues reports whether r, if it isn't granted at once, goes to the end of a queue: the window is
// for those. A try leaves no trace, and a conversion, an arrival or a condition's wait must not be
// kept from the record, since others may wait for it.
func (r *Request) queues() bool { return r.Op.Verb == record.OpAcquire && r.Guest == nil }

// passOn lets the one that is to be sent after r go on.
func (r *Request) passOn() {
	if r.sent != nil {
		r.sent()
	}
}

// withdrawn is the outcome of a request that was withdrawn for cause and whose undo has ended with
// out and err. What became of one that is Proven is read off the undo's record.
func (r *Request) withdrawn(cause error, out Outcome, err error) (Outcome, error) {
	if !r.Op.Proven() {
		return Outcome{}, cause
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	out, err = outcome(out.Record.Standing(&r.Op), out.Record, out.Revision)
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		refused.Cause = cause
	} else if err != nil {
		err = cause
	}
	return out, err
}

// Keeper is the lease that kept entries stand under, with what belongs to it.
type Keeper interface {
	// Keeps reports whether entries may be kept: the lease takes new acquires. Valid reports whether it is valid by
	// its holder's own clock, without which none is taken over. They are called with locks held.
	Keeps() bool
	Valid() bool
	// Ended says that an entry is kept no more: nobody used it, and it was let go; or it was found revoked
	// or removed, for err. No lock is held.
	Ended(key, id string, used bool, err error)
}
