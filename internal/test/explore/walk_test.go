package explore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockfabric/lockfabric/internal/record"
)

// walk finds what can follow a state.
type walk struct {
	p     *program
	s     *state
	label bool // describe what happens
	emit  func(n *state, what string, violation string)
	moves int // that are no faults

	results []record.Result // of the last write
}

// next emits every state that can follow s.
func (w *walk) next(s *state) {
	w.s, w.moves = s, 0
	for i := range w.p.clients {
		w.client(i)
	}
	for i := range s.flight {
		w.deliver(i)
	}
	if w.p.batch {
		w.pairs()
	}
	w.evict()
	if s.key.rec == nil && s.rev != 0 && w.p.expire && len(s.flight) == 0 && !slices.ContainsFunc(s.clients[:], func(k client) bool { return k.op != nil }) {
		n := *s
		n.rev = 0
		w.to(&n, "the delete marker expires")
	}
}

// to emits a state, after the checks that every state has to pass.
func (w *walk) to(n *state, format string, args ...any) {
	w.found(n, w.check(n), format, args...)
}

func (w *walk) found(n *state, violation, format string, args ...any) {
	what := ""
	if w.label {
		what = fmt.Sprintf(format, args...)
	}
	w.emit(n, what, violation)
}

func (w *walk) client(i int) {
	s, name := w.s, leaseOf(i)
	k := &s.clients[i]
	if k.phase == lost {
		return
	}
	w.withdrawGhosts(i)
	if k.phase == ready {
		w.send(i)
	}
	if k.phase == waits {
		if st := s.key.rec.Standing(k.op); st.Standing != record.Waiting {
			n := *s
			bad := w.p.tell(&n, i, &answer{op: k.op, state: st, rec: s.key.rec, rev: s.rev})
			w.moves++
			w.checked(&n, bad, "%s looks at the record", name)
		}
	}
	if k.phase == undoing && s.key.rec.Standing(k.undo).Standing != record.Waiting {
		n := *s
		bad := w.p.proved(&n, i)
		w.moves++
		w.checked(&n, bad, "%s looks at the record", name)
	}
	if (k.phase == sent || k.phase == waits || k.phase == proving) && s.used.cancels < w.p.faults.cancels {
		w.cancel(i)
	}
	if s.used.deaths < w.p.faults.deaths && k.phase != done {
		w.die(i)
	}
}

func (w *walk) checked(n *state, bad, format string, args ...any) {
	if bad == "" {
		bad = w.check(n)
	}
	w.found(n, bad, format, args...)
}

func (w *walk) send(i int) {
	n := *w.s
	k := &n.clients[i]
	st := &w.p.clients[i][k.pc]
	if st.when != nil && !st.when(w.s, k) {
		return
	}
	w.moves++
	k.read(w.s)
	k.seq++
	seq := uint64(k.seq)
	if w.p.leader(i) != i {
		seq += twinSequence
	}
	op := st.op(k, record.ID(w.p.lease(i), seq))
	k.op, k.phase = &op, sent
	if st.ends {
		k.gave, k.gaveToken = k.hold, k.token
		k.hold, k.token, k.mode, k.n = "", 0, 0, 0
	}
	n.flight = with(n.flight, nil, message{op: &op, client: int8(i)})
	w.to(&n, "%s sends %s", leaseOf(i), shown(&op))
}

