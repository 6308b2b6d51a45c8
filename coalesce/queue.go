package coalesce

import (
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// perKey is how many acquires of this process for one key are at the owner at most. The others wait
// in the process, in their order, as they do on the direct road: so a record stays small.
const perKey = 16

// queue is the acquires of this process for one key that take the road over the owner.
type queue struct {
	there int     // at the owner
	held  []*trip // held back
}

// enter sends an acquire to the owner, or holds it back. A try is never held back: it does not wait.
// Called with mu held.
func (r *Router) enter(t *trip) {
	if t.req.Op.Verb != record.OpAcquire {
		t.call = r.ask(t, t.req.Op)
		return
	}
	q := r.queues[t.req.Key]
	if q == nil {
		q = &queue{}
		r.queues[t.req.Key] = q
	}
	if q.there >= perKey && !r.cfg.Belt {
		t.held = true
		q.held = append(q.held, t)
		return
	}
	r.admit(q, t)
}

func (r *Router) admit(q *queue, t *trip) {
	q.there++
	t.queue = q
	t.call = r.ask(t, t.req.Op)
}

// leave takes in that an acquire has its outcome, and sends the next one. Called with mu held.
func (r *Router) leave(t *trip) {
	q := t.queue
	if q == nil {
		return
	}
	t.queue = nil
	q.there--
	for q.there < perKey && len(q.held) > 0 && r.client.now != nil {
		next := q.held[0]
		q.held = q.held[1:]
		next.held = false
		r.admit(q, next)
	}
	if q.there == 0 && len(q.held) == 0 {
		delete(r.queues, t.req.Key)
	}
}

// unhold takes a trip out of those held back, and reports whether it was one. Called with mu held.
func (r *Router) unhold(t *trip) bool {
	if !t.held {
		return false
	}
	t.held = false
	q := r.queues[t.req.Key]
	q.held = slices.DeleteFunc(q.held, func(h *trip) bool { return h == t })
	return true
}

// unholdAll has all that are held back go directly, in their order: the owner is lost. Called with mu held.
func (r *Router) unholdAll() {
	for _, q := range r.queues {
		for _, t := range slices.Clone(q.held) {
			r.goDirect(t)
		}
	}
}
