package ui

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// shownHolders is the maximum number of holders in a row.
const shownHolders = 3

// row is what the list shows for one name.
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
	Owner   string    `json:"owner,omitempty"` // explicit owner
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

// leases returns the leases in the row.
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

const (
	// maxUnits is the maximum number of units of work that are shown.
	maxUnits = 200
	// waitsAge is the maximum age of waits: all pages share one reading.
	waitsAge = 500 * time.Millisecond
)

// graph contains waits, deadlocks, and the coalescer.
type graph struct {
	fabric.Waits
	All       int           `json:"all"`                 // total number, of which units contains the first ones
	Coalescer *fabric.Lease `json:"coalescer,omitempty"` // lease of the coalescer
	StandBy   int           `json:"stand_by"`            // number of candidates
}

func (s *server) waits(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	s.waiting.Lock()
	defer s.waiting.Unlock()
	if time.Since(s.waiting.at) < waitsAge {
		answer(w, http.StatusOK, s.waiting.is)
		return
	}
	waits, err := s.locks.Waits(ctx)
	coalescer, cerr := s.locks.Coalescer(ctx)
	if err := cmp.Or(err, cerr); err != nil {
		refuse(w, statusOf(err), err.Error())
		return
	}
	is := graph{Waits: waits, All: len(waits.Units)}
	is.Units = is.Units[:min(is.All, maxUnits)]
	if len(coalescer.Holders) > 0 {
		is.Coalescer, is.StandBy = &coalescer.Holders[0].Lease, len(coalescer.Waiters)
	}
	s.waiting.is, s.waiting.at = is, time.Now()
	answer(w, http.StatusOK, is)
}

// maxParties is the maximum number of holders, or of waiters of one queue, that are shown.
const maxParties = 200

// details describes one name.
type details struct {
	fabric.Info
	Now     time.Time `json:"now"`
	State   string    `json:"state"`
	Held    int       `json:"held"`    // total number, of which holders contains the first ones
	Waiting int       `json:"waiting"` // total number, of which waiters contains the first ones
}

func (s *server) key(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	info, err := s.locks.Read(ctx, r.URL.Query().Get("name"))
	if err != nil {
		refuse(w, statusOf(err), err.Error())
		return
	}
	d := details{Info: info, Now: time.Now(), State: s.cfg.State(info), Held: len(info.Holders), Waiting: len(info.Waiters)}
	d.Holders, d.Waiters = info.Holders[:min(d.Held, maxParties)], info.Waiters[:min(d.Waiting, maxParties)]
	for i := range d.Conditions {
		c := &d.Conditions[i]
		c.Waiters = c.Waiters[:min(len(c.Waiters), maxParties)]
	}
	if err := s.locks.Identify(ctx, []fabric.Info{d.Info}); err != nil {
		refuse(w, statusOf(err), err.Error())
		return
	}
	answer(w, http.StatusOK, d)
}

// release takes a lock from the named holders, and from nobody else.
func (s *server) release(w http.ResponseWriter, r *http.Request) {
	if !s.cfg.AllowRelease {
		refuse(w, http.StatusForbidden, "not allowed: start the page with --allow-release")
		return
	}
	var req struct {
		Key     string   `json:"key"`
		Holders []string `json:"holders"`
		Now     bool     `json:"now"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, "not readable: "+err.Error())
		return
	}
	// Without an id, or with an empty one, the request would apply to all present holders.
	if len(req.Holders) == 0 || len(req.Holders) > maxParties || slices.Contains(req.Holders, "") {
		refuse(w, http.StatusBadRequest, "name the holders to take it from")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	released := 0
	for _, id := range req.Holders {
		opts := []fabric.ForceOption{fabric.ForceHolder(id)}
		if req.Now {
			opts = append(opts, fabric.ForceNow())
		}
		n, err := s.locks.ForceRelease(ctx, req.Key, opts...)
		released += n
		if err != nil {
			refuse(w, statusOf(err), err.Error())
			return
		}
	}
	answer(w, http.StatusOK, struct {
		Released int `json:"released"`
	}{released})
}

func statusOf(err error) int {
	for _, k := range []struct {
		status int
		is     []error
	}{
		{http.StatusBadRequest, []error{fabric.ErrInvalidName, fabric.ErrInvalidOption}},
		{http.StatusForbidden, []error{nats.ErrPermissionViolation, nats.ErrAuthorization}},
		{http.StatusConflict, []error{fabric.ErrKindMismatch, fabric.ErrMalformedRecord, fabric.ErrNewerSchema}},
		{http.StatusServiceUnavailable, []error{fabric.ErrUnavailable, fabric.ErrClosed, context.DeadlineExceeded, context.Canceled}},
	} {
		if slices.ContainsFunc(k.is, func(target error) bool { return errors.Is(err, target) }) {
			return k.status
		}
	}
	return http.StatusInternalServerError
}

const (
	// atOnce is how many leases are looked up at the same time.
	atOnce = 200
	// remember is how long the result for a lease is used.
	remember = 10 * time.Second
)

// people contains the processes of the leases that a page shows.
type people struct {
	known   map[string]*person
	looking bool
	due     bool // leases may have to be looked up again
}

type person struct {
	lease fabric.Lease
	at    time.Time // when it was looked up
}

// next returns leases to look up now, unknown ones first. It forgets leases that are in no row.
func (p *people) next(rows map[string]row) []string {
	if p.looking {
		return nil
	}
	now := time.Now()
	used := map[string]bool{}
	var unknown, old []string
	for _, r := range rows {
		for _, id := range r.leases() {
			if used[id] {
				continue
			}
			used[id] = true
			switch one := p.known[id]; {
			case one == nil:
				unknown = append(unknown, id)
			case p.due && now.Sub(one.at) >= remember:
				old = append(old, id)
			}
		}
	}
	maps.DeleteFunc(p.known, func(id string, _ *person) bool { return !used[id] })
	p.due = false
	ids := slices.Concat(unknown, old)
	ids = ids[:min(len(ids), atOnce)]
	p.looking = len(ids) > 0
	return ids
}

// identify looks up the processes of leases. A lease without an answer is unknown.
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

// introduce writes what has changed about leases.
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
