package engine

import (
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// standsIn notes where the call waits, if somebody wants to know. Called with
// r.mu held.
func (c *call) standsIn(rec *record.Record) {
	if c.placed == nil || c.place != nil {
		return
	}
	p := rec.Place(&c.op)
	c.place = &p
	close(c.placed)
}

// reportPlace calls fn, once, if the call has waited. Only the goroutine in Do
// calls it.
func (c *call) reportPlace(fn func(record.Place)) {
	c.r.mu.Lock()
	p, told := c.place, c.reported
	c.reported = c.reported || p != nil
	c.r.mu.Unlock()
	if p != nil && !told {
		fn(*p)
	}
}

// reportEvicted tells which leases a committed write has evicted: those that its
// batch names and that had entries in base. Called without r.mu.
func (r *resource) reportEvicted(batch []*call, base, next *record.Record) {
	if r.e.cfg.Evicted == nil || base == nil {
		return
	}
	var leases []string
	for _, c := range batch {
		for _, id := range c.op.Leases {
			if !slices.Contains(leases, id) && base.HasLease(id) && !next.HasLease(id) {
				leases = append(leases, id)
			}
		}
	}
	if len(leases) > 0 {
		r.e.cfg.Evicted(r.key, leases, base.EntriesUnder(leases...))
	}
}
