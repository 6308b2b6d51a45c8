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

// unit is a unit of work: it keeps what it holds until it is granted what it waits for. Deadlocks are between units.
type unit struct {
	// shared says that all acquires made in the unit belong to it. Else each makes a unit of its own, which
	// keeps what this one had when it began: goroutines that each acquire in the context of one hold
	// don't wait for each other.
	shared     bool
	owner      string
	outerHolds []*Hold       // by the units that this one began in; not modified
	deaths     *atomic.Int64 // how often it, or one that it began in, was a victim

	mu    sync.Mutex
	id    string // "" until it is told to others
	holds []*Hold

	// Guarded by the owners' mutex, of one that is known by its owner.
	users int
	until time.Time // its deaths are remembered
}

type unitKey struct{}

// unitIn returns the unit of a context, nil if there is none.
func unitIn(ctx context.Context) *unit {
	u, _ := ctx.Value(unitKey{}).(*unit)
	return u
}

// WithUnit begins a unit of work: what is acquired with the context that it returns, or one made from it, is kept
// until all of it is there, as far as deadlock detection is concerned. So it is for one line of work: of goroutines
// that run side by side each takes a unit of its own, and if one waits for another that has the same unit it gets a
// *DeadlockError. A unit that begins in the context of another keeps what that one holds at this moment, too.
//
// It is not needed where locks are taken inside of [Manager.Do], or with [Hold.Context] or [Hold.Within] of
// the hold before: these contexts tell what is held. Holds of several managers are units of their own.
func WithUnit(ctx context.Context) context.Context {
	return context.WithValue(ctx, unitKey{}, newUnit(unitIn(ctx), true))
}

// newUnit returns a unit that begins in another, or in none.
func newUnit(outer *unit, shared bool) *unit {
	u := &unit{shared: shared}
	if outer != nil {
		u.outerHolds, u.deaths = outer.all(), outer.deaths
	} else {
		u.deaths = new(atomic.Int64)
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
	for _, l := range s.Locks() { // shared intents are with the unit of these
		all = append(all, l.Hold)
	}
	return all
}

// WithHolding says that the acquire is made while these are held, so that a deadlock over them is detected. It is
// for code that has no context of theirs; see [WithUnit].
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

// unitFor returns the unit that an acquire belongs to: that of the holds it names, else of its context, else of
// its owner. It is nil for an acquire by itself, which holds nothing that anybody could wait for. leave ends the
// acquire's own use of it.
func (m *Manager) unitFor(ctx context.Context, req *request) (u *unit, leave func()) {
	leave = func() {}
	outer := unitIn(ctx)
	switch {
	case len(req.holding) > 0:
		outer = whileHolding(outer, req.holding...)
	case outer == nil && req.owner != "":
		u := m.owners.enter(req.owner)
		return u, func() { m.owners.leave(u) }
	case outer == nil:
		return nil, leave
	}
	if outer.shared {
		return outer, leave
	}
	u = newUnit(outer, false)
	u.owner = req.owner
	return u, leave
}

// whileHolding returns the unit of work that is done while these are held, in a context of the unit outer.
func whileHolding(outer *unit, holds ...*Hold) *unit {
	first := holds[0].unit
	if first != nil && first.shared && (outer == nil || outer == first) && !slices.ContainsFunc(holds, func(h *Hold) bool { return h.unit != first }) {
		return first
	}
	u := &unit{}
	merge := func(o *unit) {
		if o == nil {
			return
		}
		for _, h := range o.all() {
			u.keep(h)
		}
		if u.deaths == nil {
			u.deaths, u.owner = o.deaths, o.owner
		}
	}
	merge(outer)
	for _, h := range holds {
		merge(h.unit)
		u.keep(h)
	}
	if u.deaths == nil {
		u.deaths = new(atomic.Int64)
	}
	return u
}

// keep adds to what a unit keeps that begins.
func (u *unit) keep(h *Hold) {
	if !slices.Contains(u.outerHolds, h) {
		u.outerHolds = append(u.outerHolds, h)
	}
}

// holdContext is the context of holds, and of the unit of work that is done while they are held.
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

// all returns what the unit holds now.
func (u *unit) all() []*Hold {
	u.mu.Lock()
	all := slices.Concat(u.outerHolds, u.holds)
	u.mu.Unlock()
	return slices.DeleteFunc(all, func(h *Hold) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.err != nil
	})
}

// hasKey reports whether the unit holds this key. There may be no unit.
func (u *unit) hasKey(enc string) bool {
	return u != nil && slices.ContainsFunc(u.all(), func(h *Hold) bool { return h.enc == enc })
}

// add says that the unit holds h.
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

// drop says that it does not any more. Called with h.mu held.
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

// name is by what other processes know the unit.
func (u *unit) name() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.id == "" {
		u.id = nuid.Next()
	}
	return u.id
}

// member is a unit as one session knows it.
type member struct {
	*unit
	s *session
}

// Describe is that of deadlock.Member.
func (m member) Describe() deadlock.Unit {
	d := deadlock.Unit{Unit: m.name(), Owner: m.owner, Deaths: int(m.deaths.Load())}
	for _, h := range m.all() {
		if h.s == m.s && h.lock && !slices.Contains(d.Holds, h.id) {
			d.Holds = append(d.Holds, h.id)
			h.markListed()
		}
	}
	return d
}

// rememberDeaths is how long an owner that holds nothing keeps its seniority.
const rememberDeaths = time.Minute

// owners are the units that are known by an owner.
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

// expire forgets owners that have not been here for long.
func (o *owners) expire(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for owner, u := range o.units {
		if u.users == 0 && now.After(u.until) {
			delete(o.units, owner)
		}
	}
}
