package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// submit queues a call and makes sure that somebody runs it. Called with r.mu
// held.
func (r *resource) submit(c *call) {
	if r.closed {
		c.resolve(Outcome{}, ErrClosed)
		return
	}
	r.pending = append(r.pending, c)
	r.startRunner()
}

// startRunner starts a runner if there is none. Called with r.mu held.
func (r *resource) startRunner() {
	if r.running || len(r.pending) == 0 {
		return
	}
	r.running = true
	if !r.e.goIfOpen(func() { r.run(r.e.ctx, nil) }) {
		r.running = false
	}
}

// run is the runner: round after round while there is something pending. A
// caller that works as the runner gives own, its call, and its context; it hands
// over to a goroutine of the engine as soon as its own operation has its outcome,
// meets trouble, or would share a round: no other operation is ever carried out
// under a caller's context. own is nil in that goroutine.
func (r *resource) run(ctx context.Context, own *call) {
	var b backoff
	for {
		r.mu.Lock()
		batch := r.take()
		if r.closed || r.e.ctx.Err() != nil {
			for _, c := range batch {
				c.resolve(Outcome{}, ErrClosed)
			}
			batch = nil
		}
		if len(batch) == 0 {
			r.running = false
			r.mu.Unlock()
			return
		}
		if own != nil && (len(batch) > 1 || own.resolved || r.waiting[own.op.ID] == own || b.failures > 0 || ctx.Err() != nil) {
			r.pending = append(batch, r.pending...)
			r.running = false
			r.startRunner()
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()

		err := r.round(ctx, batch)

		r.mu.Lock()
		left := r.unresolved(batch)
		if err != nil {
			left = r.failed(left, err)
		}
		r.pending = append(left, r.pending...)
		r.mu.Unlock()
		if err == nil {
			b.reset()
		} else {
			r.e.sleep(ctx, b.next(err))
		}
	}
}

// take returns the pending calls that still want something. Called with r.mu
// held.
func (r *resource) take() []*call {
	batch := slices.DeleteFunc(r.pending, func(c *call) bool { return c.resolved || c.dropped })
	r.pending = nil
	return batch
}

// unresolved returns the calls of a batch that have to be applied again: those
// that have no outcome and don't stand in the queue. Called with r.mu held.
func (r *resource) unresolved(batch []*call) []*call {
	return slices.DeleteFunc(batch, func(c *call) bool {
		return c.resolved || c.dropped || r.waiting[c.op.ID] == c
	})
}

// failed ends the calls that a failed round ends, and returns the others.
// Called with r.mu held.
func (r *resource) failed(calls []*call, err error) []*call {
	malformed := errors.Is(err, record.ErrMalformed) || errors.Is(err, record.ErrNewerSchema)
	rejected := errors.Is(err, kv.ErrRejected) || errors.Is(err, kv.ErrFull)
	again := errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrBusy) || errors.Is(err, errStale)
	if away := errors.Is(err, ErrUnavailable) && !again; !malformed && !rejected && !away {
		return calls
	}
	return slices.DeleteFunc(calls, func(c *call) bool {
		if c.ledger || !malformed && !rejected && !c.failFast {
			return false
		}
		if rejected && (c.op.Owed() || len(c.op.Leases) > 0) && !c.failFast {
			return false // full storage may have room again; the entry must go
		}
		if !c.outcomeUnknown {
			c.resolve(Outcome{}, err)
		} else if _, ok := c.op.Undo(); ok {
			r.cleanup(c, err)
		} else {
			return false
		}
		return true
	})
}

