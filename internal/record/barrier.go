package record

import (
	"iter"
	"slices"
	"time"
)

// barrierRules are the rules of barriers. Each entry that arrives waits for the generation that it names, until as many
// have arrived as the barrier has parties. Then the generation trips, or its last entry holds until its
// action has ended. A generation can also break, before it is complete or by its action; then it is broken for all its parties.
//
// The outcome of a generation is read from ended, by its number and the id that arrived. While no action
// runs, every waiter belongs to the generation that is forming, and there are fewer waiters than parties.
type barrierRules struct{ baseRules }

// MaxParties bounds the parties of a barrier and of a gate.
const MaxParties = 1024

// Why a generation broke, in Ended.
const (
	WhyCancelled = "cancelled" // one of its parties gave up
	WhyDied      = "died"      // the lease of one of its parties ended
	WhyFailed    = "failed"    // its action failed
	WhyReset     = "reset"     // the barrier was reset
	WhyRemoved   = "removed"   // an operator removed the entry that ran its action
)

// barrier is the body.
type barrier struct {
	parties int
	gen     uint64       // the generation that is forming; the first one is 1
	acting  *generation  // the one whose action runs: its last entry holds
	ended   []generation // in the order in which they ended
	added   int          // how many of these this write has added
}

// generation is a complete or broken generation. Its ids are read-only.
type generation struct {
	gen      uint64
	ids      []string // in the order in which they arrived
	why, who string   // why it broke, and which id or lease broke it
}

func (r *Record) barrier() *barrier { return r.Body.(*barrier) }

func (barrierRules) facts(r *Record, f *Facts) {
	b := r.barrier()
	f.Parties, f.Gen, f.Acting, f.Arrived = b.parties, b.gen, b.acting != nil, r.forming()
	for _, g := range b.ended {
		f.Ended = append(f.Ended, Ended{Gen: g.gen, IDs: g.ids, Broken: g.why != "", Why: g.why, Who: g.who})
	}
}

func (barrierRules) initBody(r *Record, op *Op) { r.Body = &barrier{parties: op.Limit, gen: 1} }

func (barrierRules) idle(r *Record) bool { return r.barrier().gen == 1 }

// outlived: a caller reads the outcome of a generation within the time that a delete marker stays.
func (barrierRules) outlived(r *Record, age time.Duration) bool {
	return age >= time.Hour && r.barrier().added == 0
}

func (barrierRules) verbs() *verbTable { return &barrierVerbs }

var barrierVerbs = verbTable{
	OpArrive:      {needEntry | needParties | noMode | needLife | waits | proven, OpCancel, (*machine).arrive},
	OpArriveToAct: {needEntry | needParties | noMode | needLife | waits | proven, OpCancel, (*machine).arrive},
	OpCancel:      {needID | needParties | needLife | waits | mustComplete, 0, (*machine).cancelArrival},
	OpTrip:        {needID | needHolder | mustComplete, 0, (*machine).trip}, // the id of the hold belongs to this life
	OpReset:       {needID | needParties | needLife, 0, (*machine).reset},
	OpDelete:      {needLife, 0, (*machine).deleteBarrier},
}

// cancelArrival: a generation that has ended, or whose action runs, gets its outcome without this.
func (m *machine) cancelArrival(op *Op) Result {
	if b := m.barrier(); op.generation() == b.gen && op.Limit == b.parties {
		m.breakForming(WhyCancelled, op.ID)
	}
	return Result{Verdict: Applied}
}

func (m *machine) deleteBarrier(op *Op) Result {
	if m.oldestEntry().ID == "" && m.barrier().added > 0 {
		return Result{Verdict: Stale} // its parties read the outcome off this write
	}
	return m.delete(op)
}

// generation returns the generation that op names. 0, of a caller that found no record, is the first.
func (op *Op) generation() uint64 { return max(op.Gen, 1) }

func (m *machine) arrive(op *Op) Result {
	b, gen := m.barrier(), op.generation()
	if m.Has(op.ID) || b.known(gen).has(op.ID) {
		return Result{Verdict: Applied} // the record says how it ended
	}
	forming := m.forming()
	switch {
	case op.Limit != b.parties:
		return Result{Verdict: SizeMismatch, Have: b.parties}
	case gen < b.gen && b.known(gen) == nil:
		return Result{Verdict: Forgotten}
	case gen != b.gen, forming == b.parties: // with forming == b.parties, the running action has to end first
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
		if !b.dropOldest() {
			return m.tooLarge()
		}
		m.size = -1
	}
	m.Waiters = append(m.Waiters, e)
	return m.settled()
}

func (m *machine) trip(op *Op) Result {
	b := m.barrier()
	if i := indexOf(m.Holders, op.Holder); i >= 0 && m.Holders[i].Token == op.Token {
		if op.Fail {
			m.endAction(WhyFailed, op.Holder)
		} else {
			m.endAction("", "")
		}
		return m.settled()
	}
	for _, g := range b.ended {
		if n := len(g.ids); n == 0 || g.ids[n-1] != op.Holder {
			continue
		}
		if g.why != "" && !op.Fail {
			return Result{Verdict: Broken}
		}
		return Result{Verdict: Applied} // an earlier attempt has done it
	}
	return Result{Verdict: NotHolder}
}