// deliver lets an operation arrive.
func (w *walk) deliver(at int) {
	m := w.s.flight[at]
	w.moves++
	n := *w.s
	n.flight = with(n.flight, []int{at})
	changed, bad := w.commit(&n, []message{m})
	if m.role == late {
		w.checked(&n, bad, "late, %s's %s arrives", leaseOf(int(m.client)), shown(m.op))
		return
	}
	// The answer is lost, and it will be applied again.
	if w.s.used.lost < w.p.faults.lost && changed {
		again := n
		again.used.lost++
		m.tried = true
		again.flight = with(again.flight, nil, m)
		w.checked(&again, bad, "%s's %s is written, the answer is lost", leaseOf(int(m.client)), shown(m.op))
	}
	answered := n
	if bad == "" {
		bad = w.answer(&answered, m, w.results[0])
	}
	w.checked(&answered, bad, "%s's %s is written", leaseOf(int(m.client)), shown(m.op))
	// A copy of it may come late.
	if w.s.used.late < w.p.faults.late {
		answered.used.late++
		// A reset or a delete that found nothing writes nothing, and may find something yet: what it is meant for.
		m.role, m.told = late, changed || m.tried || m.op.Verb != record.OpReset && m.op.Verb != record.OpDelete
		answered.flight = with(answered.flight, nil, m)
		w.checked(&answered, bad, "%s's %s is written, a copy stays in flight", leaseOf(int(m.client)), shown(m.op))
	}
}

// pairs lets two operations share a write.
func (w *walk) pairs() {
	for i, a := range w.s.flight {
		for j, b := range w.s.flight {
			if i == j || a.role == late || b.role == late {
				continue
			}
			n := *w.s
			n.flight = with(n.flight, []int{i, j})
			_, bad := w.commit(&n, []message{a, b})
			results := w.results
			if bad == "" {
				bad = w.answer(&n, a, results[0])
			}
			if bad == "" {
				bad = w.answer(&n, b, results[1])
			}
			w.checked(&n, bad, "%s's %s and %s's %s are one write", leaseOf(int(a.client)), shown(a.op), leaseOf(int(b.client)), shown(b.op))
		}
	}
}

// answer tells the client of a message what the committed record says.
func (w *walk) answer(n *state, m message, res record.Result) string {
	k := &n.clients[m.client]
	if m.role != asked {
		return ""
	}
	a := &answer{op: m.op, verdict: res.Verdict, rec: n.key.rec, rev: n.rev}
	if k.phase == proving {
		switch {
		case res.Verdict != record.Applied:
			a.op, a.outcome = k.op, uncertain
			return w.p.tell(n, int(m.client), a)
		case k.undo.Waits() && n.key.rec.Standing(k.undo).Standing == record.Waiting:
			k.phase = undoing
			return ""
		}
		return w.p.proved(n, int(m.client))
	}
	switch {
	case m.tried && (res.Verdict == record.OtherLife || res.Verdict == record.Forgotten):
		a.outcome = uncertain // it may have been done before
	case res.Verdict != record.Applied:
		a.outcome = refused
	case !m.op.Waits():
		a.outcome = applied
	default:
		a.verdict = 0
		a.state = n.key.rec.Standing(m.op)
		if a.state.Standing == record.Waiting {
			k.phase = waits
			return ""
		}
	}
	return w.p.tell(n, int(m.client), a)
}

// proved tells a client what the record says of an operation that was undone in it, or before.
func (p *program) proved(n *state, i int) string {
	a := &answer{op: n.clients[i].op, rec: n.key.rec, rev: n.rev}
	if a.state = a.rec.Standing(a.op); a.state.Standing == record.Gone || a.state.Standing == record.Waiting {
		a.outcome = cancelled
	}
	return p.tell(n, i, a)
}

