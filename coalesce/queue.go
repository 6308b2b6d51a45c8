package coalesce

import (
	"cmp"
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// perKey is how many acquires of this process for one key are at the owner at most. The others wait
// in this process in their order, as on the direct road, so that a record stays small.
const perKey = 16

// queue counts this process's acquires for one key on the coalesced road.
type queue struct {
	atOwner    int     // sent to the owner, and without an outcome
	unanswered int     // of these, the owner has not answered anything yet
	sinceRev   uint64  // these were sent with it: if one is overtaken, those that were sent later are, too
	overtaken  bool    // one of them was: nothing is sent until all are answered
	waiting    []*trip // held back in this process, in their order
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
	if (q.atOwner >= perKey || q.overtaken) && !r.cfg.Belt {
		t.heldBack = true
		q.waiting = append(q.waiting, t)
		return
	}
	r.admit(q, t)
}

func (r *Router) admit(q *queue, t *trip) {
	if q.unanswered == 0 {
		q.sinceRev = r.newestRev()
	}
	q.atOwner++
	q.unanswered++
	t.queue, t.unanswered = q, true
	t.call = r.sendToOwner(t, t.req.Op)
}

// leaveQueue removes an acquire from its queue that is not at the owner any more, and sends the next one. Called with mu held.
func (r *Router) leaveQueue(t *trip) {
	q := t.queue
	if q == nil {
		return
	}
	q.atOwner--
	if t.unanswered {
		q.unanswered--
	}
	t.queue, t.unanswered = nil, false
	r.admitNext(q)
	if q.atOwner == 0 && len(q.waiting) == 0 {
		delete(r.queues, t.req.Key)
	}
}

// noteAnswer is called when the owner has answered something to an acquire, or when its answer is not waited for. Called with mu held.
func (r *Router) noteAnswer(t *trip) {
	if t.unanswered {
		t.unanswered = false
		t.queue.unanswered--
		r.admitNext(t.queue)
	}
}

// admitNext sends the acquires that need not be held back any more. Called with mu held.
func (r *Router) admitNext(q *queue) {
	if q.overtaken && q.unanswered > 0 {
		return
	}
	if q.overtaken = false; len(q.waiting) > 0 && q.waiting[0].overtaken > maxOvertaken {
		r.sendDirect(q)
	}
	for q.atOwner < perKey && len(q.waiting) > 0 && r.client.current != nil {
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		next.heldBack = false
		r.admit(q, next)
	}
}

// inOrder compares two trips by the order of their requests.
func inOrder(a, b *trip) int { return cmp.Compare(a.number, b.number) }

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
	for key, q := range r.queues {
		if r.sendDirect(q); q.atOwner == 0 {
			delete(r.queues, key)
		}
	}
}

// sendDirect sends the acquires of a queue that are held back to the engine, in their order. Called with mu held.
func (r *Router) sendDirect(q *queue) {
	for _, t := range slices.Clone(q.waiting) {
		r.goDirect(t)
	}
}
