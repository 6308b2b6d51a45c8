package engine

import (
	"maps"
	"time"
)

// obstacles are the leases of all entries that stand in the way of this process's waiters on one
// key: every holder and every waiter ahead, from the moment they queue, so that any number of
// dead ones costs one TTL together.
type obstacles struct {
	observed map[string]func() // and how to stop observing
	dead     map[string]bool   // whose tombstone is committed
	urgent   bool              // one of the waiters was next, when they were last told
}

// follow makes the set of observed leases equal to ahead. Where a waiter has become the next one, they are observed
// anew: what was asked for one deep in the queue is answered with more patience.
func (o *obstacles) follow(ahead map[string]time.Duration, urgent bool, observe func(id string, ttl time.Duration) (stop func())) {
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
			stop() // not before: what was seen counts as long as somebody asks
		}
	}
}

// died notes that a lease's tombstone is committed.
func (o *obstacles) died(id string) {
	delete(o.observed, id)
	if o.dead == nil {
		o.dead = map[string]bool{}
	}
	o.dead[id] = true
}

// again has leases observed anew, should their entries still be in the way.
func (o *obstacles) again(leases []string) {
	for _, id := range leases {
		delete(o.dead, id)
	}
}

// evictable returns the dead leases under which entries stand, and forgets the others: whoever
// waits for them later is told of their end again.
func (o *obstacles) evictable(stands func(lease string) bool) (leases []string) {
	for id := range o.dead {
		if stands(id) {
			leases = append(leases, id)
		} else {
			delete(o.dead, id)
		}
	}
	return leases
}
