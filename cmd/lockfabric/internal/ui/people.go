package ui

import (
	"context"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

const (
	// atOnce is how many leases are looked up at a time.
	atOnce = 200
	// remember is how long what was found about a lease is believed.
	remember = 10 * time.Second
)

// people is who stands behind the leases that a page shows.
type people struct {
	known   map[string]*person
	looking bool
	due     bool // leases may have to be looked up again
}

type person struct {
	lease fabric.Lease
	at    time.Time // when it was looked up
}

// again has leases looked up again whose time has come.
func (p *people) again() { p.due = true }

// next returns leases to look up now: unknown ones, and from time to time the others.
// It forgets those that no row has.
func (p *people) next(rows map[string]row) []string {
	if p.looking {
		return nil
	}
	now := time.Now()
	used := map[string]struct{}{}
	var unknown, old []string
	for _, r := range rows {
		for _, id := range r.leases() {
			if _, again := used[id]; again {
				continue
			}
			used[id] = struct{}{}
			switch one := p.known[id]; {
			case one == nil:
				unknown = append(unknown, id)
			case p.due && now.Sub(one.at) >= remember:
				old = append(old, id)
			}
		}
	}
	for id := range p.known {
		if _, ok := used[id]; !ok {
			delete(p.known, id)
		}
	}
	p.due = false
	ids := slices.Concat(unknown, old)
	ids = ids[:min(len(ids), atOnce)]
	p.looking = len(ids) > 0
	return ids
}

// identify asks who stands behind leases. Those that nobody answered for are unknown.
func (st *stream) identify(ctx context.Context, ids []string) map[string]fabric.Lease {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	info := fabric.Info{}
	for _, id := range ids {
		info.Holders = append(info.Holders, fabric.Party{Lease: fabric.Lease{ID: id, State: "unknown"}})
	}
	_ = st.s.locks.Identify(ctx, []fabric.Info{info}) // what it can't find out stays unknown
	found := map[string]fabric.Lease{}
	for _, p := range info.Holders {
		found[p.Lease.ID] = p.Lease
	}
	return found
}

// introduce writes what is news about leases.
func (st *stream) introduce(found map[string]fabric.Lease) error {
	now := time.Now()
	news := map[string]fabric.Lease{}
	for id, l := range found {
		before := st.people.known[id]
		if before != nil && l.State == "unknown" {
			l.Host, l.PID, l.Label = before.lease.Host, before.lease.PID, before.lease.Label
		}
		st.people.known[id] = &person{lease: l, at: now}
		if same := l; before != nil {
			same.Renewed = before.lease.Renewed
			if same == before.lease {
				continue
			}
		}
		news[id] = l
	}
	if len(news) == 0 {
		return nil
	}
	return st.send("leases", news)
}
