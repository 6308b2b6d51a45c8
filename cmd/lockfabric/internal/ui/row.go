package ui

import (
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// shownHolders is how many holders a row has.
const shownHolders = 3

// row is what the list shows of one name.
type row struct {
	Key     string   `json:"key"`
	Kind    string   `json:"kind"`
	State   string   `json:"state"`
	Holders []holder `json:"holders"` // the first ones
	Held    int      `json:"held"`
	Waiting int      `json:"waiting"`
	Next    string   `json:"next,omitempty"` // lease of the first waiter
}

type holder struct {
	Owner   string    `json:"owner,omitempty"` // one that was given
	Mode    string    `json:"mode,omitempty"`
	Token   uint64    `json:"token,string"`
	Since   time.Time `json:"since"`
	Lease   string    `json:"lease"`
	Revoked bool      `json:"revoked,omitempty"`
}

func newRow(info fabric.Info, state string) row {
	r := row{Key: info.Key, Kind: info.Kind, State: state, Holders: []holder{}, Held: len(info.Holders), Waiting: len(info.Waiters)}
	for _, p := range info.Holders[:min(len(info.Holders), shownHolders)] {
		h := holder{Mode: string(p.Mode), Token: p.Token, Since: p.Since, Lease: p.Lease.ID, Revoked: p.Revoked}
		if p.Owner != p.ID {
			h.Owner = p.Owner
		}
		r.Holders = append(r.Holders, h)
	}
	for _, c := range info.Conditions {
		r.Waiting += len(c.Waiters)
	}
	if len(info.Waiters) > 0 {
		r.Next = info.Waiters[0].Lease.ID
	}
	return r
}

// leases are those that the row speaks of.
func (r *row) leases() []string {
	ids := make([]string, 0, len(r.Holders)+1)
	for _, h := range r.Holders {
		ids = append(ids, h.Lease)
	}
	if r.Next != "" {
		ids = append(ids, r.Next)
	}
	return ids
}
