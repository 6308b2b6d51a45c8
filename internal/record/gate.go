package record

import (
	"iter"
	"slices"
	"time"
)

// gateRules are the rules of gates (double barriers). Entries that enter are holders and wait until there are as many
// as the gate has parties: then it opens, and they are its members. A member that leaves waits until all have
// left or are gone. Then the gate is cleared, and the entries that came while it was open move up.
type gateRules struct{ baseRules }

// gate is the body.
type gate struct {
	parties int
	gen     uint64 // the first one is 1; each rise refuses enters that have read an older one
	open    bool
}

func (r *Record) gate() *gate { return r.Body.(*gate) }

func (gateRules) facts(r *Record, f *Facts) {
	g := r.gate()
	f.Parties, f.Gen, f.Open, f.Arrived = g.parties, g.gen, g.open, len(r.Holders)
}

func (gateRules) initBody(r *Record, op *Op) { r.Body = &gate{parties: op.Limit, gen: 1} }

func (gateRules) verbs() *verbTable { return &gateVerbs }

var gateVerbs = verbTable{
	OpEnter:  {needEntry | needParties | noMode | needLife | waits | proven, OpCancel, (*machine).enter},
	OpCancel: {needID | needParties | mustComplete, 0, (*machine).cancelEnter},
	OpLeave:  {needID | needHolder | waits | mustComplete | leaves, 0, (*machine).leave}, // the id of the hold belongs to this life
}

func (m *machine) enter(op *Op) Result {
	g := m.gate()
	switch {
	case m.Has(op.ID):
		return Result{Verdict: Applied}
	case op.Limit != g.parties:
		return Result{Verdict: SizeMismatch, Have: g.parties}
	case op.generation() != g.gen:
		return Result{Verdict: Stale}
	case g.parties > m.lim.MaxHolders:
		return m.queueFull()
	}
	return m.enqueue(op)
}

// cancelEnter undoes an enter unless the gate has opened for it. An enter without an entry is refused from then on.
func (m *machine) cancelEnter(op *Op) Result {
	g := m.gate()
	inside := g.open && indexOf(m.Holders, op.ID) >= 0
	switch {
	case inside, op.Life != m.Life:
	case m.Has(op.ID):
		m.removeAll(selection{id: op.ID})
	case op.generation() == g.gen:
		g.gen++
		m.forceWrite = true
	}
	return m.settled()
}

func (m *machine) leave(op *Op) Result {
	i := indexOf(m.Holders, op.Holder)
	switch {
	case sequenceOf(op.ID) == 0:
		return Result{Verdict: BadOp}
	case i < 0: // the gate was cleared, or the member was removed
	case !m.gate().open || m.Holders[i].Token != op.Token:
		return Result{Verdict: NotHolder}
	case m.Holders[i].Leaving == 0:
		m.Holders[i].Leaving = sequenceOf(op.ID)
	}
	return m.settled()
}

// settle clears an open gate, moves waiters up and opens a full gate.
func (gateRules) settle(m *machine) {
	g := m.gate()
	if len(m.removed) > 0 {
		g.gen++
	}
	inside := func(e Entry) bool { return e.Leaving == 0 }
	if g.open && !slices.ContainsFunc(m.Holders, inside) {
		m.Holders, m.size = nil, -1
		g.open = false
		g.gen++
	}
	if g.open {
		return
	}
	m.grantHead(min(g.parties-len(m.Holders), len(m.Waiters)))
	if len(m.Holders) < g.parties {
		return
	}
	g.open = true
	g.gen++
	for i := range m.Holders {
		m.Holders[i].Token = 0 // the token becomes the revision of the write that opened the gate
	}
}

// states: a member that has left waits for the others to leave.
func (gateRules) states(r *Record) iter.Seq2[string, State] {
	return func(yield func(string, State) bool) {
		for id, st := range r.entryStates() {
			if e := st.Entry; e.Leaving > 0 && !yield(ID(e.Lease(), e.Leaving), State{Standing: Waiting, Entry: e}) {
				return
			}
			if !yield(id, r.entered(st)) {
				return
			}
		}
	}
}

// entered turns the state of an entry into the state of its enter.
func (r *Record) entered(st State) State {
	if st.Standing == Granted && !r.gate().open {
		st.Standing = Waiting
	}
	return st
}

func (gateRules) standing(r *Record, op *Op) State {
	if op.Verb != OpLeave {
		return r.entered(r.entryState(op.ID))
	}
	if st := r.entryState(op.Holder); st.Entry != nil {
		return State{Standing: Waiting, Entry: st.Entry}
	}
	return State{Standing: Granted}
}

// blockerOf returns another member that has not left. Before the gate opens, a party waits for others without an entry.
func (gateRules) blockerOf(r *Record, op *Op) (e Entry, ok bool) {
	for i := range r.Holders {
		if h := &r.Holders[i]; r.gate().open && h.Leaving == 0 && h.ID != op.ID {
			return *h, true
		}
	}
	return e, false
}

func (gateRules) ahead(r *Record, mine func(string) bool) (iter.Seq2[string, time.Duration], bool) {
	var waiting []Entry
	for i := range r.Holders {
		if h := &r.Holders[i]; !r.gate().open || h.Leaving > 0 {
			waiting = append(waiting, *h)
		}
	}
	return r.allAhead(append(waiting, r.Waiters...), func(e *Entry) bool {
		if e.Leaving > 0 {
			return mine(ID(e.Lease(), e.Leaving))
		}
		return mine(e.ID)
	})
}

func (gateRules) longest(e *Entry) { e.Revoked, e.Leaving = true, 1<<64-1 }

func (g *gate) fields(f *fields) {
	f.count(`,"parties":`, &g.parties)
	f.need()
	f.number(`,"gen":`, &g.gen)
	f.need()
	f.flag(`,"open":`, &g.open)
}

func (gateRules) validate(d *decoder) error {
	if d.missing {
		return d.fail("a gate needs parties and gen")
	}
	g := d.rec.gate()
	leaving := slices.ContainsFunc(d.rec.Holders, func(e Entry) bool { return e.Leaving > 0 })
	switch n := len(d.rec.Holders); {
	case g.parties > MaxParties, n > g.parties:
		return d.fail("a gate with too many parties or members")
	case g.open && n == 0, !g.open && (n == g.parties || leaving || len(d.rec.Waiters) > 0):
		return d.fail("a gate is open without members, or full and not open, or somebody leaves or waits before one that isn't open")
	}
	return nil
}

func (g *gate) clone() Body { return new(*g) }

func (g *gate) bound(*machine) int {
	return len(appendBody(nil, &gate{parties: MaxParties, gen: 1<<64 - 1, open: true}))
}

// observers is how many leases of waiters observe all others, in kinds where every operation
// depends on all entries. The other waiters observe only these.
const observers = 3

// allAhead is rules.ahead of such a kind. waiting are the entries whose operations wait.
func (r *Record) allAhead(waiting []Entry, mine func(*Entry) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	var first []string
	waits, looks := false, false
	for i := range waiting {
		lease := waiting[i].Lease()
		if len(first) < observers && !slices.Contains(first, lease) {
			first = append(first, lease)
		}
		if mine(&waiting[i]) {
			waits, looks, next = true, looks || slices.Contains(first, lease), next || i == 0
		}
	}
	if !waits {
		return noLeases, false
	}
	return func(yield func(string, time.Duration) bool) {
		for e := range r.entries() {
			if lease := e.Lease(); (looks || slices.Contains(first, lease)) && !yield(lease, e.TTL) {
				return
			}
		}
	}, next
}
