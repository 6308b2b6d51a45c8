package record

import (
	"iter"
	"slices"
	"time"
)

// barrierRules are the rules of barriers. Those who arrive wait, each for the generation that it names, until as many
// are there as the barrier has parties. Then the generation trips, or the last one holds until the action that it
// brought has ended. A generation without an action can also break, and then is broken for all who are in it.
//
// How a generation ended is read from ended, by its number and the id that arrived. While nobody
// acts every waiter is of the generation that forms, and they are fewer than the parties.
type barrierRules struct{ usual }

// MaxParties bounds the parties of a barrier and of a gate.
const MaxParties = 1024

// Why a generation broke, in Ended.
const (
	WhyCancelled = "cancelled" // one of it gave up
	WhyDied      = "died"      // the lease of one of it ended
	WhyFailed    = "failed"    // its action did
	WhyReset     = "reset"     // the barrier was reset
	WhyRemoved   = "removed"   // an operator removed the one who ran its action
)

// barrier is the body.
type barrier struct {
	noEntries
	noTickets
	parties int
	gen     uint64       // the generation that forms; the first one is 1
	acting  *generation  // whose action runs: its last one holds
	ended   []generation // as they ended
	fresh   int          // how many of these the write at hand has added
}

// generation is who was in a generation, and how it ended. Its ids are not modified.
type generation struct {
	gen      uint64
	ids      []string // in the order in which they came
	why, who string   // of a broken one
}

func (r *Record) barrier() *barrier { return r.Body.(*barrier) }

func (barrierRules) facts(r *Record, f *Facts) {
	b := r.barrier()
	f.Parties, f.Gen, f.Acting, f.Arrived = b.parties, b.gen, b.acting != nil, r.forming()
	for _, g := range b.ended {
		f.Ended = append(f.Ended, Ended{Gen: g.gen, IDs: g.ids, Broken: g.why != "", Why: g.why, Who: g.who})
	}
}

// lives: a trip is of a hold, whose id is of this life.
func (barrierRules) lives(op *Op) bool { return !op.common() && op.Verb != OpTrip }

func (barrierRules) begin(r *Record, op *Op) { r.Body = &barrier{parties: op.Limit, gen: 1} }

func (barrierRules) idle(r *Record) bool {
	return len(r.Holders)+len(r.Waiters) == 0 && r.barrier().gen == 1
}

// outlived: who asks how a generation ended does so within a life of a delete marker.
func (barrierRules) outlived(r *Record, age time.Duration) bool {
	return age >= time.Hour && r.barrier().fresh == 0
}

func (barrierRules) check(op *Op) Verdict {
	parties := op.Limit >= 1 && op.Limit <= MaxParties
	switch op.Verb {
	case OpArrive, OpArriveToAct:
		return unless(!parties || op.Mode != None, op.checkEntry())
	case OpCancel, OpReset:
		return unless(!parties, op.checkID(true))
	case OpTrip:
		return unless(LeaseOf(op.Holder) != op.Lease, op.checkID(true))
	case OpDelete:
		return Applied
	}
	return BadOp
}

func (k barrierRules) apply(m *machine, op *Op) Result {
	switch op.Verb {
	case OpArrive, OpArriveToAct:
		return k.arrive(m, op)
	case OpCancel:
		// If the generation has ended, or ends with its action, the record says how.
		if b := m.barrier(); op.generation() == b.gen && op.Limit == b.parties {
			m.breakForming(WhyCancelled, op.ID)
		}
	case OpTrip:
		return k.trip(m, op)
	case OpReset:
		return k.reset(m, op)
	case OpDelete:
		if m.first().ID == "" && m.barrier().fresh > 0 {
			return Result{Verdict: Stale} // those who were in it read how it ended off this write
		}
		return m.delete()
	}
	return Result{Verdict: Applied}
}

// generation is the one that op names: 0, of who found no record, is the first.
func (op *Op) generation() uint64 { return max(op.Gen, 1) }

