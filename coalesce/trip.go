package coalesce

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// trip is one request that is under way: on the coalesced road, on the direct road, or on both. The client's mutex guards it.
type trip struct {
	req       *engine.Request // the caller's request
	number    uint64          // in the order of the requests
	call      *call           // its operation at the owner; nil: none
	direct    *engine.Request // its request at the engine; nil: none
	startedAt time.Time       // time of the request, or of its withdrawal
	// position is its place in the queue, as the owner last reported it; 0: unknown.
	position  int
	overtaken int // how often the owner did not write it because others had written the key

	queue      *queue // the queue that counts it as sent
	unanswered bool   // the owner has not answered anything yet
	heldBack   bool   // it waits in this process for a place at the owner

	// Only for an acquire:
	sinceRev     uint64  // a revision that was committed before it was first sent
	openCalls    []*call // the calls that an owner may still write
	wentDirect   bool    // it was sent to the engine, or an earlier request with its id was sent anywhere
	refusesTurns bool    // it was asked to stop waiting, so it takes no turn
	turnToken    uint64  // its token, if it holds by a turn that the record may not show yet

	turnPassed      bool  // a release: the turn was passed, and the caller is answered
	inBackground    bool  // a release: the engine completes it without a caller
	maybeDone       bool  // a release: an owner that did not answer may have done it
	released        bool  // a release: one road has done it
	found           bool  // a release: one road found the entry
	cause           error // of the withdrawal; nil: not withdrawn
	reportedQueued  bool  // Queued was called, or is about to be
	reportingQueued bool  // Queued has not returned yet, so Done has to wait
	answered        bool
	out             engine.Outcome
	err             error
}

func (t *trip) isRelease() bool { return t.req.Op.Verb == record.OpRelease }

// sendToOwner sends an operation of a trip to the present owner. Called with mu held.
func (r *Router) sendToOwner(t *trip, op record.Op) *call {
	k := &call{term: r.client.current, trip: t}
	k.item = item{key: t.req.Key, op: op, failFast: t.req.FailFast, wantsPlace: t.req.Queued != nil}
	if op.Verb == record.OpRelease {
		k.passesTurn = t.req.Held
	} else {
		switch {
		case t.mayBeWritten():
		case t.queue != nil:
			t.sinceRev = t.queue.sinceRev
		default:
			t.sinceRev = r.newestRev()
		}
		k.takesTurns, k.sinceRev = t.req.Turns, t.sinceRev
		t.openCalls = append(t.openCalls, k)
	}
	r.client.submit(k)
	return k
}

// mayBeWritten reports whether an acquire was sent on a road on which it may have been written, or may still be.
func (t *trip) mayBeWritten() bool { return t.wentDirect || len(t.openCalls) > 0 }

// shouldResend reports whether a lost call is sent again.
func (k *call) shouldResend() bool {
	return k.op.Verb == record.OpRelease || !k.trip.answered && k.trip.cause == nil
}

// goDirect sends a trip to the engine. An owner may have it at the same time. Called with mu held.
func (r *Router) goDirect(t *trip) {
	carried := t.isRelease() && t.cause != nil // it has no caller any more
	if !t.isRelease() {
		r.sendReleasesFirst(t.req.Key)
		if q := t.queue; q != nil {
			for q.direct = true; len(q.waiting) > 0 && q.waiting[0].number < t.number; {
				r.goDirect(q.waiting[0])
			}
		}
		t.wentDirect = true
	}
	if t.direct != nil || t.inBackground || t.answered && !carried {
		r.forgetIfOver(t)
		return
	}
	t.inBackground = carried
	q := t.req
	r.removeHeldBack(t)
	d := &engine.Request{Key: q.Key, Op: q.Op, AtLeast: q.AtLeast, Held: q.Held, FailFast: q.FailFast, Prove: q.Prove}
	if q.Queued != nil || t.unanswered {
		d.Queued = func(p record.Place) {
			r.client.mu.Lock()
			defer r.client.unlock()
			r.noteAnswer(t)
			r.reportQueued(t, p)
		}
	}
	d.Done = func(out engine.Outcome, err error) {
		r.client.mu.Lock()
		defer r.client.unlock()
		if t.direct == d {
			t.direct = nil
			r.engineAnswered(t, out, err)
		}
	}
	t.direct = d
	r.client.due.submit(d)
	if carried {
		r.client.due.add(action{withdraw: d, cause: t.cause})
	}
}

// engineAnswered handles the engine's outcome of a trip. Called with mu held.
func (r *Router) engineAnswered(t *trip, out engine.Outcome, err error) {
	switch {
	case t.isRelease() && err == nil:
		r.noteReleased(t, out, out.Existed)
	case t.cause != nil: // withdrawn, and its entry is gone
		r.endWithdrawal(t)
	default:
		r.answer(t, out, err)
	}
}

