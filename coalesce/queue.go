package coalesce

import (
	"cmp"
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// perKey is how many acquires of this process for one key are under way at most, at the owner or on the direct road. The others
// wait in this process in their order, as in the engine's window, so that a record stays small. They wait for either road:
// an owner that is silent for a moment must not send thousands of acquires to the slower road, on which they would then stay.
const perKey = 16

// queue counts this process's acquires for one key that were not sent directly from the start.
type queue struct {
	sent       int     // on either road, and without an outcome
	unanswered int     // of these, nobody has said yet that they wait in the record
	direct     bool    // the last one was sent on the direct road
	sinceRev   uint64  // these were sent with it: if one is overtaken, those that were sent later are, too
	overtaken  bool    // one of them was: nothing is sent until all are answered
	waiting    []*trip // held back in this process, in their order
}

// enqueue sends an acquire, or holds it back. It never holds back a try, since a try does not wait.
// Called with mu held.
func (r *Router) enqueue(t *trip) {
	if t.req.Op.Verb != record.OpAcquire {
		t.call = r.sendToOwner(t, t.req.Op)
		return
	}
	q := r.queues[t.req.Key]
	if q == nil {
		q = &queue{}
		r.queues[t.req.Key] = q
	}
	if r.cfg.Belt {
		r.admit(q, t, false)
		return
	}
	t.heldBack = true
	q.waiting = append(q.waiting, t)
	r.admitNext(q)
}

func (r *Router) admit(q *queue, t *trip, direct bool) {
	if q.unanswered == 0 {
		q.sinceRev = r.newestRev()
	}
	q.sent++
	q.unanswered++
	t.queue, t.unanswered, q.direct = q, true, direct
	if direct {
		t.overtaken = 0
		r.goDirect(t)
	} else {
		t.call = r.sendToOwner(t, t.req.Op)
	}
}

// leaveQueue removes an acquire from its queue that has its outcome or is held back again, and sends the next one.
// Called with mu held.
func (r *Router) leaveQueue(t *trip) {
	q := t.queue
	if q == nil {
		return
	}
	q.sent--
	if t.unanswered {
		q.unanswered--
	}
	t.queue, t.unanswered = nil, false
	r.admitNext(q)
	if q.sent == 0 && len(q.waiting) == 0 {
		delete(r.queues, t.req.Key)
	}
}

// noteAnswer is called when an acquire waits in the record, or when its answer is not waited for. Called with mu held.
func (r *Router) noteAnswer(t *trip) {
	if t.unanswered {
		t.unanswered = false
		t.queue.unanswered--
		r.rejoin(t)
		r.admitNext(t.queue)
	}
}

// rejoin sends an acquire that waits in the record to the owner, if the owner does not have it: the direct road wrote it while
// there was no owner, or after others had written the key. The owner finds its entry in the record, and can pass a turn to it. Without
// this, a long queue that has once gone directly would stay on the slower road to its end. Called with mu held.
func (r *Router) rejoin(t *trip) {
	if t.queue != nil && !t.unanswered && t.call == nil && t.cause == nil && !t.answered && r.client.current != nil {
		t.call = r.sendToOwner(t, t.req.Op)
	}
}

// onOwner is called when the client has found an owner. Called with mu held.
func (r *Router) onOwner() {
	for _, t := range r.tripsInOrder("") {
		r.rejoin(t)
	}
}

// admitNext sends the acquires that need not be held back any more: to the owner if there is one. Acquires that were
// overtaken too often go directly. Before the road changes, all that were sent on the other one must wait in the record, since they
// come first. Called with mu held.
func (r *Router) admitNext(q *queue) {
	if q.overtaken && q.unanswered > 0 || r.client.closed {
		return
	}
	q.overtaken = false
	for q.sent < perKey && len(q.waiting) > 0 {
		next := q.waiting[0]
		direct := r.client.current == nil || next.overtaken > maxOvertaken
		if direct != q.direct && q.unanswered > 0 {
			return
		}
		q.waiting = q.waiting[1:]
		next.heldBack = false
		r.admit(q, next, direct)
	}
}

// inOrder compares two trips by the order of their requests.
func inOrder(a, b *trip) int { return cmp.Compare(a.number, b.number) }

// tripsInOrder returns the trips of a key, or all if key is empty, in the order of their requests. Called with mu held.
func (r *Router) tripsInOrder(key string) (list []*trip) {
	for t := range r.trips {
		if key == "" || t.req.Key == key {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, inOrder)
	return list
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