// round applies a batch to the newest known state and writes the result. An
// error says why calls of the batch are still without an outcome; a conflict is
// resolved inside, by reading and applying again.
func (r *resource) round(ctx context.Context, batch []*call) error {
	ops := operations(batch)
	fresh := false // the state was read after the batch was taken
	r.mu.Lock()
	needRead := !r.known && (len(r.uncertain) > 0 || r.newestRev > 0 || !slices.ContainsFunc(batch, func(c *call) bool { return c.op.Blind() }))
	r.mu.Unlock()
	for conflicts := 0; ; {
		if needRead {
			if err := r.read(ctx, failFast(batch)); err != nil {
				return err
			}
			fresh, needRead = true, false
		}
		r.mu.Lock()
		if slices.ContainsFunc(batch, over) {
			// Whoever gave up before anything was written left nobody to undo it, so
			// it must not be written now.
			batch = slices.DeleteFunc(slices.Clone(batch), over)
			ops = operations(batch)
			if len(batch) == 0 {
				r.mu.Unlock()
				return nil
			}
		}
		// Without any knowledge the resource is taken to be free: the write
		// finds out, and costs a free resource nothing.
		base, rev := r.rec, r.rev
		limits := r.e.limits()
		next, results, changed := record.Apply(base, rev, ops, limits)
		for _, c := range batch {
			// Not what an earlier attempt saw: if its write was refused somebody else
			// may have removed the entry since. If that is unknown, maybeFound says so.
			c.found = present(base, &c.op)
		}
		if !changed {
			if !fresh {
				needRead = true
				r.mu.Unlock()
				continue
			}
			if r.trusted() && !slices.Contains(r.uncertain, rev) {
				r.deliver(batch, results, base, rev)
				r.mu.Unlock()
				return nil
			}
			// What was read proves nothing while a write that expects this very
			// revision may still be under way: write the same state again, and
			// that one can't be committed any more.
		}
		for _, c := range batch {
			c.attempted = true
		}
		r.mu.Unlock()

		newRev, err := r.write(ctx, batch, base, next, rev)
		if err == nil {
			r.mu.Lock()
			next.Resolve(newRev)
			if next.Idle() {
				next = nil
			}
			r.learn(next, newRev)
			r.deliver(batch, results, next, newRev)
			r.mu.Unlock()
			return nil
		}
		var conflict *jskv.ConflictError
		switch {
		case errors.As(err, &conflict):
			r.e.conflicts.Add(1)
			r.mu.Lock()
			if conflict.Actual < rev {
				// Said by a deposed leader that is behind what was seen; the same
				// request may have reached the new one, too.
				r.doubt(batch, rev)
			}
			if conflict.Actual == 0 {
				r.learnAbsent()
			} else {
				// A watch may have brought the newer state already.
				needRead = !r.known || r.rev == rev
			}
			r.mu.Unlock()
			if conflicts++; conflicts > 1 {
				return err // lose the race to others with a pause
			}
		case errors.Is(err, jskv.ErrUnknown):
			r.e.unknown.Add(1)
			r.mu.Lock()
			r.doubt(batch, rev)
			// Apply again to what the leader has by then.
			if r.rev == rev {
				r.known = false
			}
			r.mu.Unlock()
			return err
		case errors.Is(err, jskv.ErrBusy):
			r.e.busy.Add(1)
			r.mu.Lock()
			r.doubt(batch, rev) // a deposed leader says so, too
			r.mu.Unlock()
			return err
		case errors.Is(err, kv.ErrRejected):
			if r.e.limits() != limits {
				continue // to what fits by now
			}
			// The record is larger than this connection takes, by another's hand. Who
			// wants to add to it need not wait until somebody else has made it smaller.
			r.mu.Lock()
			r.refuse(batch, results, base, rev)
			r.mu.Unlock()
			return err
		case errors.Is(err, jskv.ErrNotSent):
			r.e.cfg.Suspect() // nobody answers for a stream that is no more
			return err
		default:
			return err
		}
	}
}

// failFast reports whether the silence of a request of the batch is told somebody.
func failFast(batch []*call) bool {
	return slices.ContainsFunc(batch, func(c *call) bool { return c.failFast })
}

func operations(batch []*call) []record.Op {
	ops := make([]record.Op, len(batch))
	for i, c := range batch {
		ops[i] = c.op
		if c.op.Patience > 0 {
			ops[i].Patience = max(c.op.Patience-time.Since(c.asked), 1) // of what it had when it was asked for
		}
	}
	return ops
}

// over reports whether nobody waits for the call any more. Called with r.mu held.
func over(c *call) bool { return c.resolved || c.dropped }

// doubt notes that a write of the batch at rev may be committed, now or later.
// Called with r.mu held.
func (r *resource) doubt(batch []*call, rev uint64) {
	if !slices.Contains(r.uncertain, rev) && (rev >= r.newestRev || rev == 0) {
		r.uncertain = append(r.uncertain, rev)
	}
	for _, c := range batch {
		c.outcomeUnknown = true
		c.maybeFound = c.maybeFound || c.found
	}
}

