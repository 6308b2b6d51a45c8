package coalesce

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// trip is one request on its way, on one road or on both. It is guarded by the client's mutex.
type trip struct {
	req    *engine.Request // of who asked
	call   *call           // at the owner, nil if it is with none
	direct *engine.Request // at the engine, nil if it isn't there
	since  time.Time       // when it was asked for, or withdrawn
	// position is where it waits, as the owner said; 0 = not known.
	position  int
	overtaken int // how often others were ahead of it at the owner

	queue *queue // where it counts as being at the owner
	held  bool   // back in this process

	// Of an acquire.
	seen       uint64  // a revision that was committed before it was sent anywhere
	open       []*call // that owners may still write
	wentDirect bool
	deaf       bool   // it takes no turn
	turn       uint64 // its ticket, if it holds by a turn, as long as the record may not say so

	passed   bool  // of a release: the turn went on, and it is answered
	carried  bool  // of a release: the engine carries it through
	missed   bool  // an owner was lost with it, which may have done it
	released bool  // of a release: one road has done it
	existed  bool  // likewise: one road found something
	cause    error // of its withdrawal
	told     bool
	telling  bool // Queued is being called
	answered bool
	out      engine.Outcome
	err      error
}

func (t *trip) releases() bool { return t.req.Op.Verb == record.OpRelease }

// ask sends an operation of a trip to the owner of this moment. Called with mu held.
func (r *Router) ask(t *trip, op record.Op) *call {
	k := &call{term: r.client.now, trip: t}
	k.item = item{key: t.req.Key, op: op, failFast: t.req.FailFast, tell: t.req.Queued != nil}
	if op.Verb == record.OpRelease {
		k.held = t.req.Held
	} else {
		if !t.elsewhere() {
			t.seen = r.seen()
		}
		k.turns, k.since = t.req.Turns, t.seen
		t.open = append(t.open, k)
	}
	r.client.submit(k)
	return k
}

// elsewhere reports whether an acquire was sent somewhere and may still be written there, or have been.
func (t *trip) elsewhere() bool { return t.wentDirect || len(t.open) > 0 }

// wanted reports whether a call is to be sent again if it got lost.
func (k *call) wanted() bool {
	return k.op.Verb == record.OpRelease || !k.trip.answered && k.trip.cause == nil
}

// goDirect has the engine carry a trip out, beside whoever has it already. Called with mu held.
func (r *Router) goDirect(t *trip) {
	carried := t.releases() && t.cause != nil // for nobody
	if !t.releases() {
		r.lead(t.req.Key)
		t.wentDirect = true
	}
	if t.direct != nil || t.carried || t.answered && !carried {
		r.review(t)
		return
	}
	t.carried = carried
	q := t.req
	r.unhold(t)
	d := &engine.Request{Key: q.Key, Op: q.Op, AtLeast: q.AtLeast, Held: q.Held, FailFast: q.FailFast, Prove: q.Prove}
	if q.Queued != nil {
		d.Queued = func(p record.Place) {
			r.client.mu.Lock()
			r.tell(t, p)
			r.client.unlock()
		}
	}
	d.Done = func(out engine.Outcome, err error) {
		r.client.mu.Lock()
		defer r.client.unlock()
		if t.direct == d {
			t.direct = nil
			r.arrived(t, out, err)
		}
	}
	t.direct = d
	r.client.due.submit(d)
	if carried {
		r.client.due.add(action{withdraw: d, cause: t.cause})
	}
}

// arrived takes in what the engine has made of a trip. Called with mu held.
func (r *Router) arrived(t *trip, out engine.Outcome, err error) {
	switch {
	case t.releases() && err == nil:
		r.releasedOnce(t, out, out.Existed)
	case t.cause != nil: // its entry is gone
		r.endWithdrawal(t)
	default:
		r.answer(t, out, err)
	}
}

// concluded takes in what an owner says of a call. Called with mu held.
func (r *Router) concluded(k *call, o *outcome) {
	t := k.trip
	switch o.kind {
	case turn:
		r.client.due.add(action{turn: k, says: *o})
		return
	case passed:
		r.passed(k, o)
		return
	}
	if k.op.Verb == record.OpRelease {
		switch {
		case t.call != k:
		case o.kind != done:
			r.lost(k)
		case t.releases():
			t.call = nil
			t.missed = t.missed || k.sends > 1
			r.releasedOnce(t, engine.Outcome{Revision: o.rev, Existed: o.existed}, o.existed)
		default:
			t.call = nil
			r.settle(t)
			r.endWithdrawal(t)
		}
		return
	}
	if o.kind == queued {
		t.position = o.position
		r.tell(t, o.place())
		return
	}
	if !o.uncertain {
		t.open = slices.DeleteFunc(t.open, func(c *call) bool { return c == k })
		if t.answered && len(t.open) == 0 {
			r.settle(t) // the record says that it holds
		}
	}
	if t.call != k || t.cause != nil {
		return
	}
	t.call = nil
	switch {
	case o.kind == granted:
		rt := r.route(k.key)
		if rt.alone++; !o.alone {
			rt.alone = 0
		}
		r.answer(t, engine.Outcome{Entry: o.entry(&k.op), Revision: o.rev, Existed: true}, nil)
	case o.code == codeOvertaken && r.askAgain(t, o):
	case o.kind == refused && o.verdict == record.QueueFull:
		r.goDirect(t) // there it may wait in this process
	case o.kind == refused:
		r.answer(t, engine.Outcome{}, o.refusal())
	case o.kind == gone:
		r.answer(t, engine.Outcome{}, engine.ErrGone)
	default:
		r.goDirect(t)
	}
}