// ownerAnswered handles an owner's outcome of a call. Called with mu held.
func (r *Router) ownerAnswered(k *call, o *outcome) {
	t := k.trip
	switch o.kind {
	case turnCame:
		r.client.due.add(action{turn: k, outcome: *o})
		return
	case turnPassed:
		r.turnPassed(k, o)
		return
	}
	if k.op.Verb == record.OpRelease {
		switch {
		case t.call != k:
		case o.kind != done:
			r.callLost(k)
		case t.isRelease():
			t.call = nil
			t.maybeDone = t.maybeDone || k.sends > 1
			r.noteReleased(t, engine.Outcome{Revision: o.rev, Existed: o.existed}, o.existed)
		default:
			t.call = nil
			r.forgetOpenCalls(t)
			r.endWithdrawal(t)
		}
		return
	}
	if o.kind == queued {
		t.position = o.position
		r.reportQueued(t, o.place())
		r.noteAnswer(t)
		return
	}
	if !o.uncertain {
		t.openCalls = slices.DeleteFunc(t.openCalls, func(c *call) bool { return c == k })
		if t.answered && len(t.openCalls) == 0 {
			r.forgetOpenCalls(t) // the record shows its hold
		}
	}
	if t.cause != nil || t.call != k && o.kind != granted {
		r.noteAnswer(t)
		return
	}
	t.call = nil
	if o.code == codeOvertaken && r.sendAgain(t, o) {
		return
	}
	switch {
	case o.kind == granted:
		rt := r.route(k.key)
		if rt.alone++; !o.alone {
			rt.alone = 0
		}
		r.answer(t, engine.Outcome{Entry: o.entry(&k.op), Revision: o.rev, Existed: true}, nil)
	case o.kind == refused && o.verdict == record.QueueFull:
		r.goDirect(t) // the direct road can keep it waiting in this process
	case o.kind == refused:
		r.answer(t, engine.Outcome{}, o.refusal())
	case o.kind == gone:
		r.answer(t, engine.Outcome{}, engine.ErrGone)
	default:
		r.goDirect(t)
	}
}

// newestRev returns the highest revision of the bucket that this process knows to be committed. Called with mu held.
func (r *Router) newestRev() uint64 { return max(r.engine.Seen(), r.client.newestRev) }

// sendAgain sends an acquire to the owner again after others have written the key. It does so only if no other road can have
// written that acquire. It returns false if the acquire has to take the direct road. Called with mu held.
func (r *Router) sendAgain(t *trip, o *outcome) bool {
	if t.direct != nil && !t.unanswered { // it waits in a record that the owner had not read yet
		if t.overtaken++; t.overtaken <= maxOvertaken {
			r.rejoin(t)
		}
		return true
	}
	if o.uncertain || t.mayBeWritten() || r.client.current == nil {
		return false
	}
	t.overtaken++
	if q := t.queue; q != nil { // before all that were asked for later
		t.heldBack, q.overtaken = true, true
		i, _ := slices.BinarySearchFunc(q.waiting, t, inOrder)
		q.waiting = slices.Insert(q.waiting, i, t)
		r.leaveQueue(t)
	} else if t.overtaken <= maxOvertaken {
		t.call = r.sendToOwner(t, t.req.Op)
	}
	return t.heldBack || t.call != nil
}

// maxOvertaken is how often an acquire is sent to the owner again because others have written the key. Then it goes
// direct.
const maxOvertaken = 3

// callLost is called when it is unknown what an owner does with a call. Called with mu held.
func (r *Router) callLost(k *call) {
	t := k.trip
	if t.call != k {
		return
	}
	t.call, t.maybeDone = nil, true
	r.client.stats.Fallbacks++
	switch {
	case t.cause != nil && !t.isRelease():
		r.undoDirect(t)
		r.noteAnswer(t)
	case t.released && t.direct == nil:
		r.noteReleased(t, engine.Outcome{}, false)
	default:
		r.goDirect(t)
	}
}

// noteReleased is called when a release was done on one road, and again when the owner was lost or silent for too
// long after that. It answers the release unless the other road has to be waited for. Called with mu held.
func (r *Router) noteReleased(t *trip, out engine.Outcome, existed bool) {
	t.released, t.found = true, t.found || existed
	if !t.found && !t.maybeDone && (t.call != nil || t.direct != nil) {
		return // the other road may have found the entry
	}
	if t.call != nil {
		if time.Since(t.startedAt) < r.ownerTimeout(t) {
			return // the owner may still write the key, and that write would overtake an acquire that is sent now
		}
		delete(t.call.term.calls, t.call.name())
		t.call = nil
	}
	out.Existed = t.found || t.maybeDone
	r.answer(t, out, nil)
}