// write stores the record that a batch makes of base, or deletes it when nobody
// holds or waits any more.
func (r *resource) write(ctx context.Context, batch []*call, base, next *record.Record, rev uint64) (uint64, error) {
	limit, before := r.limit(&r.silent.writes, failFast(batch))
	actx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r.e.rounds.Add(1)
	sent := time.Now()
	var newRev uint64
	var err error
	if next.Idle() {
		newRev, err = r.e.cfg.Store.Purge(actx, r.key, rev, jskv.MarkerTTL)
		if err == nil {
			r.reportEvicted(batch, base, next)
		}
	} else {
		value := next.Append(nil)
		r.setInFlight(value)
		newRev, err = r.e.cfg.Store.Update(actx, r.key, value, rev, 0)
		if err == nil {
			r.reportEvicted(batch, base, next) // before the watch may tell of grants
		}
		r.setInFlight(nil)
	}
	switch {
	case err == nil:
		r.silent.writes.Store(0)
		r.silent.reads.Store(0)
		r.e.cfg.RTT.Observe(time.Since(sent))
	case errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrBusy):
		r.silent.writes.Store(0)
		r.silent.reads.Store(0)
		r.e.cfg.RTT.ObserveQuick(time.Since(sent))
	case unanswered(ctx, err):
		r.noteSilence(&r.silent.writes, before)
	}
	if err == nil {
		r.e.writes.Add(1)
	}
	return newRev, err
}

func (r *resource) setInFlight(value []byte) {
	r.mu.Lock()
	r.inFlight = value
	r.mu.Unlock()
}

// deliver gives every call of a batch what the committed record says about it.
// Called with r.mu held.
func (r *resource) deliver(batch []*call, results []record.Result, rec *record.Record, rev uint64) {
	r.refuse(batch, results, rec, rev)
	queued := false
	for _, c := range batch {
		if c.resolved || c.dropped {
			continue
		}
		if !c.op.Waits() {
			if rec == nil && c.found {
				r.holdTime = record.SmoothHold(r.holdTime, c.op.Hold) // no record is left to remember it
			}
			c.resolve(Outcome{Revision: rev, Record: rec, Existed: c.found || c.maybeFound}, nil)
			continue
		}
		st := rec.Standing(&c.op)
		if st.Standing != record.Waiting {
			c.stands(st, rec, rev)
			continue
		}
		if r.waiting == nil {
			r.waiting = map[string]*call{}
		}
		r.waiting[c.op.ID] = c
		c.standsIn(rec)
		queued = true
	}
	// A promotion in this very write may concern goroutines that queued before,
	// and the watch may have brought something newer already.
	if queued || len(r.waiting)+len(r.holds) > 0 {
		r.settle()
	}
}

// refuse ends the calls of a batch that the record at rev forbids. Called with r.mu held.
func (r *resource) refuse(batch []*call, results []record.Result, rec *record.Record, rev uint64) {
	for i, c := range batch {
		res := results[i]
		if c.resolved || c.dropped || res.Verdict == record.Applied {
			continue
		}
		if res.Blocker.ID != "" {
			res.Blocker.Resolve(rev) // it may be in the way since this very write
		}
		c.resolve(Outcome{}, &RefusedError{Result: res, Record: rec, Uncertain: c.outcomeUnknown})
	}
}

// present reports whether rec has the entry that op names, or any if it names none.
func present(rec *record.Record, op *record.Op) bool {
	return rec.Has(op.ID) || op.ID == "" && rec != nil
}

// manyBusy is how many times in a row the server may put a write off before that
// is taken for more than the moment it is as a rule. A leader that was cut off does
// it for some ten seconds.
const manyBusy = 10

// backoff spaces the rounds after failures.
type backoff struct{ failures, busy int }

func (b *backoff) reset() { *b = backoff{} }

// next returns the pause before the next attempt: short where another writer
// was met, longer where nobody answered, always jittered so that writers part.
func (b *backoff) next(err error) time.Duration {
	b.failures++
	if !errors.Is(err, jskv.ErrBusy) {
		b.busy = 0
	} else if b.busy++; b.busy > manyBusy {
		return around(min(20*time.Millisecond<<min(b.busy-manyBusy, 10), 250*time.Millisecond))
	}
	base, limit := 200*time.Microsecond, 20*time.Millisecond
	if !errors.Is(err, jskv.ErrConflict) && !errors.Is(err, jskv.ErrBusy) {
		base, limit = 20*time.Millisecond, time.Second
	}
	return around(min(base<<min(b.failures-1, 10), limit))
}

// around returns a random time, d on average.
func around(d time.Duration) time.Duration { return d/2 + rand.N(d) }