// tell gives a client the outcome of its operation. It returns what is wrong with it.
func (p *program) tell(n *state, i int, a *answer) string {
	k := &n.clients[i]
	if a.outcome == 0 {
		switch a.state.Standing {
		case record.Granted:
			a.outcome = applied
		case record.Refused:
			a.outcome, a.verdict = refused, a.state.Why
			if a.verdict == record.OtherLife || a.verdict == record.Forgotten {
				a.outcome = uncertain
			}
		default:
			a.outcome = missing
		}
	}
	// From now on a copy changes nothing.
	if a.outcome != uncertain {
		for j, m := range n.flight {
			if m.op == a.op && !m.told {
				m.told = true
				n.flight = with(n.flight, []int{j}, m)
			}
		}
	}
	if a.outcome == applied && a.state.Entry != nil && slices.ContainsFunc(a.rec.Holders, func(e record.Entry) bool { return e.ID == a.state.Entry.ID }) {
		e := a.state.Entry
		k.hold, k.token, k.mode, k.n = e.ID, e.Token, e.Mode, e.Permits
	}
	if a.outcome == refused && a.state.Standing == record.Refused && a.state.Entry != nil {
		// Its entry may still stand, and is taken away.
		if undo, ok := a.op.Undo(); ok {
			n.flight = with(n.flight, nil, message{op: &undo, client: int8(i), role: ledger})
		}
	}
	if a.verdict == record.SizeMismatch && p.oneSize {
		return a.op.ID + " is told that there is another size"
	}
	st := &p.clients[i][k.pc]
	if int(k.pc) < len(k.result) {
		k.result[k.pc] = a.outcome
	}
	bad := ""
	if p.told != nil {
		bad = p.told(n, k, a)
	}
	k.op, k.undo, k.phase, k.life, k.base, k.seen, k.gen, k.quit = nil, nil, ready, 0, 0, 0, 0, false
	pc := end
	switch {
	case st.then != nil:
		pc = st.then(n, k, a)
	case a.outcome == applied:
		pc = k.pc + 1
	}
	if pc != k.pc {
		k.tries = 0
	}
	if k.pc = pc; int(pc) >= len(p.clients[i]) {
		k.phase, k.pc = done, end
	}
	return bad
}

// cancel lets a client give up.
func (w *walk) cancel(i int) {
	s, name := w.s, leaseOf(i)
	k := &s.clients[i]
	if k.phase != proving && w.p.clients[i][k.pc].stay {
		return
	}
	at := slices.IndexFunc(s.flight, func(m message) bool { return int(m.client) == i && m.role == asked })
	n := *s
	n.used.cancels++
	if k.phase == proving {
		m := s.flight[at]
		m.role = ledger
		n.flight = with(n.flight, []int{at}, m)
		w.checked(&n, w.p.tell(&n, i, &answer{op: k.op, outcome: uncertain}), "%s waits for the proof no longer", name)
		return
	}
	undo, undoes := k.op.Undo()
	if k.op.WaitsAfterUndo() {
		if !k.quit {
			n.clients[i].quit = true
			n.flight = with(n.flight, nil, message{op: &undo, client: int8(i), role: ledger})
			w.to(&n, "%s wants %s back", name, shown(k.op))
		}
		return
	}
	if k.phase == sent && !undoes {
		m := s.flight[at]
		m.role = ledger
		n.flight = with(n.flight, []int{at}, m)
		w.checked(&n, w.p.tell(&n, i, &answer{op: k.op, outcome: uncertain}), "%s gives %s up, which is carried through", name, shown(k.op))
		return
	}
	var copies []message
	if k.phase == sent {
		m := s.flight[at]
		n.flight = with(n.flight, []int{at})
		if !m.tried {
			never := n
			w.checked(&never, w.p.tell(&never, i, &answer{op: k.op, outcome: cancelled}), "%s gives %s up before it was written", name, shown(k.op))
		}
		m.role = late
		copies = append(copies, m)
	}
	w.undo(n, i, undo, "%s gives %s up", name, shown(k.op))
	if len(copies) > 0 && n.used.late < w.p.faults.late {
		n.used.late++
		n.flight = with(n.flight, nil, copies...)
		w.undo(n, i, undo, "%s gives %s up, which may still arrive", name, shown(k.op))
	}
}

// undo sends what takes the operation of a client back.
func (w *walk) undo(n state, i int, undo record.Op, format string, args ...any) {
	k := &n.clients[i]
	m := message{op: &undo, client: int8(i), role: ledger}
	if k.op.Proven() && !w.p.noProof {
		m.role = asked
		k.phase, k.undo = proving, &undo
		n.flight = with(n.flight, nil, m)
		w.to(&n, format+" and undoes it", args...)
		return
	}
	if w.p.noProof && k.op.Proven() {
		w.checked(&n, w.p.tell(&n, i, &answer{op: k.op, outcome: cancelled}), format, args...)
		return
	}
	n.flight = with(n.flight, nil, m)
	w.checked(&n, w.p.tell(&n, i, &answer{op: k.op, outcome: cancelled}), format+" and undoes it in the background", args...)
}

