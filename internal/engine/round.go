package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// accept takes a new request: it ends it, holds it back, or enqueues it.
func (w *writer) accept(r *Request) {
	if w.closed {
		w.end(r, Outcome{}, ErrClosed)
		return
	}
	w.core.operations.Add(1)
	w.newestRev = max(w.newestRev, r.AtLeast)
	if r.Guest != nil {
		r.submitted = time.Now()
	}
	if r.Op.Blind() {
		r.Op.Hold = w.holdTime
		if r.Op.Patience > 0 {
			r.submitted = time.Now()
		}
	} else {
		w.core.noteHold(r.Op.Hold)
	}
	if r.Op.Verb == record.OpStopWaiting {
		w.cancelHeldBack(r.Op.ID)
	}
	if w.waitForKept(r) || w.delayForTry(r) {
		return
	}
	if !r.queues() || w.canAdmit() || !w.holdBack(r) {
		w.enqueue(r)
	}
}

// enqueue adds r to the next round.
func (w *writer) enqueue(r *Request) {
	w.noteKeptOp(r)
	w.pending = append(w.pending, r)
	if r.queues() {
		w.queueing++
	}
	w.start()
}

// withdraw implements Doer.Withdraw.
func (w *writer) withdraw(r *Request, cause error) {
	waits := w.waiting[r.Op.ID] == r
	switch _, undoable := r.Op.Undo(); {
	case r.finished || r.answered:
	case errors.Is(cause, ErrElsewhere), r.Guest != nil, !r.attempted && !r.Op.MustComplete():
		// If nothing was written for it, there is nothing to undo. The exception is a release:
		// its entry is in the record all the same, under a lease that lives on.
		w.end(r, Outcome{}, cause)
		w.backlog = slices.DeleteFunc(w.backlog, func(q *Request) bool { return q == r })
		if waits && w.wantsRefill() {
			w.start() // no further state of the key may come, since nothing of this process waits there any more
		}
	case undoable:
		u := w.undo(r, cause)
		if waits && r.Op.Proven() && errors.Is(cause, ErrStopped) {
			w.mu.answer(r, Outcome{}, cause) // its lease is lost, and the entry ends with it
			return
		}
		u.undoes, u.cause = r, cause
	case waits:
		w.end(r, Outcome{}, cause) // its own part is committed; it only waits
	default:
		w.core.ledger.add(r)
		w.mu.answer(r, Outcome{}, fmt.Errorf("%w: %w", ErrUnconfirmed, cause))
	}
}

// close ends every request with ErrClosed.
func (w *writer) close() {
	for _, r := range slices.Concat(w.pending, w.backlog) {
		w.end(r, Outcome{}, ErrClosed)
	}
	w.pending, w.backlog = nil, nil
	if w.kept != nil {
		w.removeKept(w.kept)
	}
	w.view.close()
	w.observe()
	w.dropWatch()
}

// idle reports whether the writer can be forgotten.
func (w *writer) idle() bool {
	return !w.running && len(w.pending)+len(w.backlog) == 0 && w.kept == nil && !w.delayAcquires && w.view.idle()
}

// run is the runner: it does step after step while something is pending.
func (w *writer) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for more := true; more; more = w.runStep() {
		d := w.pause
		if w.interruptible {
			w.interruptible, w.pause = false, 0
			w.retryIn(d)
			return
		}
		if d > 0 {
			w.mu.Unlock()
			w.core.sleep(w.core.ctx, d)
			w.mu.Lock()
		}
	}
}

// continueInRunner starts a runner for what is pending after a step.
func (w *writer) continueInRunner() {
	if len(w.nextBatch()) > 0 {
		w.running = w.core.goIfOpen(w.run)
	} else {
		w.finishRun()
	}
}

// finishRun resets the state of the goroutine that worked on the key, when nothing is left to do.
func (w *writer) finishRun() {
	w.running, w.backoff, w.pause, w.interruptible = false, backoff{}, 0, false
}

// runStep plans, sends and concludes one step, and sets the pause before the next one. It returns false if there
// was nothing to do. Called with mu held; it unlocks mu while the request is under way.
func (w *writer) runStep() bool {
	s := steps.Get().(*step)
	defer s.free()
	if !w.plan(s) {
		return false
	}
	s.takeSendOrder()
	w.mu.Unlock()
	s.send(w.core, w.key, &w.timeouts)
	w.mu.Lock()
	w.pause = w.conclude(s)
	return true
}