func (k barrierRules) arrive(m *machine, op *Op) Result {
	b, gen := m.barrier(), op.generation()
	if m.Has(op.ID) || b.wasIn(gen, op.ID) {
		return Result{Verdict: Applied} // the record says how it ended
	}
	forming := m.forming()
	switch {
	case op.Limit != b.parties:
		return Result{Verdict: SizeMismatch, Have: b.parties}
	case gen < b.gen && !b.knows(gen):
		return Result{Verdict: Forgotten}
	case gen != b.gen, forming == b.parties: // the latter waits for the end of the action
		return Result{Verdict: Stale}
	case len(m.Waiters) < m.lim.MaxWaiters, b.acting == nil && forming == b.parties-1:
	case b.acting != nil:
		return Result{Verdict: Stale}
	default:
		return m.queueFull()
	}
	e := op.entry()
	e.Gen, e.Acts = gen, op.Verb == OpArriveToAct
	for !m.reserveBytes(m.entryBound(&e) + idBound(e.ID)) {
		if !b.forget() {
			return m.tooLarge()
		}
		m.size = -1
	}
	m.Waiters = append(m.Waiters, e)
	k.settle(m)
	return Result{Verdict: Applied}
}

func (k barrierRules) trip(m *machine, op *Op) Result {
	b := m.barrier()
	if i := indexOf(m.Holders, op.Holder); i >= 0 && m.Holders[i].Token == op.Token {
		if op.Fail {
			m.endAction(WhyFailed, op.Holder)
		} else {
			m.endAction("", "")
		}
		k.settle(m)
		return Result{Verdict: Applied}
	}
	for _, g := range b.ended {
		if n := len(g.ids); n == 0 || g.ids[n-1] != op.Holder {
			continue
		}
		if g.why != "" && !op.Fail {
			return Result{Verdict: Broken}
		}
		return Result{Verdict: Applied} // before
	}
	return Result{Verdict: NotHolder}
}

// reset breaks the generation that it names if that still forms and somebody is in it. One whose
// action runs ends with the action.
func (k barrierRules) reset(m *machine, op *Op) Result {
	b, gen := m.barrier(), op.generation()
	switch i := b.find(gen); {
	case op.Limit != b.parties:
		return Result{Verdict: SizeMismatch, Have: b.parties}
	case gen == b.gen && m.forming() > 0:
		m.breakForming(WhyReset, op.ID)
	case gen != b.gen && (i < 0 || b.ended[i].who != op.ID): // else it was done
		return Result{Verdict: Stale}
	}
	return Result{Verdict: Applied}
}

// settle does what a removal leads to, and ends or begins what can be.
func (barrierRules) settle(m *machine) {
	b := m.barrier()
	switch why, who := m.whyRemoved(); {
	case b.acting != nil && len(m.Holders) == 0:
		m.endAction(why, who)
	case b.acting == nil && len(m.removed) > 0:
		m.breakForming(why, who)
	}
	// While an action runs, who is removed had arrived, or comes for the next generation early and
	// leaves nothing behind.
	for b.acting == nil && len(m.Waiters) == b.parties {
		g := generation{gen: b.gen, ids: make([]string, b.parties)}
		for i := range m.Waiters {
			g.ids[i] = m.Waiters[i].ID
		}
		b.gen++
		m.size = -1
		last := m.Waiters[b.parties-1]
		if !last.Acts {
			m.Waiters = nil
			m.end(g)
			continue
		}
		last.Token = 0
		m.Holders = []Entry{last}
		m.Waiters = nilIfEmpty(m.Waiters[:b.parties-1])
		b.acting = &g
	}
}

// whyRemoved says why the operation at hand broke the generation of those whom it removed.
func (m *machine) whyRemoved() (why, who string) {
	if len(m.removed) == 0 {
		return "", ""
	}
	gone := &m.removed[0]
	switch m.op.Verb {
	case OpEvict:
		return WhyDied, gone.Lease()
	case OpRemove:
		return WhyRemoved, gone.ID
	}
	return WhyCancelled, gone.ID
}

// breakForming ends the generation that forms, with nobody left in it.
func (m *machine) breakForming(why, who string) {
	b := m.barrier()
	g := generation{gen: b.gen, why: why, who: who}
	m.Waiters = nilIfEmpty(slices.DeleteFunc(m.Waiters, func(e Entry) bool {
		if e.Gen == b.gen {
			g.ids = append(g.ids, e.ID)
		}
		return e.Gen == b.gen
	}))
	for i := range m.removed {
		g.ids = append(g.ids, m.removed[i].ID)
	}
	b.gen++
	m.end(g)
}

// endAction ends the generation whose action runs.
func (m *machine) endAction(why, who string) {
	b := m.barrier()
	g := *b.acting
	g.why, g.who = why, who
	m.Holders, b.acting = nil, nil
	m.Waiters = nilIfEmpty(slices.DeleteFunc(m.Waiters, func(e Entry) bool { return e.Gen == g.gen }))
	m.end(g)
}

