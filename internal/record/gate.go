package record

import (
	"iter"
	"slices"
	"time"
)

// gateRules are the rules of gates (double barriers). Those who enter stand among the holders and wait until as many
// are there as the gate has parties: it opens, and they are its members. A member that leaves waits until all have
// left or are gone. Then the gate is cleared, and those move up who came while it was open.
type gateRules struct{ usual }

// gate is the body.
type gate struct {
	noEntries
	noTickets
	parties int
	gen     uint64 // rises with all that lets nobody in who has read it before; the first one is 1
	open    bool
}

func (r *Record) gate() *gate { return r.Body.(*gate) }

func (gateRules) facts(r *Record, f *Facts) {
	g := r.gate()
	f.Parties, f.Gen, f.Open, f.Arrived = g.parties, g.gen, g.open, len(r.Holders)
}

// lives: what is of a member is of this life.
func (gateRules) lives(op *Op) bool { return op.Verb == OpEnter }

func (gateRules) begin(r *Record, op *Op) { r.Body = &gate{parties: op.Limit, gen: 1} }

func (gateRules) check(op *Op) Verdict {
	parties := op.Limit >= 1 && op.Limit <= MaxParties
	switch op.Verb {
	case OpEnter:
		return unless(!parties || op.Mode != None, op.checkEntry())
	case OpCancel:
		return unless(!parties, op.checkID(true))
	case OpLeave:
		return unless(LeaseOf(op.Holder) != op.Lease || sequenceOf(op.ID) == 0, op.checkID(true))
	}
	return BadOp
}

func (k gateRules) apply(m *machine, op *Op) Result {
	switch op.Verb {
	case OpEnter:
		return k.enter(m, op)
	case OpCancel:
		k.cancel(m, op)
	case OpLeave:
		i := indexOf(m.Holders, op.Holder)
		switch {
		case i < 0: // it was cleared away, or is gone as it would be by a release
		case !m.gate().open || m.Holders[i].Token != op.Token:
			return Result{Verdict: NotHolder}
		case m.Holders[i].Leaving == 0:
			m.Holders[i].Leaving = sequenceOf(op.ID)
		}
	}
	k.settle(m)
	return Result{Verdict: Applied}
}

func (k gateRules) enter(m *machine, op *Op) Result {
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
	return m.queue(op)
}

// cancel takes an enter back unless the gate has opened for it, and shuts it out if it isn't there yet.
func (k gateRules) cancel(m *machine, op *Op) {
	g := m.gate()
	inside := g.open && indexOf(m.Holders, op.ID) >= 0
	switch {
	case inside, op.Life != m.Life:
	case m.Has(op.ID):
		m.removeAll(selection{id: op.ID})
	case op.generation() == g.gen:
		g.gen++
		m.shut = true
	}
}

// settle clears, moves up and opens.
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
	n := min(g.parties-len(m.Holders), len(m.Waiters))
	m.Holders = append(m.Holders, m.Waiters[:n]...)
	m.Waiters = nilIfEmpty(slices.Delete(m.Waiters, 0, n))
	if len(m.Holders) < g.parties {
		return
	}
	g.open = true
	g.gen++
	for i := range m.Holders {
		m.Holders[i].Token = 0 // the token is the revision of the write that opened
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

// entered is the standing of an entry's enter.
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

// inTheWay: whoever waits for those that aren't there waits for nobody; else for one who is inside.
func (gateRules) inTheWay(r *Record, op *Op) (e Entry, ok bool) {
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
	return r.allDepend(append(waiting, r.Waiters...), func(e *Entry) bool {
		if e.Leaving > 0 {
			return mine(ID(e.Lease(), e.Leaving))
		}
		return mine(e.ID)
	})
}

func (gateRules) traits(op *Op) traits {
	switch op.Verb {
	case OpEnter:
		return traits{waits: true, proven: true}
	case OpLeave:
		return traits{waits: true, owed: true, leaves: true}
	}
	return traits{owed: op.Verb == OpCancel}
}

func (gateRules) undo(op *Op) (Op, bool) {
	if op.Verb == OpEnter {
		return op.cancelled()
	}
	return Op{}, false
}

func (k gateRules) fields(holder bool) (required, allowed uint) {
	if _, allowed = k.usual.fields(holder); holder {
		allowed |= hasLeaving
	}
	return 0, allowed
}

func (gateRules) longest(e *Entry) { e.Revoked, e.Leaving = true, 1<<64-1 }

const hasOpen = hasBody << 2 // beside hasParties and hasBodyGen

func (gateRules) body(d *decoder, key []byte) (known bool, err error) {
	g := d.rec.gate()
	switch string(key) {
	case "parties":
		return true, field(d, &d.seen, hasParties, &g.parties, d.count)
	case "gen":
		return true, field(d, &d.seen, hasBodyGen, &g.gen, d.number)
	case "open":
		return true, field(d, &d.seen, hasOpen, &g.open, d.bool)
	}
	return false, nil
}

func (gateRules) whole(d *decoder) error {
	const required = hasParties | hasBodyGen
	if d.seen&required != required {
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

func (g *gate) append(dst []byte) []byte {
	dst = appendNumber(dst, "parties", g.parties)
	dst = appendNumber(dst, "gen", g.gen)
	return appendFlag(dst, "open", g.open)
}

func (g *gate) bound(*machine) int {
	return len((&gate{parties: MaxParties, gen: 1<<64 - 1, open: true}).append(nil))
}

// lookouts is how many leases of those who wait look after all others, in kinds where everybody
// depends on everybody. The others look after the lookouts.
const lookouts = 3

// allDepend is rules.ahead of such a kind. waiting are the entries whose operations wait.
func (r *Record) allDepend(waiting []Entry, mine func(*Entry) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	var first []string
	waits, looks := false, false
	for i := range waiting {
		lease := waiting[i].Lease()
		if len(first) < lookouts && !slices.Contains(first, lease) {
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
