package coalesce

import (
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// actions are calls that are due when the client's mutex is let go, in their order.
type actions struct{ list []action }

// action is one of them: whichever field is set.
type action struct {
	submit   *engine.Request
	withdraw *engine.Request
	cause    error
	undo     *engine.Request // in the background
	tell     *trip
	place    record.Place
	answer   *trip
	turn     *call // to be judged by
	says     outcome
}

func (a *actions) add(what action) { a.list = append(a.list, what) }

func (a *actions) submit(q *engine.Request) { a.add(action{submit: q}) }

// do makes the calls. Called without the mutex.
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
			r.judge(what.turn, &what.says)
		case what.answer != nil:
			what.answer.req.Done(what.answer.out, what.answer.err)
		case what.tell != nil:
			t := what.tell
			t.req.Queued(what.place)
			r.client.mu.Lock()
			t.telling = false
			answered := t.answered
			r.client.mu.Unlock()
			if answered {
				t.req.Done(t.out, t.err)
			}
		}
	}
}