// reset breaks the generation that op names, if it is still forming and has an entry. A generation whose
// action runs ends with the action.
func (m *machine) reset(op *Op) Result {
	b, gen := m.barrier(), op.generation()
	switch g := b.known(gen); {
	case op.Limit != b.parties:
		return Result{Verdict: SizeMismatch, Have: b.parties}
	case gen == b.gen && m.forming() > 0:
		m.breakForming(WhyReset, op.ID)
	case gen != b.gen && (g == nil || g.who != op.ID): // if equal, an earlier attempt has done it
		return Result{Verdict: Stale}
	}
	return Result{Verdict: Applied}
}

// settle ends a generation from which entries were removed, and completes generations that are full.
func (barrierRules) settle(m *machine) {
	b := m.barrier()
	switch why, who := m.whyRemoved(); {
	case b.acting != nil && len(m.Holders) == 0:
		m.endAction(why, who)
	case b.acting == nil && len(m.removed) > 0:
		m.breakForming(why, who)
	}
	// While an action runs, a removed entry had arrived for it, or came early for the next generation and
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
			m.keepEnded(g)
			continue
		}
		last.Token = 0
		m.Holders = []Entry{last}
		m.Waiters = nilIfEmpty(m.Waiters[:b.parties-1])
		b.acting = &g
	}
}

// whyRemoved returns why the operation at hand broke a generation, if it removed entries.
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

// breakForming ends the generation that is forming, and removes its entries.
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
	m.keepEnded(g)
}

// endAction ends the generation whose action runs.
func (m *machine) endAction(why, who string) {
	b := m.barrier()
	g := *b.acting
	g.why, g.who = why, who
	m.Holders, b.acting = nil, nil
	m.Waiters = nilIfEmpty(slices.DeleteFunc(m.Waiters, func(e Entry) bool { return e.Gen == g.gen }))
	m.keepEnded(g)
}

// keepEnded stores a generation that has ended, and forgets the oldest ones if there are too many.
func (m *machine) keepEnded(g generation) {
	b := m.barrier()
	b.ended = append(b.ended, g)
	b.added++
	n := 0
	for _, g := range b.ended {
		n += g.weight()
	}
	for n > MaxParties {
		w := b.ended[0].weight()
		if !b.dropOldest() {
			break
		}
		n -= w
	}
	for m.size = -1; !m.reserveBytes(0) && b.dropOldest(); m.size = -1 {
	}
}

// weight is how much a generation counts among the stored ones.
func (g *generation) weight() int { return max(len(g.ids), 1) }

// dropOldest drops the oldest generation that ended before this write. It returns false if there is none.
func (b *barrier) dropOldest() bool {
	if len(b.ended) == b.added {
		return false
	}
	b.ended = b.ended[1:]
	return true
}

// forming returns how many have arrived for the generation that is forming.
func (r *Record) forming() (n int) {
	for _, e := range slices.Backward(r.Waiters) {
		if e.Gen != r.barrier().gen {
			break // its entries are the last ones
		}
		n++
	}
	return n
}

// known returns a generation that is complete or broken, nil if it is not known any more.
func (b *barrier) known(gen uint64) *generation {
	for g := range b.generations() {
		if g.gen == gen {
			return g
		}
	}
	return nil
}

// has reports whether id is known as a party of the generation.
func (g *generation) has(id string) bool { return g != nil && slices.Contains(g.ids, id) }

func (k barrierRules) standing(r *Record, op *Op) State {
	b, gen := r.barrier(), op.generation()
	g := b.known(gen)
	runs := g != nil && g == b.acting
	if op.Verb == OpCancel {
		if op.Life == r.Life && runs && g.has(op.ID) && indexOf(r.Holders, op.ID) < 0 {
			return State{Standing: Waiting} // for the end of the action
		}
		return State{Standing: Granted}
	}
	if st := r.entryState(op.ID); st.Entry != nil {
		return st
	}
	switch {
	case op.Life != r.Life:
		return State{Standing: Refused, Why: OtherLife}
	case runs && g.has(op.ID):
		return State{Standing: Waiting} // its entry was removed while the action runs
	case gen < b.gen && g == nil:
		return State{Standing: Refused, Why: Forgotten}
	case !g.has(op.ID):
		return State{}
	case g.why != "":
		return State{Standing: Refused, Why: Broken}
	}
	return State{Standing: Granted}
}

// blockerOf returns the entry whose action runs. Otherwise a party waits for others that have no entry yet.
func (barrierRules) blockerOf(r *Record, _ *Op) (e Entry, ok bool) {
	if len(r.Holders) == 0 {
		return e, false
	}
	return r.Holders[0], true
}

func (barrierRules) ahead(r *Record, mine func(string) bool) (iter.Seq2[string, time.Duration], bool) {
	return r.allAhead(r.Waiters, func(e *Entry) bool { return mine(e.ID) })
}

func (barrierRules) longest(e *Entry) { e.Revoked, e.Acts = true, true }
