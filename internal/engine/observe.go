package engine

import (
	"maps"
	"time"
)

// leasesAhead are the leases of all entries in the way of this process's waiters on one
// key: every holder and every waiter ahead. They are observed from the moment the waiter queues, so that any number of
// dead ones costs one TTL together.
type leasesAhead struct {
	observed map[string]func() // with the function that stops the observation
	dead     map[string]bool   // leases with a committed tombstone
	urgent   bool              // at the last follow, one of the waiters was next
}

// follow makes the set of observed leases equal to ahead. When a waiter has become the next one, follow starts
// the observations again, since an observation for a deep waiter is more patient.
func (o *leasesAhead) follow(ahead map[string]time.Duration, urgent bool, observe func(id string, ttl time.Duration) (stop func())) {
	anew := urgent && !o.urgent
	o.urgent = urgent
	for id, stop := range o.observed {
		if _, ok := ahead[id]; !ok {
			stop()
			delete(o.observed, id)
		}
	}
	maps.DeleteFunc(o.dead, func(id string, _ bool) bool { _, ok := ahead[id]; return !ok })
	for id, ttl := range ahead {
		stop, ok := o.observed[id]
		if ok && !anew || o.dead[id] {
			continue
		}
		if o.observed == nil {
			o.observed = map[string]func(){}
		}
		o.observed[id] = observe(id, ttl)
		if ok {
			stop() // only now: what the observer has seen counts as long as there is an observation
		}
	}
}

// died notes that a lease has a committed tombstone.
func (o *leasesAhead) died(id string) {
	delete(o.observed, id)
	if o.dead == nil {
		o.dead = map[string]bool{}
	}
	o.dead[id] = true
}

// observeAgain has leases observed again, if their entries are still in the way.
func (o *leasesAhead) observeAgain(leases []string) {
	for _, id := range leases {
		delete(o.dead, id)
	}
}

// evictable returns the dead leases that have entries, and forgets the other dead ones: if a waiter
// meets them later, the observer reports their end again.
func (o *leasesAhead) evictable(stands func(lease string) bool) (leases []string) {
	for id := range o.dead {
		if stands(id) {
			leases = append(leases, id)
		} else {
			delete(o.dead, id)
		}
	}
	return leases
}
