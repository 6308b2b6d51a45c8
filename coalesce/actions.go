package coalesce

import (
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// actions are calls to make, in this order, once the client's mutex is unlocked.
type actions struct{ list []action }

// action is one call. The fields that are set say which.
type action struct {
	submit       *engine.Request
	withdraw     *engine.Request
	cause        error
	undo         *engine.Request // in the background
	reportQueued *trip           // call Queued of its request with place
	place        record.Place
	answer       *trip // call Done of its request
	turn         *call // the acquire that outcome gives a turn to
	outcome      outcome
}

func (a *actions) add(what action) { a.list = append(a.list, what) }

func (a *actions) submit(q *engine.Request) { a.add(action{submit: q}) }

// do makes the calls. The caller does not hold the mutex.
func (a *actions) do(r *Router) {
	for i := range a.list {
		switch what := &a.list[i]; {
		case what.submit != nil:
			r.engine.Submit(what.submit)
		case what.withdraw != nil:
			r.engine.Withdraw(what.withdraw, what.cause)
		case what.undo != nil:
			r.engine.UndoInBackground(what.undo.Key, what.undo.Op, what.undo.AtLeast)
		case what.turn != nil:
			r.takeTurn(what.turn, &what.outcome)
		case what.answer != nil:
			what.answer.req.Done(what.answer.out, what.answer.err)
		case what.reportQueued != nil:
			t := what.reportQueued
			t.req.Queued(what.place)
			r.client.mu.Lock()
			t.reportingQueued = false
			answered := t.answered
			r.client.mu.Unlock()
			if answered {
				t.req.Done(t.out, t.err)
			}
		}
	}
}
