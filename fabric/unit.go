package fabric

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/deadlock"
	"github.com/nats-io/nuid"
)

// unit is a unit of work: it keeps what it holds until it is granted what it waits for. Deadlocks occur between units.
type unit struct {
	// If shared is true, all acquires in the unit belong to it. Otherwise each is a unit of its own, with the holds of
	// this one at that moment. So goroutines in the context of one hold do not wait for each other.
	shared     bool
	owner      string
	outerHolds []*Hold       // holds of the unit in which this one began; not modified
	deaths     *atomic.Int64 // how often this unit, or one that began in it, was a victim

	mu    sync.Mutex
	id    string // "" until it is published
	holds []*Hold

	// For units of an owner, guarded by the mutex of owners.
	users int
	until time.Time // when its deaths are forgotten
}

type unitKey struct{}

func unitIn(ctx context.Context) *unit {
	u, _ := ctx.Value(unitKey{}).(*unit)
	return u
}

// WithUnit starts a unit of work: deadlock detection then assumes that all locks acquired with the returned context, or one
// derived from it, are kept until all of them are granted. So a unit is for one sequence of steps; goroutines that run at
// the same time need separate units: if one waits for another with the same unit, it gets a *DeadlockError. A unit that
// starts in the context of another one also contains what that one holds at this moment.
//
// WithUnit is not needed if locks are acquired inside [Manager.Do], or with [Hold.Context] or [Hold.Within] of the
// previous hold: these contexts know what is held. Holds of different managers belong to different units.
func WithUnit(ctx context.Context) context.Context {
	return context.WithValue(ctx, unitKey{}, newUnit(unitIn(ctx), true))
}

// newUnit returns a unit that starts in outer; outer may be nil.
func newUnit(outer *unit, shared bool) *unit {
	u := &unit{shared: shared, outerHolds: outer.all(), deaths: new(atomic.Int64)}
	if outer != nil {
		u.deaths = outer.deaths
	}
	return u
}

// Holder is what [WithHolding] takes: a *Hold, a *Lock, or a *Set.
type Holder interface {
	Key() string
	Token() uint64
	Context() context.Context
	holding() []*Hold
}

func (h *Hold) holding() []*Hold { return []*Hold{h} }

func (s *Set) holding() (all []*Hold) {
	for _, l := range s.Locks() { // shared intents belong to the unit of these locks
		all = append(all, l.Hold)
	}
	return all
}

// WithHolding tells the acquire that its caller holds these locks, so that a deadlock between them and others is
// detected. It is for code that does not have their context; see [WithUnit].
func WithHolding(holders ...Holder) RequestOption {
	return func(r *request) error {
		for _, h := range holders {
			if h == nil {
				return fmt.Errorf("%w: a holder is nil", ErrInvalidOption)
			}
			r.holding = append(r.holding, h.holding()...)
		}
		return nil
	}
}

// unitFor returns the unit of an acquire: that of WithHolding, else of its context, else of its owner, else nil. leave
// ends the use of the unit.
func (m *Manager) unitFor(ctx context.Context, req *request) (u *unit, leave func()) {
	u, leave = unitIn(ctx), func() {}
	switch {
	case len(req.holding) > 0:
		u = whileHolding(u, req.holding...)
	case u == nil && req.owner != "":
		u = m.owners.enter(req.owner)
		return u, func() { m.owners.leave(u) }
	}
	if u != nil && !u.shared {
		u = newUnit(u, false)
		u.owner = req.owner
	}
	return u, leave
}

// whileHolding returns the unit of work that is done while these holds are held, in a context with the unit outer.
func whileHolding(outer *unit, holds ...*Hold) *unit {
	first := holds[0].unit
	if first != nil && first.shared && (outer == nil || outer == first) && !slices.ContainsFunc(holds, func(h *Hold) bool { return h.unit != first }) {
		return first
	}
	for _, h := range holds {
		if outer == nil {
			outer = h.unit
		}
	}
	u := newUnit(outer, false)
	if outer != nil {
		u.owner = outer.owner
	}
	for _, h := range holds {
		for _, held := range append(h.unit.all(), h) {
			if !slices.Contains(u.outerHolds, held) {
				u.outerHolds = append(u.outerHolds, held)
			}
		}
	}
	return u
}

// holdContext is the context of holds, with the unit of work that is done while they are held.
type holdContext struct {
	context.Context
	holds []*Hold
}

func (c *holdContext) Value(key any) any {
	if _, ok := key.(unitKey); ok {
		return whileHolding(nil, c.holds...)
	}
	return c.Context.Value(key)
}

// all returns what the unit holds now. u may be nil, as in the following methods.
func (u *unit) all() []*Hold {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	all := slices.Concat(u.outerHolds, u.holds)
	u.mu.Unlock()
	return slices.DeleteFunc(all, func(h *Hold) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.err != nil
	})
}

func (u *unit) hasKey(enc string) bool {
	return slices.ContainsFunc(u.all(), func(h *Hold) bool { return h.enc == enc })
}

func (u *unit) add(h *Hold) {
	if u == nil {
		return
	}
	u.mu.Lock()
	u.holds = append(u.holds, h)
	u.mu.Unlock()
	h.s.m.owners.mu.Lock()
	u.users++
	h.s.m.owners.mu.Unlock()
}

// drop records that the unit no longer holds h. Called with h.mu held.
func (u *unit) drop(h *Hold) {
	if u == nil {
		return
	}
	u.mu.Lock()
	i := slices.Index(u.holds, h)
	if i >= 0 {
		u.holds = slices.Delete(u.holds, i, i+1)
	}
	u.mu.Unlock()
	if i >= 0 {
		h.s.m.owners.leave(u)
	}
}

// name returns the name by which other processes know the unit.
func (u *unit) name() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.id == "" {
		u.id = nuid.Next()
	}
	return u.id
}

// member is a unit as seen by one session.
type member struct {
	*unit
	s *session
}

// Describe implements deadlock.Member.
func (m member) Describe() deadlock.Unit {
	d := deadlock.Unit{Unit: m.name(), Owner: m.owner, Deaths: int(m.deaths.Load())}
	for _, h := range m.all() {
		if h.s == m.s && h.lock && !slices.Contains(d.Holds, h.id) {
			d.Holds = append(d.Holds, h.id)
			h.mu.Lock()
			h.listed = true // so the entry must not pass to another hold
			h.mu.Unlock()
		}
	}
	return d
}

// rememberDeaths is how long the number of deaths of an owner that holds nothing is remembered.
const rememberDeaths = time.Minute

// owners contains the units of work of explicit owners.
type owners struct {
	mu    sync.Mutex
	units map[string]*unit
}

func (o *owners) enter(owner string) *unit {
	o.mu.Lock()
	defer o.mu.Unlock()
	u := o.units[owner]
	if u == nil {
		u = newUnit(nil, true)
		u.owner = owner
		if o.units == nil {
			o.units = map[string]*unit{}
		}
		o.units[owner] = u
	}
	u.users++
	return u
}

func (o *owners) leave(u *unit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if u.users--; u.users > 0 || o.units[u.owner] != u {
		return
	}
	if u.deaths.Load() == 0 {
		delete(o.units, u.owner)
	} else {
		u.until = time.Now().Add(rememberDeaths)
	}
}

// expire forgets owners that were not used for a long time.
func (o *owners) expire(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for owner, u := range o.units {
		if u.users == 0 && now.After(u.until) {
			delete(o.units, owner)
		}
	}
}
