package engine

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// The window: of the requests of one process for one key that have to queue, only so many stand in the record. The
// others wait in the process, in their order, and follow as those before them are granted or leave. So a record stays
// small, and one process can't fill it. Beyond the window the order holds within each process.
const (
	windowSize = 16
	// foresight is how many of those held back are considered to tell how long one more would wait.
	foresight = 256
)

// window is how many may stand in the record: one where it is three quarters full. Called with mu held.
func (w *writer) window() int {
	if w.inOne() || w.core.limits().Crowded(w.queue, w.size) {
		return 1
	}
	return windowSize
}

// room is how many more may go there. Called with mu held.
func (w *writer) room() int { return w.window() - w.queuers - w.queueing }

// admits reports whether a request that comes now need not be held back. Called with mu held.
func (w *writer) admits() bool {
	return len(w.backlog) == 0 && (w.queuers+w.queueing == 0 || w.room() > 0)
}

// holdsBack has r wait in the process, or refuses it, and reports whether it did; else the record decides, as it is
// after r came. Called with mu held.
func (w *writer) holdsBack(r *Request) bool {
	res := w.foresee(r)
	same := func(q *Request) bool { return q.Op.ID == res.Blocker.ID }
	switch {
	case len(w.backlog) >= maxBacklog:
		res = record.Result{Verdict: record.QueueFull, Limit: fmt.Sprintf("%d waiters of one process", maxBacklog)}
	case res.Verdict == record.WaitTooLong, res.Verdict == record.AlreadyHeld && slices.ContainsFunc(w.backlog, same):
	case res.Verdict != record.Applied:
		return false
	default:
		w.delay(r)
		w.tellBacklog()
		return true
	}
	w.end(r, Outcome{}, &RefusedError{Result: res, Record: w.rec})
	return true
}

// stopHeldBack ends a request that is held back, as the record does with one that waits there. Called with mu held.
func (w *writer) stopHeldBack(id string) {
	if i := slices.IndexFunc(w.backlog, func(r *Request) bool { return r.Op.ID == id }); i >= 0 {
		r := w.backlog[i]
		w.backlog = slices.Delete(w.backlog, i, i+1)
		w.end(r, Outcome{}, ErrGone)
	}
}

// foresee applies r behind those that are held back, as far as they matter to it. Called with mu held.
func (w *writer) foresee(r *Request) record.Result {
	var ops []record.Op
	for i, q := range w.backlog {
		if r.Op.Patience > 0 && i < foresight || r.Op.Owner != "" && q.Op.Owner == r.Op.Owner {
			op := q.Op
			op.Patience = 0
			ops = append(ops, op)
		}
	}
	_, results, _ := record.Apply(w.rec, w.rev, append(ops, r.Op), w.core.limits().Foreseen(maxBacklog))
	return results[len(ops)]
}

// tellBacklog tells those that are held back where they wait, once that is certain. Called with mu held.
func (w *writer) tellBacklog() {
	if w.queuers == 0 {
		return
	}
	for i, r := range slices.Backward(w.backlog) {
		if r.told {
			return
		}
		if r.told = true; r.Queued != nil {
			p := w.rec.Place(&r.Op)
			p.Position = w.queue + i + 1
			w.mu.tell(r, p)
		}
	}
}

// wantsRefill reports whether the record has so much room for those held back that it is worth a
// write of their own. Else they join the next one. Called with mu held.
func (w *writer) wantsRefill() bool {
	return len(w.backlog) > 0 && !w.keepsBack() && (w.queuers == 0 || 2*w.room() >= w.window())
}

// refill adds to the pending requests as many of those held back as there is room for. Called with mu held.
func (w *writer) refill() {
	if len(w.backlog) > 0 && !w.keepsBack() && (len(w.pending) > 0 || w.wantsRefill()) {
		w.admit(max(w.room(), 0))
	}
}

// admit makes the next n of those held back pending. Called with mu held.
func (w *writer) admit(n int) {
	n = min(n, len(w.backlog))
	w.pending = append(w.pending, w.backlog[:n]...)
	w.queueing += n
	clear(w.backlog[:n])
	w.backlog = w.backlog[n:]
}

// fitWindow extends a step by more and more of those held back as long as all are granted, and
// takes those out that would stand in the record beyond the window. Called with mu held.
func (w *writer) fitWindow(s *step) {
	if len(w.backlog) == 0 || len(s.batch) < len(w.pending) || w.queuers > 0 || w.inOne() {
		return
	}
	wait := func(r *Request) bool {
		return r.queues() && s.next.Standing(&r.Op).Standing == record.Waiting
	}
	for w.queueing > 0 && len(w.backlog) > 0 && !slices.ContainsFunc(s.batch, wait) {
		w.admit(w.queueing)
		s.batch = w.pending
		s.compose(s.base, s.rev, s.limits)
	}
	surplus := -w.window()
	for _, r := range s.batch {
		if wait(r) {
			surplus++
		}
	}
	if surplus <= 0 {
		return
	}
	var back []*Request
	for i := len(w.pending) - 1; len(back) < surplus; i-- {
		if wait(w.pending[i]) {
			back = append(back, w.pending[i])
			w.pending = slices.Delete(w.pending, i, i+1)
		}
	}
	slices.Reverse(back)
	w.backlog = append(back, w.backlog...)
	w.queueing -= surplus
	s.batch = w.pending[:len(w.pending):len(w.pending)]
	s.compose(s.base, s.rev, s.limits)
}

// onlyQueues reports whether what is pending, as the record was when it was read, only goes to the end of a queue. Then
// nobody waits for its write, which stands in the way of the one who lets the next in. Called with mu held.
func (w *writer) onlyQueues(s *step) bool {
	return !slices.ContainsFunc(w.pending, func(r *Request) bool {
		return !r.over && (!r.fresh || !r.queues() || s.next.Standing(&r.Op).Standing != record.Waiting)
	})
}

// expectedWait returns how many operations of this process wait, and the longest time that one of
// them is expected to.
func (w *writer) expectedWait() (waiting int, longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest = w.rec.LongestWait(func(id string) bool { return w.waiting[id] != nil })
	if w.rec != nil {
		longest += time.Duration(len(w.backlog)) * w.rec.Hold
	}
	return len(w.waiting) + len(w.backlog), longest
}
