package coalesce

import (
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Place is where an operation waits in the record that was committed with it.
type Place struct {
	// Position in the queue: 1 is granted next. 0 is a conversion, which stands
	// before the queue.
	Position int
	// Blocker is one of those in the way: a holder that is incompatible with what
	// is asked for, or else the next in the queue before it.
	Blocker record.Entry
}

// standsIn notes where the call waits, if somebody wants to know. Called with
// r.mu held.
func (c *call) standsIn(rec *record.Record) {
	if c.placed == nil || c.place != nil {
		return
	}
	p := Place{}
	mode := c.op.Mode
	ahead := slices.IndexFunc(rec.Waiters, func(e record.Entry) bool { return e.ID == c.op.ID })
	if ahead >= 0 {
		p.Position = ahead + 1
	}
	inTheWay := func(e record.Entry) bool { return e.ID != c.op.Holder && !record.Compatible(e.Mode, mode) }
	converts := func(e record.Entry) bool { return e.Convert.ID != "" && e.Convert.ID != c.op.ID }
	if i := slices.IndexFunc(rec.Holders, inTheWay); i >= 0 {
		p.Blocker = rec.Holders[i]
	} else if ahead > 0 {
		p.Blocker = rec.Waiters[ahead-1]
	} else if i := slices.IndexFunc(rec.Holders, converts); i >= 0 {
		p.Blocker = rec.Holders[i]
	}
	c.place = &p
	close(c.placed)
}

// reportPlace calls fn, once, if the call has waited. Only the goroutine in Do
// calls it.
func (c *call) reportPlace(fn func(Place)) {
	c.r.mu.Lock()
	p, told := c.place, c.told
	c.told = c.told || p != nil
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
		if c.op.Kind != record.OpEvict {
			continue
		}
		for _, id := range c.op.Leases {
			if !slices.Contains(leases, id) && holdsLease(base, id) && !holdsLease(next, id) {
				leases = append(leases, id)
			}
		}
	}
	if len(leases) == 0 {
		return
	}
	entries := 0
	for _, list := range [][]record.Entry{base.Holders, base.Waiters} {
		for i := range list {
			if slices.Contains(leases, list[i].Lease()) {
				entries++
			}
		}
	}
	r.e.cfg.Evicted(r.key, leases, entries)
}
