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

// accept takes a request in. Called with mu held.
func (w *writer) accept(r *Request) {
	if w.closed {
		w.end(r, Outcome{}, ErrClosed)
		return
	}
	w.core.operations.Add(1)
	w.newestRev = max(w.newestRev, r.AtLeast)
	if r.Guest != nil {
		r.asked = time.Now()
	}
	if r.Op.Blind() {
		r.Op.Hold = w.holdTime
		if r.Op.Patience > 0 {
			r.asked = time.Now()
		}
	} else {
		w.core.held(r.Op.Hold)
	}
	if r.Op.Verb == record.OpStopWaiting {
		w.stopHeldBack(r.Op.ID)
	}
	if w.meets(r) || w.yields(r) {
		return
	}
	if !r.queues() || w.admits() || !w.holdsBack(r) {
		w.enqueue(r)
	}
}

// enqueue makes r part of the next round. Called with mu held.
func (w *writer) enqueue(r *Request) {
	w.concerns(r)
	w.pending = append(w.pending, r)
	if r.queues() {
		w.queueing++
	}
	w.start()
}

// withdraw is Doer.Withdraw. Called with mu held.
func (w *writer) withdraw(r *Request, cause error) {
	stands := w.waiting[r.Op.ID] == r
	switch _, undoable := r.Op.Undo(); {
	case r.over || r.answered:
	case errors.Is(cause, ErrElsewhere), r.Guest != nil, !r.attempted && !r.Op.Owed():
		// If nothing of it was written, there is nothing to undo. The entry that a
		// release is about is there all the same, under a lease that lives on.
		w.end(r, Outcome{}, cause)
		w.backlog = slices.DeleteFunc(w.backlog, func(q *Request) bool { return q == r })
	case undoable:
		u := w.undo(r, cause)
		if stands && r.Op.Proven() && errors.Is(cause, ErrStopped) {
			w.mu.answer(r, Outcome{}, cause) // it goes with its lease, which is lost
			return
		}
		u.undoes, u.cause = r, cause
	case stands:
		w.end(r, Outcome{}, cause) // it is carried out, and only what it waits for isn't there yet
	default:
		w.core.ledger.add(r)
		w.mu.answer(r, Outcome{}, fmt.Errorf("%w: %w", ErrUnconfirmed, cause))
	}
}

// close ends everything with ErrClosed. Called with mu held.
func (w *writer) close() {
	for _, r := range slices.Concat(w.pending, w.backlog) {
		w.end(r, Outcome{}, ErrClosed)
	}
	w.pending, w.backlog = nil, nil
	if w.kept != nil {
		w.forget(w.kept)
	}
	w.view.close()
	w.observe()
	w.dropWatch()
}

// idle reports whether the writer can be forgotten. Called with mu held.
func (w *writer) idle() bool {
	return !w.running && len(w.pending)+len(w.backlog) == 0 && w.kept == nil && !w.parting.yielding && w.view.idle()
}

// run is the runner's work: step after step while something is pending.
func (w *writer) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for more := true; more; more = w.step() {
		d := w.pause
		if w.givesWay {
			w.givesWay, w.pause = false, 0
			w.rest(d)
			return
		}
		if d > 0 {
			w.mu.Unlock()
			w.core.sleep(w.core.ctx, d)
			w.mu.Lock()
		}
	}
}

// handOver has a runner do what is left after a step. Called with mu held.
func (w *writer) handOver() {
	if len(w.take()) > 0 {
		w.running = w.core.goIfOpen(w.run)
	} else {
		w.stop()
	}
}

// stop is for who has worked here and finds nothing more to do. Called with mu held.
func (w *writer) stop() { w.running, w.trouble, w.pause, w.givesWay = false, backoff{}, 0, false }

// step carries the next step out, if there is anything to do, and sets how long to pause before
// another one. Called with mu held, which it lets go meanwhile.
func (w *writer) step() bool {
	s := steps.Get().(*step)
	defer s.free()
	if !w.plan(s) {
		return false
	}
	s.order()
	w.mu.Unlock()
	s.send(w.core, w.key, &w.silent)
	w.mu.Lock()
	w.pause = w.conclude(s)
	return true
}

