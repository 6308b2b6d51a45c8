package coalesce

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Times of trips.
const (
	tickEvery    = 500 * time.Millisecond // interval of onTick
	minOwnerWait = 500 * time.Millisecond // shortest time until a trip takes the direct road as well
)

// forgetOpenCalls ends the tracking of an acquire that owners may have. Later replies about it are ignored.
// Called with mu held.
func (r *Router) forgetOpenCalls(t *trip) {
	for _, k := range t.openCalls {
		delete(k.term.calls, k.name())
	}
	t.openCalls = nil
	if id := t.req.Op.ID; r.acquires[id] == t {
		delete(r.acquires, id)
	}
	r.updateHasWork()
}

// updateHasWork clears hasWork if there are no acquires and no trips. Called with mu held.
func (r *Router) updateHasWork() {
	if len(r.acquires)+len(r.trips) == 0 {
		r.hasWork.Store(false)
	}
}

// takeBack releases an acquire on the direct road, in the background. Called with mu held.
func (r *Router) takeBack(t *trip) {
	q := r.releaseRequest(t)
	q.Done = func(engine.Outcome, error) {}
	r.client.due.submit(q)
	r.client.due.add(action{withdraw: q, cause: engine.ErrGone}) // the engine completes a withdrawn release
	r.forgetOpenCalls(t)
}

// releaseRequest returns the request that releases an acquire on the direct road. The release always proves itself by a
// committed record. An owner does not write an acquire if others have written its key since the client sent it. So one
// committed release of any process ends the acquire on both roads, and no list of owners is needed.
func (r *Router) releaseRequest(t *trip) *engine.Request {
	return &engine.Request{Key: t.req.Key, Op: t.undoOp(), AtLeast: t.req.AtLeast, Prove: true}
}

// undoOp returns the release of the trip's acquire.
func (t *trip) undoOp() record.Op {
	return record.Op{Verb: record.OpRelease, ID: t.req.Op.ID, Lease: t.req.Op.Lease}
}

// armTick starts the timer of onTick, if it is not running. Called with mu held.
func (r *Router) armTick() {
	if r.tick == nil {
		r.tick = time.AfterFunc(tickEvery, r.onTick)
	}
}

// onTick sends trips on the direct road that have waited for the owner for too long. A reply may be lost, or a process
// that grants by a direct write does not tell the owner.
func (r *Router) onTick() {
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	r.tick = nil
	if c.closed || len(r.trips) == 0 {
		return
	}
	now := time.Now()
	for _, t := range r.tripsInOrder("") {
		if t.answered && !t.turnPassed || t.direct != nil || t.call == nil || now.Sub(t.startedAt) < r.ownerTimeout(t) {
			continue
		}
		switch {
		case t.released:
			t.maybeDone = true
			r.noteReleased(t, engine.Outcome{}, false)
		case t.cause != nil:
			r.callLost(t.call)
		default:
			t.maybeDone = t.maybeDone || t.isRelease()
			c.stats.Fallbacks++
			r.goDirect(t)
		}
	}
	r.armTick()
}

// ownerTimeout returns how long a trip waits for the owner before it takes the direct road as well. Called with mu held.
func (r *Router) ownerTimeout(t *trip) time.Duration {
	mean, _ := r.client.link.RTT()
	d := max(minOwnerWait, 4*mean, r.client.minSilence) * time.Duration(max(t.position, 1))
	if ttl := t.req.Op.TTL; ttl > 0 {
		d = min(d, ttl/3)
	}
	return d
}

// Unresolved returns the age of the oldest withdrawn operation under the lease that is not over, on both roads.
// See engine.Engine.Unresolved.
func (r *Router) Unresolved(lease string) time.Duration {
	longest := r.engine.Unresolved(lease)
	if !r.hasWork.Load() {
		return longest
	}
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	for t := range r.trips {
		if t.cause != nil && t.req.Op.Lease == lease {
			longest = max(longest, time.Since(t.startedAt), 1)
		}
	}
	return longest
}

// DropLease ends all operations under the lease, on both roads. The lease's tombstone is committed. See engine.Engine.DropLease.
func (r *Router) DropLease(lease string) {
	r.engine.DropLease(lease)
	if !r.hasWork.Load() {
		return
	}
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	for _, t := range r.acquires {
		if t.req.Op.Lease == lease {
			r.forgetOpenCalls(t)
		}
	}
	for t := range r.trips {
		if t.req.Op.Lease == lease {
			err := t.cause
			if err == nil {
				err = engine.ErrGone
			}
			r.answer(t, engine.Outcome{}, err)
		}
	}
}
