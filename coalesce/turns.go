package coalesce

import (
	"errors"
	"slices"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// errPassed is the cause for which a release whose turn was passed goes on without a caller.
var errPassed = errors.New("coalesce: the turn went on")

// takeTurn answers an acquire with a hold by a turn, if the acquire still waits and its turn is valid. The turn is valid if in
// some committed record the acquire's entry was directly behind an entry that has held and has ended. If this process knows a newer
// record than the owner named, that record must still show both entries in this order; otherwise the turn is dropped. The caller does not hold
// the mutex.
func (r *Router) takeTurn(k *call, o *outcome) {
	rec, rev, _ := r.engine.Known(k.key)
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	t := k.trip
	if t.answered || t.cause != nil || t.refusesTurns || !t.req.Turns {
		return
	}
	if rev > o.rev {
		next, ok := rec.Behind(o.blocker, o.endedToken)
		if !ok || next.ID != k.op.ID || next.Token != o.token {
			return
		}
	}
	t.turnToken = o.token
	c.stats.Turns++
	if t.call == k {
		t.call = nil
	}
	r.route(k.key).alone = 0
	r.answer(t, engine.Outcome{Entry: o.entry(&k.op), Revision: o.rev, Existed: true, Turn: true}, nil)
}

// turnPassed answers a release whose turn was passed: the hold has ended, and the next waiter may hold. The release goes on until an
// owner or this process has written it. Called with mu held.
func (r *Router) turnPassed(k *call, o *outcome) {
	t := k.trip
	if t.call != k || !t.isRelease() || t.answered {
		return
	}
	t.turnPassed, t.cause = true, errPassed
	r.passedReleases[t.req.Key] = append(r.passedReleases[t.req.Key], t)
	r.answer(t, engine.Outcome{Revision: o.rev, Existed: true}, nil)
}

// forgetPassed removes a release that is done, or that the engine completes. Called with mu held.
func (r *Router) forgetPassed(t *trip) {
	key := t.req.Key
	r.passedReleases[key] = slices.DeleteFunc(r.passedReleases[key], func(p *trip) bool { return p == t })
	if len(r.passedReleases[key]) == 0 {
		delete(r.passedReleases, key)
	}
}

// sendReleasesFirst sends the key's passed releases to the engine before a request that takes the direct road. Otherwise this process
// would meet its own holds that have ended. Called with mu held.
func (r *Router) sendReleasesFirst(key string) {
	all := r.passedReleases[key]
	delete(r.passedReleases, key)
	for _, t := range all {
		r.goDirect(t)
	}
}

// recordTurn has a hold by a turn written into the record before an operation on that hold takes the direct road. If the operation
// stops a waiting acquire, that acquire takes no turn from then on. Called with mu held.
func (r *Router) recordTurn(q *engine.Request) {
	id := q.Op.Holder
	if q.Op.Verb == record.OpStopWaiting {
		id = q.Op.ID
	}
	t := r.acquires[id]
	switch {
	case t == nil:
	case t.turnToken != 0:
		op := record.Op{Kind: record.KindLock, Verb: record.OpAdvance, ID: id, Lease: t.req.Op.Lease, Token: t.turnToken}
		r.client.due.submit(&engine.Request{Key: q.Key, Op: op, AtLeast: q.AtLeast, Done: func(_ engine.Outcome, err error) {
			if r.client.mu.Lock(); err == nil {
				r.forgetOpenCalls(t)
			}
			r.client.unlock()
		}})
	case q.Op.Verb == record.OpStopWaiting:
		t.refusesTurns = true
	}
}
