package coalesce

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// An owner writes an acquire only if nobody else has written the key since the client asked for it. So a release that this
// process commits, or another owner, is the end of an acquire on all roads: no list of owners has to be kept.

// Times of the ledger.
const (
	tickEvery = 500 * time.Millisecond
	lookFirst = 500 * time.Millisecond // until a trip takes the direct road as well
)

// settle forgets which owners an acquire is with: what they say of it matters no more. Called with mu held.
func (r *Router) settle(t *trip) {
	for _, k := range t.open {
		delete(k.term.calls, k.name())
	}
	t.open = nil
	if id := t.req.Op.ID; r.asked[id] == t {
		delete(r.asked, id)
	}
	r.rest()
}

// rest notes that there is nothing left, if that is so. Called with mu held.
func (r *Router) rest() {
	if len(r.asked)+len(r.trips) == 0 {
		r.owes.Store(false)
	}
}

// giveUp releases an acquire directly, in the background. Called with mu held.
func (r *Router) giveUp(t *trip) {
	q := r.release(t)
	q.Done = func(engine.Outcome, error) {}
	r.client.due.submit(q)
	r.client.due.add(action{withdraw: q, cause: engine.ErrGone}) // the engine goes on with it
	r.settle(t)
}

// release is what takes an acquire back on the direct road, by a committed write in any case.
func (r *Router) release(t *trip) *engine.Request {
	return &engine.Request{Key: t.req.Key, Op: t.undo(), AtLeast: t.req.AtLeast, Prove: true}
}

// undo is the operation that takes an acquire back.
func (t *trip) undo() record.Op {
	return record.Op{Verb: record.OpRelease, ID: t.req.Op.ID, Lease: t.req.Op.Lease}
}

// arm has trips looked at later, if there are any. Called with mu held.
func (r *Router) arm() {
	if r.tick == nil {
		r.tick = time.AfterFunc(tickEvery, r.onTick)
	}
}

// onTick looks after what takes long: a reply may have got lost, or who let it in does not tell the owner.
func (r *Router) onTick() {
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	r.tick = nil
	if c.closed || len(r.trips) == 0 {
		return
	}
	now := time.Now()
	for t := range r.trips {
		if t.answered && !t.passed || t.direct != nil || t.call == nil || now.Sub(t.since) < r.patience(t) {
			continue
		}
		switch {
		case t.released:
			t.missed = true
			r.releasedOnce(t, engine.Outcome{}, false)
		case t.cause != nil:
			r.lost(t.call)
		default:
			t.missed = t.missed || t.releases()
			c.stats.Fallbacks++
			r.goDirect(t)
		}
	}
	r.arm()
}

// patience is how long a wait relies on the owner alone. Called with mu held.
func (r *Router) patience(t *trip) time.Duration {
	mean, _ := r.client.link.RTT()
	d := max(lookFirst, 4*mean, r.client.least) * time.Duration(max(t.position, 1))
	if ttl := t.req.Op.TTL; ttl > 0 {
		d = min(d, ttl/3)
	}
	return d
}

// Unresolved is that of the engine, of all roads: how long the oldest operation under the lease has
// been going on that nobody waits for any more.
func (r *Router) Unresolved(lease string) time.Duration {
	longest := r.engine.Unresolved(lease)
	if !r.owes.Load() {
		return longest
	}
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	for t := range r.trips {
		if t.cause != nil && t.req.Op.Lease == lease {
			longest = max(longest, time.Since(t.since), 1)
		}
	}
	return longest
}

// DropLease is that of the engine, of all roads: the lease's tombstone is committed.
func (r *Router) DropLease(lease string) {
	r.engine.DropLease(lease)
	if !r.owes.Load() {
		return
	}
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	for _, t := range r.asked {
		if t.req.Op.Lease == lease {
			r.settle(t)
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