// die ends the lease of a client.
func (w *walk) die(i int) {
	n := *w.s
	n.used.deaths++
	lease := w.p.leader(i)
	n.dead |= 1 << lease
	for c := range w.p.clients {
		if k := &n.clients[c]; w.p.leader(c) == lease {
			*k = client{phase: lost, pc: k.pc, result: k.result, note: k.note}
		}
	}
	var own []int
	for j, m := range n.flight {
		if w.p.leader(int(m.client)) == lease && m.role != late {
			own = append(own, j)
		}
	}
	n.flight = with(n.flight, own)
	w.to(&n, "%s's lease dies", leaseOf(i))
	if n.used.late < w.p.faults.late {
		n.used.late++
		for _, j := range own {
			late1 := n
			m := w.s.flight[j]
			m.role = late
			late1.flight = with(n.flight, nil, m)
			w.to(&late1, "%s's lease dies, its %s may still arrive", leaseOf(i), shown(m.op))
		}
	}
}

// evict removes what stands under dead leases.
func (w *walk) evict() {
	var leases []string
	for i := range w.p.clients {
		if w.s.dead&(1<<i) != 0 && w.s.key.rec.EntriesUnder(leaseOf(i)) > 0 {
			leases = append(leases, leaseOf(i))
		}
	}
	for _, l := range leases {
		w.evicted(l)
	}
	if len(leases) > 1 {
		w.evicted(leases...)
	}
}

func (w *walk) evicted(leases ...string) {
	w.moves++
	n := *w.s
	_, bad := w.commitOps(&n, []record.Op{{Verb: record.OpEvict, Leases: leases}})
	if bad == "" && n.key.rec.EntriesUnder(leases...) > 0 {
		bad = "an entry of a dead lease is left after its eviction"
	}
	w.checked(&n, bad, "%s is evicted", strings.Join(leases, " and "))
}

// withdrawGhosts takes entries of a client away that it knows nothing of.
func (w *walk) withdrawGhosts(i int) {
	if w.p.keepsGhosts || w.s.key.rec == nil || w.p.leader(i) != i {
		return
	}
	for id, st := range w.s.key.rec.States() {
		if record.LeaseOf(id) != leaseOf(i) || w.s.knows(w.p, i, id) || st.Entry == nil || st.Entry.ID != id {
			continue
		}
		w.moves++
		n := *w.s
		_, bad := w.commitOps(&n, []record.Op{{Verb: record.OpRelease, ID: id, Lease: leaseOf(i)}})
		w.checked(&n, bad, "%s withdraws %s, of which it knows nothing", leaseOf(i), id)
	}
}

// describe says what an operation is, for people.
func shown(op *record.Op) string {
	text := strings.TrimSpace(fmt.Sprintf("%s %s", op.Verb, op.ID))
	add := func(set bool, format string, v any) {
		if set {
			text += fmt.Sprintf(" "+format, v)
		}
	}
	add(op.Mode != 0, "%s", op.Mode)
	add(op.Holder != "", "of %s", op.Holder)
	add(op.Token != 0, "token %d", op.Token)
	add(op.N != 0, "n=%d", op.N)
	add(op.Limit != 0, "limit=%d", op.Limit)
	add(op.Gen != 0, "gen=%d", op.Gen)
	add(op.Base != 0, "base=%d", op.Base)
	add(op.Life != 0, "life=%d", op.Life)
	add(op.Queue != "", "queue=%s", op.Queue)
	add(op.All, "%s", "all")
	add(op.Fail, "%s", "fail")
	add(op.Value.Set, "value=%q", op.Value.Data)
	return text
}
