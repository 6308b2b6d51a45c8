package coalesce

import (
	"errors"
	"slices"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// errPassed is why a release goes on though nobody waits for it.
var errPassed = errors.New("coalesce: the turn went on")

// judge has an acquire hold whose turn has come, if it still waits and nothing that is known contradicts: if one
// entry stood directly before another in any record that was committed, and has held and holds no more, the
// other's turn has come for good. All other turns are dropped. Called without the mutex.
func (r *Router) judge(k *call, o *outcome) {
	rec, rev, _ := r.engine.Known(k.key)
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	t := k.trip
	if t.answered || t.cause != nil || t.deaf || !t.req.Turns {
		return
	}
	if rev > o.rev {
		next, ok := rec.Behind(o.blocker, o.from)
		if !ok || next.ID != k.op.ID || next.Token != o.token {
			return
		}
	}
	t.turn = o.token
	c.stats.Turns++
	if t.call == k {
		t.call = nil
	}
	r.route(k.key).alone = 0
	r.answer(t, engine.Outcome{Entry: o.entry(&k.op), Revision: o.rev, Existed: true, Turn: true}, nil)
}

// passed answers a release whose turn went on: the hold is over, and the next may run. It goes on until an
// owner, or this process, has written it. Called with mu held.
func (r *Router) passed(k *call, o *outcome) {
	t := k.trip
	if t.call != k || !t.releases() || t.answered {
		return
	}
	t.passed, t.cause = true, errPassed
	r.passes[t.req.Key] = append(r.passes[t.req.Key], t)
	r.answer(t, engine.Outcome{Revision: o.rev, Existed: true}, nil)
}

// unpass forgets a release that is done, or that the engine carries through. Called with mu held.
func (r *Router) unpass(t *trip) {
	key := t.req.Key
	r.passes[key] = slices.DeleteFunc(r.passes[key], func(p *trip) bool { return p == t })
	if len(r.passes[key]) == 0 {
		delete(r.passes, key)
	}
}

// lead sends the key's releases that are not known to be done before what goes directly: else this process
// would meet its own holds, which have ended. Called with mu held.
func (r *Router) lead(key string) {
	all := r.passes[key]
	delete(r.passes, key)
	for _, t := range all {
		r.goDirect(t)
	}
}

// advance has a hold by a turn stand in the record as one, before what it is asked for goes there. What still
// waits takes no turn any more before it is stopped. Called with mu held.
func (r *Router) advance(q *engine.Request) {
	id := q.Op.Holder
	if q.Op.Verb == record.OpStopWaiting {
		id = q.Op.ID
	}
	t := r.asked[id]
	switch {
	case t == nil:
	case t.turn != 0:
		op := record.Op{Kind: record.KindLock, Verb: record.OpAdvance, ID: id, Lease: t.req.Op.Lease, Token: t.turn}
		r.client.due.submit(&engine.Request{Key: q.Key, Op: op, AtLeast: q.AtLeast, Done: func(_ engine.Outcome, err error) {
			if r.client.mu.Lock(); err == nil {
				r.settle(t)
			}
			r.client.unlock()
		}})
	case q.Op.Verb == record.OpStopWaiting:
		t.deaf = true
	}
}