// plan composes the next step. It returns false if there is nothing to do.
func (w *writer) plan(s *step) bool {
	for {
		*s = step{ops: s.ops, results: s.results, batch: w.nextBatch()}
		if len(s.batch) == 0 || w.closed || w.core.ctx.Err() != nil {
			w.finishRun()
			return false
		}
		if w.mustRead(s.batch) {
			return true
		}
		w.markKept(s.batch)
		s.compose(w.rec, w.rev, w.core.limits())
		w.fitWindow(s)
		if w.endOvertaken(s.batch) {
			continue
		}
		if s.unchanged {
			if slices.ContainsFunc(s.batch, func(r *Request) bool { return !r.readSince }) {
				if s.refused() && w.refusals.pause() > 0 {
					w.retryIn(w.refusals.pause())
					return false
				}
				return true
			}
			if w.trusted() && !w.uncertain.at(w.rev) && !slices.ContainsFunc(s.batch, func(r *Request) bool { return r.Prove }) {
				if s.refused() {
					w.refusals.note()
				}
				w.deliver(s, w.rec, w.rev)
				w.backoff = backoff{}
				continue
			}
			// The state that was read proves nothing while a write that expects its revision may still be under way,
			// of this engine or of another. So write the same state again: then that write can't be committed any more.
		}
		s.encode(w.size)
		w.expected = s.value
		return true
	}
}

// retryIn stops the run and starts a new one after d, or as soon as another request comes.
func (w *writer) retryIn(d time.Duration) {
	w.running = false
	for _, r := range w.pending {
		r.unblockNext()
	}
	if w.retrySet {
		return
	}
	w.retrySet = true
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.retrySet = false
		if len(w.pending) > 0 {
			w.start()
		}
	})
}

// nextBatch returns the requests of the next step: those for which the state was read
// after they came, if there are any, or else all.
func (w *writer) nextBatch() []*Request {
	w.queueing = 0
	w.pending = slices.DeleteFunc(w.pending, func(r *Request) bool {
		gone := r.finished || w.waiting[r.Op.ID] == r
		if !gone && r.queues() {
			w.queueing++
		}
		return gone
	})
	n := slices.IndexFunc(w.pending, func(r *Request) bool { return !r.readSince })
	if n <= 0 {
		w.refill()
		n = len(w.pending)
	}
	return w.pending[:n:n]
}

// mustRead reports whether the batch needs a read first, since the known state is no base for it.
func (w *writer) mustRead(batch []*Request) bool {
	return w.outdated.at(w.rev) || !w.known && (w.uncertain.set || w.newestRev > 0 ||
		!slices.ContainsFunc(batch, func(r *Request) bool { return r.Op.Blind() }))
}

// conclude handles the answer to a step, and returns the pause before the next one.
func (w *writer) conclude(s *step) (pause time.Duration) {
	w.expected = nil
	if !s.write {
		err := s.err
		if err == nil {
			err = w.absorb(s.entry)
		}
		if err != nil {
			return w.handleFailure(s, err)
		}
		w.outdated = mark{}
		for _, r := range s.batch {
			r.readSince = true
		}
		return 0
	}
	if s.err != nil {
		return w.notWritten(s)
	}
	w.sendHints(s)
	s.next.Resolve(s.newRev)
	if s.next.Idle() {
		s.next = nil
	}
	w.size = len(s.value)
	w.learn(s.next, s.newRev)
	w.noteWritten(s.rev, s.newRev)
	w.deliver(s, s.next, s.newRev)
	w.backoff, w.refusals = backoff{}, refusals{}
	return 0
}

// notWritten handles a write that was not acknowledged.
func (w *writer) notWritten(s *step) (pause time.Duration) {
	var conflict *jskv.ConflictError
	switch {
	case errors.Is(s.err, ErrNotEntitled):
		w.dropGuests(s.batch)
		return 0
	case errors.As(s.err, &conflict):
		w.core.conflicts.Add(1)
		w.core.cfg.Contended(w.key)
		if conflict.Actual < s.rev || conflict.Again {
			// A deposed leader says so, which is behind what was seen. The same
			// request may have reached the new leader, too.
			w.markUncertain(s)
		}
		if conflict.Actual == 0 {
			w.learnAbsent()
		} else {
			w.outdated = mark{true, s.rev} // a watch may have brought the newer state already
		}
	case errors.Is(s.err, jskv.ErrUnknown):
		w.core.unknown.Add(1)
		w.markUncertain(s)
		if w.rev == s.rev {
			w.known = false // apply again to what the leader has by then
		}
	case errors.Is(s.err, jskv.ErrBusy):
		w.core.busy.Add(1)
		w.markUncertain(s) // a deposed leader may have said so
	case errors.Is(s.err, kv.ErrRejected):
		if w.core.limits() != s.limits {
			return 0 // apply again to what fits by now
		}
		// Another writer has made the record larger than this connection can write. A request
		// that would add to it need not wait until somebody has made it smaller.
		w.refuse(s, s.base, s.rev)
	case errors.Is(s.err, jskv.ErrNotSent):
		w.core.cfg.Suspect() // no server answers for a deleted stream
	}
	return w.handleFailure(s, s.err)
}