// seen returns a revision of the bucket that is committed. Called with mu held.
func (r *Router) seen() uint64 { return max(r.engine.Seen(), r.client.seen) }

// askAgain sends an acquire to the owner once more that others were ahead of with a write of the key, if that can't have been its own
// on another road. It reports false where the direct road is to be taken. Called with mu held.
func (r *Router) askAgain(t *trip, o *outcome) bool {
	if o.uncertain || t.elsewhere() || r.client.now == nil || t.overtaken >= mostOvertaken {
		return false
	}
	t.overtaken++
	t.call = r.ask(t, t.req.Op)
	return true
}

// mostOvertaken is how often an acquire is sent to the owner again because others wrote the key.
const mostOvertaken = 3

// lost is told that what an owner does with a call is not known. Called with mu held.
func (r *Router) lost(k *call) {
	t := k.trip
	if t.call != k {
		return
	}
	t.call, t.missed = nil, true
	r.client.stats.Fallbacks++
	switch {
	case t.cause != nil && !t.releases():
		r.undoDirect(t)
	case t.released && t.direct == nil:
		r.releasedOnce(t, engine.Outcome{}, false)
	default:
		r.goDirect(t)
	}
}

// releasedOnce takes in that a release was done on one road, or that the owner was lost, or silent for long,
// after that. Called with mu held.
func (r *Router) releasedOnce(t *trip, out engine.Outcome, existed bool) {
	t.released, t.existed = true, t.existed || existed
	if !t.existed && !t.missed && (t.call != nil || t.direct != nil) {
		return // the other road may have found it
	}
	if t.call != nil {
		if time.Since(t.since) < r.patience(t) {
			return // the owner is to write it once more: a stamp that is taken after the release would be void
		}
		delete(t.call.term.calls, t.call.name())
		t.call = nil
	}
	out.Existed = t.existed || t.missed
	r.answer(t, out, nil)
}

// answer ends a trip for who asked. Called with mu held.
func (r *Router) answer(t *trip, out engine.Outcome, err error) {
	if t.answered {
		r.review(t)
		return
	}
	t.answered, t.out, t.err = true, out, err
	r.unhold(t)
	r.leave(t)
	if !t.telling {
		r.client.due.add(action{answer: t})
	}
	if !t.releases() {
		r.entered(t)
	}
	r.review(t)
}

// entered takes in that an acquire has its outcome: what the other road makes of it is not wanted. Called with mu held.
func (r *Router) entered(t *trip) {
	if d := t.direct; d != nil {
		t.direct = nil
		r.client.due.add(action{withdraw: d, cause: engine.ErrElsewhere})
		if t.err != nil {
			r.client.due.add(action{undo: d}) // also if it was granted there just now
		}
	}
	switch {
	case t.err != nil && len(t.open) > 0:
		r.giveUp(t)
	case t.turn == 0: // a hold by a turn may not stand in the record yet
		r.settle(t)
	}
}

// review forgets a trip that is over. Called with mu held.
func (r *Router) review(t *trip) {
	if t.answered && t.direct == nil && (t.call == nil || !t.releases()) {
		delete(r.trips, t)
		if t.passed {
			r.unpass(t)
		}
		r.rest()
	}
}

// tell says once that a trip has to wait. Called with mu held.
func (r *Router) tell(t *trip, p record.Place) {
	if t.told || t.answered || t.req.Queued == nil {
		return
	}
	t.told, t.telling = true, true
	r.client.due.add(action{tell: t, place: p})
}

// withdraw is Withdraw. Called with mu held.
func (r *Router) withdraw(t *trip, cause error) {
	t.cause = cause
	if t.releases() {
		// It is carried through.
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
	if r.unhold(t) {
		r.answer(t, engine.Outcome{}, cause)
		return
	}
	if t.since, t.position = time.Now(), 0; t.call != nil && t.call.term == r.client.now {
		t.call = r.ask(t, t.undo())
	} else {
		r.undoDirect(t)
	}
}

// undoDirect takes a withdrawn trip back on the direct road. Called with mu held.
func (r *Router) undoDirect(t *trip) {
	d := r.release(t)
	d.Done = func(_ engine.Outcome, err error) {
		r.client.mu.Lock()
		defer r.client.unlock()
		if t.direct = nil; err == nil {
			r.settle(t)
		}
		r.endWithdrawal(t)
	}
	t.call, t.direct = nil, d
	r.client.due.submit(d)
}

// endWithdrawal answers a withdrawn trip once no road is left on which it may stand. Called with mu held.
func (r *Router) endWithdrawal(t *trip) {
	if t.call == nil && t.direct == nil {
		r.answer(t, engine.Outcome{}, t.cause)
	}
}

// place is where the owner says that an operation waits.
func (o *outcome) place() record.Place {
	p := record.Place{Position: o.position}
	p.Blocker, _ = o.inRecord()
	return p
}

// inRecord returns the entry that stands in the way, and the record it is in.
func (o *outcome) inRecord() (e record.Entry, rec *record.Record) {
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

// refusal is the error that the owner's engine gave.
func (o *outcome) refusal() error {
	e := &engine.RefusedError{Uncertain: o.uncertain}
	e.Result = record.Result{Verdict: o.verdict, Have: o.have, Limit: o.limit, Wait: o.wait, Position: o.position}
	e.Blocker, e.Record = o.inRecord()
	return e
}
