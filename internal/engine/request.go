package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Doer carries out requests: an engine in this process, or a client of a process that has one.
type Doer interface {
	// Submit takes requests of one moment, for any keys. It never blocks. Each request's Done
	// is called exactly once: from within Submit, or later from a goroutine of the Doer.
	Submit(reqs ...*Request)
	// Withdraw says that the caller does not wait for the request any more. The Doer undoes what the request wrote, or may
	// still write, and then calls Done, at the latest when the lease ends: with
	// cause, or for an operation that is Proven with its real outcome. The Doer completes a request that
	// can't be undone in the background, and at once calls Done with ErrUnconfirmed and cause. It ignores a request that is done.
	//
	// With ErrElsewhere as cause nothing is undone: what was written stays, and
	// nothing more is written for the request except by a write that is under way.
	Withdraw(r *Request, cause error)
}

// Request is an operation on the record of a key. It is used once. The engine owns it from Submit until Done is called.
type Request struct {
	Key string
	Op  record.Op
	// AtLeast is a revision at which the caller knows that the key's record was written, such as
	// the revision of the hold that a release is about. An older state proves nothing, even if
	// the engine has forgotten which revisions it has seen.
	AtLeast uint64
	// Held is, of a release, whether the hold was handed out, can have no conversion, and is over: then its turn
	// can be passed on before anything is written. Turns is, of an acquire in mode X, whether it can hold by a
	// turn. Both are for a Doer that forwards requests; this engine does not use them.
	Held, Turns bool
	// Guest, if not nil, makes this a guest: a request of another process, which may also send it to
	// other processes. The engine calls Guest right before it sends a write that contains the request, to learn
	// whether this process is still entitled to write it. If not, the request ends with ErrNotEntitled.
	// The engine never undoes a guest: only the process that asked for it knows
	// whether it needs it. The window of this process does not hold a guest back. Guest must be quick.
	Guest func() bool
	// Since is, of a guest that adds an entry, a revision that was committed before its operation was first sent. If
	// others have written the key after Since, the guest ends with ErrOvertaken, unless the known record has its entry.
	Since uint64
	// Prove has the outcome read off a record that was committed after the request came; if need be the engine
	// writes the same record again. Then no earlier write for the request's id can be committed any more,
	// if its senders send nothing more for that id.
	Prove bool
	// Keeper, if not nil, is the lease of a plain exclusive request whose entry may be kept: the request may be granted an
	// entry that another request with the same Keeper has left.
	Keeper   Keeper
	FailFast bool // end with ErrUnavailable at the first sign that no leader answers
	// Queued, if not nil, is called once, before Done, if the operation has to wait. Done is called with the outcome.
	// Both are called with no lock held. They must be quick, and may call Submit and Withdraw.
	Queued func(record.Place)
	Done   func(Outcome, error)
	// Via is for a Doer that forwards requests; this engine does not use it.
	Via any

	progress
}

// progress is the engine's state of a request. The mutex of the request's key guards it.
type progress struct {
	submitted      time.Time // when it was submitted; set only with a Patience, a Keeper or a Guest
	readSince      bool      // the state was read after the request was submitted
	attempted      bool      // a write that contained the request was sent
	outcomeUnknown bool      // such a write has an unknown outcome
	found          bool      // the base of the last attempt contained the id
	maybeFound     bool      // the base of an attempt with an unknown outcome contained the id
	inLedger       bool      // it is in the ledger and goes on without a caller

	finished bool // it needs no further attempt: it has its outcome, or its undo replaces it
	answered bool // Done was called, or is about to be
	out      Outcome
	err      error
	next     *Request // in the list of requests whose Done is due

	place         *record.Place
	queuedDue     bool // Queued was called, or is about to be
	queuedRunning bool // Queued has not returned yet, so Done has to wait

	sendAfter <-chan struct{} // closed when the request before it was sent; nil: send at once
	markSent  func()          // unblocks the requests that wait until this one was sent; nil if none does

	wrapCtx func(context.Context) context.Context // makes the context of its write; nil: no change

	undoes *Request // the withdrawn request that is answered when this one has finished
	cause  error    // of a withdrawal: the error for Done
}

// queues reports whether r goes to the end of a queue if it isn't granted at once. The window is only
// for such requests. A try never waits. A conversion, an arrival or a condition's wait must reach
// the record, since others may wait for it.
func (r *Request) queues() bool { return r.Op.Verb == record.OpAcquire && r.Guest == nil }

// unblockNext lets the request after r be sent.
func (r *Request) unblockNext() {
	if r.markSent != nil {
		r.markSent()
	}
}

// withdrawn returns the outcome of a request that was withdrawn for cause and whose undo has ended with
// out and err. The outcome of a Proven operation is read off the undo's record.
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

// Keeper is the lease of kept entries, with its callbacks.
type Keeper interface {
	// Keeps reports whether entries may be kept: the lease takes new acquires. Valid reports whether the lease is valid by
	// its holder's own clock; without that no entry is passed on. Both are called with locks held.
	Keeps() bool
	Valid() bool
	// Ended says that an entry is not kept any more: it was unused and is being released; or it was found revoked
	// or removed, which err says. It is called with no lock held.
	Ended(key, id string, used bool, err error)
}

// Outcome is what a committed record says about an operation.
type Outcome struct {
	Entry    *record.Entry  // an acquire's or a conversion's: the grant, with its token, or nil; not to be modified
	Revision uint64         // of the record the outcome was read from
	Record   *record.Record // that record, nil if it was deleted; not to be modified
	// Existed is whether a release, cancel or removal found something to remove,
	// in this attempt or in an earlier one with an unknown outcome.
	Existed bool
	Turn    bool // the operation holds by a turn: the record may still show it as waiting
	// Kept is whether the entry may be kept: the caller ends its use with Engine.Leave. Uses counts the holds of the entry so far.
	Kept bool
	Uses uint64
}

// outcome returns the outcome of an operation that does not wait in the record at rev.
func outcome(st record.State, rec *record.Record, rev uint64) (Outcome, error) {
	switch st.Standing {
	case record.Granted:
		return Outcome{Entry: st.Entry, Revision: rev, Existed: true, Record: rec}, nil
	case record.Refused:
		return Outcome{}, &RefusedError{Result: record.Result{Verdict: st.Why}, Record: rec}
	}
	return Outcome{}, ErrGone
}