// end keeps how a generation ended, and forgets the oldest ones that are too many.
func (m *machine) end(g generation) {
	b := m.barrier()
	b.ended = append(b.ended, g)
	b.fresh++
	n := 0
	for _, g := range b.ended {
		n += g.weight()
	}
	for n > MaxParties {
		w := b.ended[0].weight()
		if !b.forget() {
			break
		}
		n -= w
	}
	for m.size = -1; !m.reserveBytes(0) && b.forget(); m.size = -1 {
	}
}

// weight is how much a generation counts among those that are kept.
func (g *generation) weight() int { return max(len(g.ids), 1) }

// forget drops the oldest generation that ended before this write, if there is one.
func (b *barrier) forget() bool {
	if len(b.ended) == b.fresh {
		return false
	}
	b.ended = b.ended[1:]
	return true
}

// forming is how many have come for the generation that forms.
func (r *Record) forming() (n int) {
	for _, e := range slices.Backward(r.Waiters) {
		if e.Gen != r.barrier().gen {
			break // they came last
		}
		n++
	}
	return n
}

// find returns the place of a generation in ended, or -1.
func (b *barrier) find(gen uint64) int {
	return slices.IndexFunc(b.ended, func(g generation) bool { return g.gen == gen })
}

// knows reports whether it is known who was in a generation that is complete.
func (b *barrier) knows(gen uint64) bool {
	return b.acting != nil && b.acting.gen == gen || b.find(gen) >= 0
}

// wasIn reports whether id is known to have been in a generation that is complete.
func (b *barrier) wasIn(gen uint64, id string) bool {
	if b.acting != nil && b.acting.gen == gen {
		return slices.Contains(b.acting.ids, id)
	}
	i := b.find(gen)
	return i >= 0 && slices.Contains(b.ended[i].ids, id)
}

func (k barrierRules) standing(r *Record, op *Op) State {
	b, gen := r.barrier(), op.generation()
	if op.Verb == OpCancel {
		if op.Life == r.Life && b.acting != nil && b.acting.gen == gen && b.wasIn(gen, op.ID) && indexOf(r.Holders, op.ID) < 0 {
			return State{Standing: Waiting} // for the end of the action
		}
		return State{Standing: Granted}
	}
	if st := r.entryState(op.ID); st.Entry != nil {
		return st
	}
	i := b.find(gen)
	switch {
	case op.Life != r.Life:
		return State{Standing: Refused, Why: OtherLife}
	case i < 0 && b.wasIn(gen, op.ID):
		return State{Standing: Waiting} // its entry was removed while the action runs
	case gen < b.gen && !b.knows(gen):
		return State{Standing: Refused, Why: Forgotten}
	case i < 0 || !b.wasIn(gen, op.ID):
		return State{}
	case b.ended[i].why != "":
		return State{Standing: Refused, Why: Broken}
	}
	return State{Standing: Granted}
}

// inTheWay: the one whose action runs. Else those are awaited who aren't there.
func (barrierRules) inTheWay(r *Record, _ *Op) (e Entry, ok bool) {
	if len(r.Holders) == 0 {
		return e, false
	}
	return r.Holders[0], true
}

func (barrierRules) ahead(r *Record, mine func(string) bool) (iter.Seq2[string, time.Duration], bool) {
	return r.allDepend(r.Waiters, func(e *Entry) bool { return mine(e.ID) })
}

func (barrierRules) traits(op *Op) traits {
	switch op.Verb {
	case OpArrive, OpArriveToAct:
		return traits{waits: true, proven: true}
	case OpCancel:
		return traits{waits: true, owed: true}
	}
	return traits{owed: op.Verb == OpTrip}
}

func (barrierRules) undo(op *Op) (Op, bool) {
	if op.Verb == OpArrive || op.Verb == OpArriveToAct {
		return op.cancelled()
	}
	return Op{}, false
}

// cancelled is what takes back an arrival, or an enter.
func (op *Op) cancelled() (Op, bool) {
	return Op{Kind: op.Kind, Verb: OpCancel, ID: op.ID, Lease: op.Lease, Limit: op.Limit, Gen: op.Gen, Life: op.Life}, true
}

func (k barrierRules) fields(holder bool) (required, allowed uint) {
	_, allowed = k.usual.fields(holder)
	return hasGen, hasActs | allowed
}

func (barrierRules) longest(e *Entry) { e.Revoked, e.Acts = true, true }
