package coalesce

import (
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// perKey is how many acquires of this process for one key are at the owner at most. The others wait
// in this process in their order, as on the direct road, so that a record stays small.
const perKey = 16

// queue counts this process's acquires for one key on the coalesced road.
type queue struct {
	atOwner int     // sent to the owner, and without an outcome
	waiting []*trip // held back in this process
}

// admitOrHoldBack sends an acquire to the owner, or holds it back. It never holds back a try, since a try does not wait.
// Called with mu held.
func (r *Router) admitOrHoldBack(t *trip) {
	if t.req.Op.Verb != record.OpAcquire {
		t.call = r.sendToOwner(t, t.req.Op)
		return
	}
	q := r.queues[t.req.Key]
	if q == nil {
		q = &queue{}
		r.queues[t.req.Key] = q
	}
	if q.atOwner >= perKey && !r.cfg.Belt {
		t.heldBack = true
		q.waiting = append(q.waiting, t)
		return
	}
	r.admit(q, t)
}

func (r *Router) admit(q *queue, t *trip) {
	q.atOwner++
	t.queue = q
	t.call = r.sendToOwner(t, t.req.Op)
}

// admitNext removes an acquire that has its outcome from its queue, and sends the next one. Called with mu held.
func (r *Router) admitNext(t *trip) {
	q := t.queue
	if q == nil {
		return
	}
	t.queue = nil
	q.atOwner--
	for q.atOwner < perKey && len(q.waiting) > 0 && r.client.current != nil {
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		next.heldBack = false
		r.admit(q, next)
	}
	if q.atOwner == 0 && len(q.waiting) == 0 {
		delete(r.queues, t.req.Key)
	}
}

// removeHeldBack removes a trip from those held back, and reports whether it was one. Called with mu held.
func (r *Router) removeHeldBack(t *trip) bool {
	if !t.heldBack {
		return false
	}
	t.heldBack = false
	q := r.queues[t.req.Key]
	q.waiting = slices.DeleteFunc(q.waiting, func(h *trip) bool { return h == t })
	return true
}

// sendHeldBackDirect sends all acquires that are held back to the engine, in their order, because the owner is lost. Called with mu held.
func (r *Router) sendHeldBackDirect() {
	for _, q := range r.queues {
		for _, t := range slices.Clone(q.waiting) {
			r.goDirect(t)
		}
	}
}
