package engine

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// The window: of one process's requests that queue for a key, at most windowSize wait in the record. The
// others wait in the process, in their order, and follow when requests before them are granted or leave. So a record stays
// small, and one process can't fill it. Among requests outside the window, order holds only within each process.
const (
	windowSize = 16
	// maxPredicted bounds how many requests of the backlog predict takes into account for a request with Patience.
	maxPredicted = 256
)

// window returns how many requests may wait in the record: one if it is three quarters full.
func (w *writer) window() int {
	if w.oneAtATime() || w.core.limits().NearlyFull(w.queue, w.size) {
		return 1
	}
	return windowSize
}

// room returns how many more may wait in the record.
func (w *writer) room() int { return w.window() - w.queuers - w.queueing }

// canAdmit reports whether a new request need not be held back.
func (w *writer) canAdmit() bool {
	return len(w.backlog) == 0 && (w.queuers+w.queueing == 0 || w.room() > 0)
}

// holdBack adds r to the backlog, or refuses it. It returns false if the record has to decide, in the state
// after r came.
func (w *writer) holdBack(r *Request) bool {
	res := w.predict(r)
	same := func(q *Request) bool { return q.Op.ID == res.Blocker.ID }
	switch {
	case len(w.backlog) >= maxBacklog:
		res = record.Result{Verdict: record.QueueFull, Limit: fmt.Sprintf("%d waiters of one process", maxBacklog)}
	case res.Verdict == record.WaitTooLong, res.Verdict == record.AlreadyHeld && slices.ContainsFunc(w.backlog, same):
	case res.Verdict != record.Applied:
		return false
	default:
		w.backlog = append(w.backlog, r)
		w.reportBacklog()
		return true
	}
	w.end(r, Outcome{}, &RefusedError{Result: res, Record: w.rec})
	return true
}

// cancelHeldBack ends a request in the backlog, as OpStopWaiting does with one in the record.
func (w *writer) cancelHeldBack(id string) {
	if i := slices.IndexFunc(w.backlog, func(r *Request) bool { return r.Op.ID == id }); i >= 0 {
		r := w.backlog[i]
		w.backlog = slices.Delete(w.backlog, i, i+1)
		w.end(r, Outcome{}, ErrGone)
	}
}

// predict applies r behind the requests of the backlog that matter to it.
func (w *writer) predict(r *Request) record.Result {
	var ops []record.Op
	for i, q := range w.backlog {
		if r.Op.Patience > 0 && i < maxPredicted || r.Op.Owner != "" && q.Op.Owner == r.Op.Owner {
			op := q.Op
			op.Patience = 0
			ops = append(ops, op)
		}
	}
	_, results, _ := record.Apply(w.rec, w.rev, append(ops, r.Op), w.core.limits().ForPrediction(maxBacklog))
	return results[len(ops)]
}

// reportBacklog reports their place to requests in the backlog, once they certainly wait.
func (w *writer) reportBacklog() {
	if w.queuers == 0 {
		return
	}
	for i, r := range slices.Backward(w.backlog) {
		if r.queuedDue {
			return
		}
		if r.queuedDue = true; r.Queued != nil {
			p := w.rec.Place(&r.Op)
			p.Position = w.queue + i + 1
			w.mu.tell(r, p)
		}
	}
}

// wantsRefill reports whether the record has enough room for a write only to move requests of the backlog
// there. Otherwise they join the next write.
func (w *writer) wantsRefill() bool {
	return len(w.backlog) > 0 && !w.holdsAllBack() && (w.queuers == 0 || 2*w.room() >= w.window())
}

// refill moves requests from the backlog to pending, as many as there is room for.
func (w *writer) refill() {
	if len(w.backlog) > 0 && !w.holdsAllBack() && (len(w.pending) > 0 || w.wantsRefill()) {
		w.admit(max(w.room(), 0))
	}
}

// admit moves the first n requests of the backlog to pending.
func (w *writer) admit(n int) {
	n = min(n, len(w.backlog))
	w.pending = append(w.pending, w.backlog[:n]...)
	w.queueing += n
	clear(w.backlog[:n])
	w.backlog = w.backlog[n:]
}

// fitWindow adds requests of the backlog to a step as long as all are granted, and
// moves back requests that would wait in the record beyond the window.
func (w *writer) fitWindow(s *step) {
	if len(w.backlog) == 0 || len(s.batch) < len(w.pending) || w.queuers > 0 || w.oneAtATime() {
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

// onlyQueues reports whether all that is pending would only join the end of the queue, by the record that was read. No
// process waits for such a write, and it may conflict with the write that grants the next waiter.
func (w *writer) onlyQueues(s *step) bool {
	return !slices.ContainsFunc(w.pending, func(r *Request) bool {
		return !r.finished && (!r.readSince || !r.queues() || s.next.Standing(&r.Op).Standing != record.Waiting)
	})
}

// expectedWait returns how many operations of this process wait, and the longest expected wait among them.
func (w *writer) expectedWait() (waiting int, longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest = w.rec.LongestWait(func(id string) bool { return w.waiting[id] != nil })
	if w.rec != nil {
		longest += time.Duration(len(w.backlog)) * w.rec.Hold
	}
	return len(w.waiting) + len(w.backlog), longest
}