// plan composes the next step, if there is anything to do. Called with mu held.
func (w *writer) plan(s *step) bool {
	for {
		*s = step{ops: s.ops, results: s.results, batch: w.take()}
		if len(s.batch) == 0 || w.closed || w.core.ctx.Err() != nil {
			w.stop()
			return false
		}
		if w.mustRead(s.batch) {
			return true
		}
		w.foreseeKept(s.batch)
		s.compose(w.rec, w.rev, w.core.limits())
		w.fitWindow(s)
		if w.overtaken(s.batch) {
			continue
		}
		if s.unchanged {
			if slices.ContainsFunc(s.batch, func(r *Request) bool { return !r.fresh }) {
				if s.refused() && w.refusals.pause() > 0 {
					w.rest(w.refusals.pause())
					return false
				}
				return true
			}
			if w.trusted() && !w.uncertain.at(w.rev) && !slices.ContainsFunc(s.batch, func(r *Request) bool { return r.Prove }) {
				if s.refused() {
					w.refusals.note()
				}
				w.deliver(s, w.rec, w.rev)
				w.trouble = backoff{}
				continue
			}
			// What was read proves nothing while a write that expects this very revision may still be under way, this
			// engine's or another's: write the same state again, and that one can't be committed any more.
		}
		s.encode(w.size)
		w.expected = s.value
		return true
	}
}

// rest leaves what is pending until d is over or something else comes. Called with mu held.
func (w *writer) rest(d time.Duration) {
	w.running = false
	for _, r := range w.pending {
		r.passOn()
	}
	if w.resting {
		return
	}
	w.resting = true
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.resting = false
		if len(w.pending) > 0 {
			w.start()
		}
	})
}

// take returns what is to be done in the next step: the requests for which the state was read
// since they came, if there are any, or else all. Called with mu held.
func (w *writer) take() []*Request {
	w.queueing = 0
	w.pending = slices.DeleteFunc(w.pending, func(r *Request) bool {
		gone := r.over || w.waiting[r.Op.ID] == r
		if !gone && r.queues() {
			w.queueing++
		}
		return gone
	})
	n := slices.IndexFunc(w.pending, func(r *Request) bool { return !r.fresh })
	if n <= 0 {
		w.refill()
		n = len(w.pending)
	}
	return w.pending[:n:n]
}

// mustRead reports whether what is known is no base for the batch. Called with mu held.
func (w *writer) mustRead(batch []*Request) bool {
	return w.outdated.at(w.rev) || !w.known && (w.uncertain.set || w.newestRev > 0 ||
		!slices.ContainsFunc(batch, func(r *Request) bool { return r.Op.Blind() }))
}

// conclude takes the answer to a step in, and returns how long to wait before the next one. Called with mu held.
func (w *writer) conclude(s *step) (pause time.Duration) {
	w.expected = nil
	if !s.write {
		err := s.err
		if err == nil {
			err = w.absorb(s.entry)
		}
		if err != nil {
			return w.failed(s, err)
		}
		w.outdated = mark{}
		for _, r := range s.batch {
			r.fresh = true
		}
		return 0
	}
	if s.err != nil {
		return w.notWritten(s)
	}
	w.tellOthers(s)
	s.next.Resolve(s.newRev)
	if s.next.Idle() {
		s.next = nil
	}
	w.size = len(s.value)
	w.learn(s.next, s.newRev)
	w.wrote(s.rev, s.newRev)
	w.deliver(s, s.next, s.newRev)
	w.trouble, w.refusals = backoff{}, refusals{}
	return 0
}

// notWritten takes in why a write was not acknowledged. Called with mu held.
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
			// Said by a deposed leader that is behind what was seen; the same
			// request may have reached the new one, too.
			w.doubt(s)
		}
		if conflict.Actual == 0 {
			w.learnAbsent()
		} else {
			w.outdated = mark{true, s.rev} // a watch may have brought the newer state already
		}
	case errors.Is(s.err, jskv.ErrUnknown):
		w.core.unknown.Add(1)
		w.doubt(s)
		if w.rev == s.rev {
			w.known = false // apply again to what the leader has by then
		}
	case errors.Is(s.err, jskv.ErrBusy):
		w.core.busy.Add(1)
		w.doubt(s) // a deposed leader says so, too
	case errors.Is(s.err, kv.ErrRejected):
		if w.core.limits() != s.limits {
			return 0 // apply again to what fits by now
		}
		// The record is larger than this connection takes, by another's hand. Who
		// wants to add to it need not wait until somebody else has made it smaller.
		w.refuse(s, s.base, s.rev)
	case errors.Is(s.err, jskv.ErrNotSent):
		w.core.cfg.Suspect() // nobody answers for a stream that is no more
	}
	return w.failed(s, s.err)
}