// dropGuests ends the guests of a batch that this process may not write any more.
func (w *writer) dropGuests(batch []*Request) {
	for _, r := range batch {
		if r.Guest != nil && !r.Guest() {
			w.end(r, Outcome{}, ErrNotEntitled)
		}
	}
}

// markUncertain notes that a write may be committed, now or later.
func (w *writer) markUncertain(s *step) {
	if s.rev >= w.newestRev {
		w.uncertain = mark{true, s.rev}
	}
	for _, r := range s.batch {
		r.outcomeUnknown = true
		r.maybeFound = r.maybeFound || r.found
	}
}

// handleFailure ends the requests of a failed step that can't be tried again, and returns the pause before
// the others are.
func (w *writer) handleFailure(s *step, err error) (pause time.Duration) {
	malformed := errors.Is(err, record.ErrMalformed) || errors.Is(err, record.ErrNewerSchema)
	rejected := errors.Is(err, kv.ErrRejected) || errors.Is(err, kv.ErrFull)
	contended := errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrBusy) || errors.Is(err, errStale)
	noLeader := errors.Is(err, ErrUnavailable) && !contended
	for _, r := range s.batch {
		switch _, undoable := r.Op.Undo(); {
		case r.finished, r.inLedger, w.waiting[r.Op.ID] == r:
		case rejected && (r.Op.MustComplete() || len(r.Op.Leases) > 0) && !r.FailFast:
			// The entry must be removed, and full storage may have room again.
		case !malformed && !rejected && !(noLeader && r.FailFast): // it is tried again
		case !r.outcomeUnknown:
			w.end(r, Outcome{}, err)
		case undoable:
			w.undo(r, err)
			w.mu.answer(r, Outcome{}, err)
		}
	}
	if errors.Is(err, jskv.ErrConflict) && w.onlyQueues(s) {
		for _, r := range w.pending {
			r.readSince = false // requests that come meanwhile join it
		}
		w.interruptible = true
		took, _ := w.core.cfg.RTT.RTT()
		return w.backoff.queuePause(w.queue, took)
	}
	return w.backoff.next(err)
}

// deliver gives every request of a step its outcome or state in the committed record.
func (w *writer) deliver(s *step, rec *record.Record, rev uint64) {
	w.refuse(s, rec, rev)
	for _, r := range s.batch {
		if r.finished {
			continue
		}
		if !r.Op.Waits() {
			if rec == nil { // no record is left that has it; another road may have released the hold before
				w.holdTime = record.SmoothHold(w.holdTime, r.Op.Hold)
			}
			w.end(r, Outcome{Revision: rev, Record: rec, Existed: r.found || r.maybeFound}, nil)
			continue
		}
		w.applyState(r, rec.Standing(&r.Op), rec, rev)
		if w.hintRev > rev && w.waiting[r.Op.ID] == r {
			w.look()
		}
	}
	// This write may have promoted requests that queued before, and the watch may have brought something newer already.
	if w.keeping.basedOnOurs = false; w.wanted() {
		w.settle()
	}
}

// stateChanged is called after the known state has changed.
func (w *writer) stateChanged() {
	w.adjustWatch()
	w.observe()
	w.pokeKept()
	w.updateKept()
	w.reportBacklog()
	if w.wantsRefill() {
		w.start()
	}
}

// refuse ends the requests of a step that the record at rev does not allow.
func (w *writer) refuse(s *step, rec *record.Record, rev uint64) {
	for i, r := range s.batch {
		res := s.results[i]
		if r.finished || res.Verdict == record.Applied {
			continue
		}
		if res.Blocker.ID != "" {
			res.Blocker.Resolve(rev) // this very write may have granted the blocker
		}
		w.end(r, Outcome{}, &RefusedError{Result: res, Record: rec, Uncertain: r.outcomeUnknown})
	}
}