// answer ends a trip and calls Done of its request, once. Called with mu held.
func (r *Router) answer(t *trip, out engine.Outcome, err error) {
	if t.answered {
		r.forgetIfOver(t)
		return
	}
	t.answered, t.out, t.err = true, out, err
	r.removeHeldBack(t)
	r.leaveQueue(t)
	if !t.reportingQueued {
		r.client.due.add(action{answer: t})
	}
	if !t.isRelease() {
		r.acquireEnded(t)
	}
	r.forgetIfOver(t)
}

// acquireEnded cleans up after an acquire that has its outcome: a grant on the other road is not needed. Called with mu held.
func (r *Router) acquireEnded(t *trip) {
	if d := t.direct; d != nil {
		t.direct = nil
		r.client.due.add(action{withdraw: d, cause: engine.ErrElsewhere})
		if t.err != nil {
			r.client.due.add(action{undo: d}) // it may have been granted on the direct road just now
		}
	}
	switch {
	case t.err != nil && len(t.openCalls) > 0:
		r.takeBack(t)
	case t.turnToken == 0: // otherwise the record may not show the hold yet
		r.forgetOpenCalls(t)
	}
}

// forgetIfOver removes a trip that is answered and not needed on either road. Called with mu held.
func (r *Router) forgetIfOver(t *trip) {
	if t.answered && t.direct == nil && (t.call == nil || !t.isRelease()) {
		delete(r.trips, t)
		if t.turnPassed {
			r.forgetPassed(t)
		}
		r.updateHasWork()
	}
}

// reportQueued calls Queued of a trip's request, once. Called with mu held.
func (r *Router) reportQueued(t *trip, p record.Place) {
	if t.reportedQueued || t.answered || t.req.Queued == nil {
		return
	}
	t.reportedQueued, t.reportingQueued = true, true
	r.client.due.add(action{reportQueued: t, place: p})
}

// withdraw does the work of Withdraw for a trip. Called with mu held.
func (r *Router) withdraw(t *trip, cause error) {
	t.cause = cause
	if t.isRelease() {
		// A release is completed in the background.
		if t.direct != nil {
			r.client.due.add(action{withdraw: t.direct, cause: cause})
		}
		r.answer(t, engine.Outcome{}, fmt.Errorf("%w: %w", engine.ErrUnconfirmed, cause))
		return
	}
	if d := t.direct; d != nil {
		t.direct = nil
		r.client.due.add(action{withdraw: d, cause: engine.ErrElsewhere})
	}
	if r.removeHeldBack(t) {
		r.answer(t, engine.Outcome{}, cause)
		return
	}
	if t.startedAt, t.position = time.Now(), 0; t.call != nil && t.call.term == r.client.current {
		t.call = r.sendToOwner(t, t.undoOp())
	} else {
		r.undoDirect(t)
	}
}

// undoDirect releases a withdrawn acquire on the direct road. Called with mu held.
func (r *Router) undoDirect(t *trip) {
	d := r.releaseRequest(t)
	d.Done = func(_ engine.Outcome, err error) {
		r.client.mu.Lock()
		defer r.client.unlock()
		if t.direct = nil; err == nil {
			r.forgetOpenCalls(t)
		}
		r.endWithdrawal(t)
	}
	t.call, t.direct = nil, d
	r.client.due.submit(d)
}

// endWithdrawal answers a withdrawn acquire once neither road works on its undo. Called with mu held.
func (r *Router) endWithdrawal(t *trip) {
	if t.call == nil && t.direct == nil {
		r.answer(t, engine.Outcome{}, t.cause)
	}
}

// place returns the place in the queue that the owner has reported.
func (o *outcome) place() record.Place {
	p := record.Place{Position: o.position}
	p.Blocker, _ = o.blockerEntry()
	return p
}

// blockerEntry returns the blocking entry, and the record that contains it.
func (o *outcome) blockerEntry() (e record.Entry, rec *record.Record) {
	if len(o.record) == 0 {
		return e, nil
	}
	rec, err := record.Decode(bytes.Clone(o.record))
	if err != nil {
		return e, nil
	}
	for _, list := range [][]record.Entry{rec.Holders, rec.Waiters} {
		for i := range list {
			if list[i].ID == o.blocker {
				return list[i], rec
			}
		}
	}
	return e, rec
}

// refusal returns the error of the owner's engine.
func (o *outcome) refusal() error {
	e := &engine.RefusedError{Uncertain: o.uncertain}
	e.Result = record.Result{Verdict: o.verdict, Have: o.have, Limit: o.limit, Wait: o.wait, Position: o.position}
	e.Blocker, e.Record = o.blockerEntry()
	return e
}
