package coalesce

import (
	"context"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// claim is an acquire's id that an owner may still write. As long as it is wanted that does no
// harm: the id is the same on all roads. Once it isn't, the ledger goes on until no owner can.
type claim struct {
	id, key, lease string
	wanted         bool
	seen           uint64    // a revision that was committed before the id was sent anywhere
	direct         bool      // it was sent on the direct road
	deaf           bool      // it takes no turn
	turn           uint64    // the ticket of one that holds by a turn, as long as the record may not say so
	ends           bool      // a wait on its way gives the hold up, as soon as it is committed
	since          time.Time // when it ceased to be wanted
	told           int       // how often owners were asked again to take it back
	calls          []*call   // acquires that owners may still write, one for each term
	undo           *call     // what takes it back, at the owner of this moment
	proving        bool      // a write is under way that shuts out what terms that are over have sent
}

// Times of the ledger.
const (
	tickEvery  = 500 * time.Millisecond
	undoAgain  = time.Second            // until an owner is asked again to take something back; each time twice as long
	lookFirst  = 500 * time.Millisecond // until a trip takes the direct road as well
	deadWithin = 2 * time.Second
)

// at returns the calls at a term.
func (cl *claim) at(t *term) (at []*call) {
	if cl != nil {
		for _, k := range cl.calls {
			if k.term == t {
				at = append(at, k)
			}
		}
	}
	return at
}

// over returns the calls at terms that are over: a write that is committed from now on shuts out
// whatever these have sent.
func (cl *claim) over() (over []*call) {
	for _, k := range cl.calls {
		if k.term.dead {
			over = append(over, k)
		}
	}
	return over
}

// settle notes that these calls won't be written any more. Called with mu held.
func (r *Router) settle(cl *claim, calls []*call) {
	if cl == nil || len(calls) == 0 {
		return
	}
	for _, k := range calls {
		delete(k.term.calls, callKey{cl.id, false})
		if k.term.dead {
			delete(k.term.calls, callKey{cl.id, true})
		}
	}
	cl.calls = slices.DeleteFunc(cl.calls, func(k *call) bool { return slices.Contains(calls, k) })
	r.forget(cl)
}

// forget drops a claim that no owner has any more. Called with mu held.
func (r *Router) forget(cl *claim) {
	if cl != nil && len(cl.calls) == 0 && r.claims[cl.id] == cl {
		delete(r.claims, cl.id)
	}
	if len(r.claims)+len(r.trips) == 0 {
		r.owes.Store(false)
	}
}

// unwanted has every owner that may still write an id take it back. Called with mu held.
func (r *Router) unwanted(cl *claim) {
	if cl.wanted {
		cl.wanted, cl.since = false, time.Now()
	}
	r.sendUndo(cl, false)
	r.arm()
}

// sendUndo sends releases after acquires, to the same owners; again if they were sent before.
// Called with mu held.
func (r *Router) sendUndo(cl *claim, again bool) {
	c := r.client
	for _, k := range cl.calls {
		if k.term.dead || c.closed {
			continue
		}
		u := k.term.calls[callKey{cl.id, true}]
		switch {
		case u == nil:
			u = &call{term: k.term, claim: cl}
			u.item = item{key: cl.key, op: record.Op{Verb: record.OpRelease, ID: cl.id, Lease: cl.lease}}
			c.submit(u)
		case again && u.sends > 0:
			k.term.out = append(k.term.out, u)
		}
		if k.term == c.now {
			cl.undo = u
			continue
		}
		c.send(k.term)
		k.term.unacked = nil // nobody waits for it
	}
}

// arm has the ledger looked at later, if there is anything in it. Called with mu held.
func (r *Router) arm() {
	if r.tick == nil {
		r.tick = time.AfterFunc(tickEvery, r.onTick)
	}
}

// onTick looks after what takes long.
func (r *Router) onTick() {
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	r.tick = nil
	if c.closed || len(r.claims)+len(r.trips) == 0 {
		return
	}
	now := time.Now()
	for t := range r.trips {
		if t.answered && !t.passed || t.direct != nil || t.call == nil || now.Sub(t.since) < r.patience(t) {
			continue
		}
		// A reply may have got lost, or who let it in does not tell the owner.
		switch {
		case t.cause != nil:
			r.lost(t.call)
		case t.released:
			r.releasedOnce(t, engine.Outcome{}, false)
		default:
			t.missed = t.missed || t.releases()
			c.stats.Fallbacks++
			r.goDirect(t)
		}
	}
	ask := map[*term]bool{}
	for _, cl := range r.claims {
		for _, k := range cl.calls {
			if k.term != c.now && !k.term.dead {
				ask[k.term] = true
			}
		}
		if !cl.wanted && now.Sub(cl.since) > undoAgain {
			if now.Sub(cl.since) > undoAgain<<cl.told {
				cl.told++
				r.sendUndo(cl, true)
			}
			r.prove(cl)
		}
	}
	for t := range ask {
		r.wg.Go(func() { r.askDead(t) })
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

// askDead finds out whether a term is over.
func (r *Router) askDead(t *term) {
	ctx, cancel := context.WithTimeout(r.ctx, deadWithin)
	defer cancel()
	dead, err := r.cfg.LeaseDead(ctx, t.lease)
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	if err == nil && dead {
		t.dead = true
		t.out, t.unacked = nil, nil
		for _, cl := range r.claims {
			if !cl.wanted {
				r.prove(cl)
			}
		}
	}
}

// prove shuts out what terms that are over may have sent for an unwanted id, by a committed write
// on its key. Called with mu held.
func (r *Router) prove(cl *claim) {
	over := cl.over()
	if len(over) == 0 || cl.proving {
		return
	}
	cl.proving = true
	q := &engine.Request{Key: cl.key, Op: record.Op{Verb: record.OpRelease, ID: cl.id, Lease: cl.lease}, Prove: true}
	q.Done = func(_ engine.Outcome, err error) {
		r.client.mu.Lock()
		defer r.client.unlock()
		cl.proving = false
		if err == nil {
			r.settle(cl, over)
		}
	}
	r.client.due.submit(q)
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
	for _, cl := range r.claims {
		if cl.lease == lease && !cl.wanted {
			longest = max(longest, time.Since(cl.since), 1)
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
	for _, cl := range r.claims {
		if cl.lease == lease {
			r.settle(cl, slices.Clone(cl.calls))
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