// dropGuests ends the requests of a batch that this process may not write any more. Called with mu held.
func (w *writer) dropGuests(batch []*Request) {
	for _, r := range batch {
		if r.Guest != nil && !r.Guest() {
			w.end(r, Outcome{}, ErrNotEntitled)
		}
	}
}

// doubt notes that a write may be committed, now or later. Called with mu held.
func (w *writer) doubt(s *step) {
	if s.rev >= w.newestRev {
		w.uncertain = mark{true, s.rev}
	}
	for _, r := range s.batch {
		r.outcomeUnknown = true
		r.maybeFound = r.maybeFound || r.found
	}
}

// failed ends the requests of a step that its failure ends, and returns how long to wait before
// the others are tried again. Called with mu held.
func (w *writer) failed(s *step, err error) (pause time.Duration) {
	malformed := errors.Is(err, record.ErrMalformed) || errors.Is(err, record.ErrNewerSchema)
	rejected := errors.Is(err, kv.ErrRejected) || errors.Is(err, kv.ErrFull)
	again := errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrBusy) || errors.Is(err, errStale)
	away := errors.Is(err, ErrUnavailable) && !again
	for _, r := range s.batch {
		switch _, undoable := r.Op.Undo(); {
		case r.over, r.owed, w.waiting[r.Op.ID] == r:
		case rejected && (r.Op.Owed() || len(r.Op.Leases) > 0) && !r.FailFast:
			// Full storage may have room again; the entry must go.
		case !malformed && !rejected && !(away && r.FailFast): // only a matter of trying again
		case !r.outcomeUnknown:
			w.end(r, Outcome{}, err)
		case undoable:
			w.undo(r, err)
			w.mu.answer(r, Outcome{}, err)
		}
	}
	if errors.Is(err, jskv.ErrConflict) && w.onlyQueues(s) {
		for _, r := range w.pending {
			r.fresh = false // what comes meanwhile goes with it
		}
		w.givesWay = true
		took, _ := w.core.cfg.RTT.RTT()
		return w.trouble.giveWay(w.queue, took)
	}
	return w.trouble.next(err)
}

// deliver gives every request of a step what the committed record says about it. Called with mu held.
func (w *writer) deliver(s *step, rec *record.Record, rev uint64) {
	w.refuse(s, rec, rev)
	for _, r := range s.batch {
		if r.over {
			continue
		}
		if !r.Op.Waits() {
			if rec == nil && r.found {
				w.holdTime = record.SmoothHold(w.holdTime, r.Op.Hold) // no record is left to remember it
			}
			w.end(r, Outcome{Revision: rev, Record: rec, Existed: r.found || r.maybeFound}, nil)
			continue
		}
		w.stands(r, rec.Standing(&r.Op), rec, rev)
		if w.hint > rev && w.waiting[r.Op.ID] == r {
			w.look()
		}
	}
	// A promotion in this very write may concern those that queued before, and the
	// watch may have brought something newer already.
	if w.keeping.again = false; w.wanted() {
		w.settle()
	}
}

// settled is called when the state has changed. Called with mu held.
func (w *writer) settled() {
	w.adjustWatch()
	w.observe()
	w.pokeKept()
	w.keepUp()
	w.tellBacklog()
	if w.wantsRefill() {
		w.start()
	}
}

// refuse ends the requests of a step that the record at rev forbids. Called with mu held.
func (w *writer) refuse(s *step, rec *record.Record, rev uint64) {
	for i, r := range s.batch {
		res := s.results[i]
		if r.over || res.Verdict == record.Applied {
			continue
		}
		if res.Blocker.ID != "" {
			res.Blocker.Resolve(rev) // it may be in the way since this very write
		}
		w.end(r, Outcome{}, &RefusedError{Result: res, Record: rec, Uncertain: r.outcomeUnknown})
	}
}
