package engine

import (
	"maps"
	"math/rand/v2"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// observe keeps the set of observed leases equal to those that stand in the
// way of this process's waiters: every holder and every waiter ahead, from the
// moment they queue, so that any number of dead ones costs one TTL together.
// Called with r.mu held.
func (r *resource) observe() {
	ahead, urgent := r.ahead()
	for id, stop := range r.observed {
		if _, ok := ahead[id]; !ok {
			stop()
			delete(r.observed, id)
		}
	}
	for id := range r.dead {
		if _, ok := ahead[id]; !ok {
			delete(r.dead, id)
		}
	}
	for id, ttl := range ahead {
		if _, ok := r.observed[id]; ok || r.dead[id] {
			continue
		}
		if r.observed == nil {
			r.observed = map[string]func(){}
		}
		r.observed[id] = r.e.cfg.Observer.Observe(id, ttl, urgent, r.leaseDied)
	}
}

// ahead returns the leases, with their TTLs, of all entries that operations of this
// process wait for. Leases of this process are among them: their end has to reach
// its waiters, too. urgent is whether one of these operations is granted next.
// Called with r.mu held.
func (r *resource) ahead() (leases map[string]time.Duration, urgent bool) {
	if len(r.waiting) == 0 || r.closed {
		return nil, false
	}
	all, urgent := r.rec.Ahead(func(id string) bool { return r.waiting[id] != nil })
	return maps.Collect(all), urgent
}

// leaseDied is told by the observer that a lease's tombstone is committed. The
// head of the queue evicts at once, others after a pause in which the head has
// usually done it.
func (r *resource) leaseDied(id string) {
	r.e.goIfOpen(func() {
		r.mu.Lock()
		delete(r.observed, id)
		if r.dead == nil {
			r.dead = map[string]bool{}
		}
		r.dead[id] = true
		_, urgent := r.ahead()
		r.mu.Unlock()
		took, _ := r.e.cfg.RTT.RTT() // by the head, and until we are told
		if !urgent && !r.e.sleep(r.e.ctx, took+50*time.Millisecond+rand.N(200*time.Millisecond)) {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.evictDead()
	})
}

// evictDead removes the entries of all leases that are known to be dead in one
// write. Called with r.mu held.
func (r *resource) evictDead() {
	if len(r.waiting) == 0 {
		// The next one who waits has them observed, and is told at once.
		clear(r.dead)
		return
	}
	var leases []string
	for id := range r.dead {
		if r.rec.HasLease(id) {
			leases = append(leases, id)
		} else {
			delete(r.dead, id) // as above, should its entry turn up
		}
	}
	if len(leases) == 0 {
		return
	}
	r.submit(&call{r: r, op: record.Op{Verb: record.OpEvict, Leases: leases}})
}
