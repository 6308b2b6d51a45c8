package explore

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// moves calls emit for everything that can happen next.
func (s *turnState) moves(emit func(n machine, what, violation string)) {
	for i := range s.clients {
		s.clientMoves(i, emit)
	}
	for f := range s.flight {
		s.arrives(f, emit)
	}
	for k, verb := range []record.Verb{5: record.OpRemove, record.OpRevoke} {
		if s.left[k] > 0 && verb != 0 && s.now.rec != nil {
			n := s.clone()
			n.left[k]--
			n.send(record.Op{Verb: verb, UpTo: s.now.rec.NewestHold()})
			emit(n, "an operator sends "+verb.String(), "")
		}
	}
}

func (s *turnState) arrives(f int, emit func(n machine, what, violation string)) {
	ops := s.flight[f].ops
	if s.out("H5 advance") {
		ops = slices.Clone(ops)
		for i := range ops {
			if e, _, ok := s.waiter(ops[i].ID); ok && ops[i].Verb == record.OpRelease && ops[i].Token != 0 {
				ops[i].Token = e.Token
			}
		}
	}
	n := s.clone()
	n.flight = slices.Delete(n.flight, f, f+1)
	lost := n.clone()
	n.write(ops)
	emit(n, s.flight[f].text+" arrives", "")
	if s.left[1] > 0 {
		lost.left[1]--
		emit(lost, s.flight[f].text+" is lost", "")
	}
	if s.left[0] > 0 {
		twice := s.clone()
		twice.left[0]--
		twice.write(ops)
		emit(twice, s.flight[f].text+" arrives, and once more later", "")
	}
}

func (s *turnState) waiter(id string) (record.Entry, int, bool) {
	if s.now.rec == nil {
		return record.Entry{}, 0, false
	}
	return s.now.rec.Waiter(id)
}

func (s *turnState) clientMoves(i int, emit func(n machine, what, violation string)) {
	c := &s.clients[i]
	name := turnLease(i)
	step := func(what string, do func(n *turnState, c *turnClient) string) {
		n := s.clone()
		violation := do(n, &n.clients[i])
		emit(n, name+" "+what, violation)
	}
	for _, t := range s.pairs {
		if s.accepts(i, t) {
			step(fmt.Sprintf("accepts %v", t), func(n *turnState, _ *turnClient) string { return n.holds(i, t.to.token, true) })
		}
	}
	if c.phase == turnDead {
		if s.now.rec.HasLease(name) {
			step("is evicted", func(n *turnState, _ *turnClient) string {
				n.write([]record.Op{{Verb: record.OpEvict, Leases: []string{name}}})
				return ""
			})
		}
		return
	}
	if c.known.rev != s.now.rev && !(s.atRest(i) && !s.now.rec.HasLease(name)) {
		step("reads", func(n *turnState, _ *turnClient) string { return n.look(i) })
	}
	if s.left[4] > 0 && c.phase != turnIdle {
		step("loses its lease", func(n *turnState, c *turnClient) string {
			n.left[4]--
			c.phase, c.known, c.ledger = turnDead, known{}, map[string]uint64{}
			return ""
		})
	}
	s.resends(i, step)
	switch c.phase {
	case turnIdle:
		if c.seq >= s.p.rounds[i] || c.seq == 0 && i > 0 && s.clients[i-1].seq == 0 && s.p.rounds[i-1] == s.p.rounds[i] {
			return // of equal clients the first asks first
		}
		step("asks", func(n *turnState, c *turnClient) string {
			c.seq++
			c.phase, c.seen, c.robbed = turnWaits, false, false
			n.ask(i)
			return ""
		})
	case turnWaits:
		if s.left[2] > 0 {
			step("gives up", func(n *turnState, c *turnClient) string {
				n.left[2]--
				c.phase = turnIdle
				held, token := false, uint64(0)
				if e, _, ok := n.waiter(n.id(i)); n.out("H3") && ok {
					held, token = true, e.Token
				}
				n.release(i, n.id(i), token, held)
				return ""
			})
		}
	case turnHolds:
		s.holderMoves(i, step)
	}
}

func (s *turnState) holderMoves(i int, step func(what string, do func(n *turnState, c *turnClient) string)) {
	if _, leaving := s.clients[i].ledger[s.id(i)]; leaving {
		step("ends its hold", func(_ *turnState, c *turnClient) string { // H2 is taken out
			c.phase = turnIdle
			return ""
		})
		return
	}
	step("releases", func(n *turnState, c *turnClient) string {
		if !n.out("H2") {
			c.phase = turnIdle
		}
		n.release(i, n.id(i), c.token, !c.asked && !c.marked)
		return ""
	})
	if s.left[3] > 0 {
		step("converts to S and back", func(n *turnState, c *turnClient) string {
			n.left[3]--
			advance := turnRelease(n.id(i), c.token)
			advance.Verb = record.OpAdvance
			convert := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: record.ID(turnLease(i), c.seq+100), Lease: turnLease(i), Holder: n.id(i), Mode: record.S}
			if ops := []record.Op{advance, convert}; n.out("H9") {
				n.write(ops[1:])
			} else {
				n.write(ops)
			}
			convert.ID, convert.Mode = record.ID(turnLease(i), c.seq+200), record.X
			n.write([]record.Op{convert})
			token, ok := turnHolder(n.now.rec, n.id(i))
			if !ok {
				return fmt.Sprintf("%s holds and can't convert", n.id(i))
			}
			c.asked = true
			return n.renewed(i, token)
		})
	}
}

// renewed is a new token of one who holds.
func (s *turnState) renewed(i int, token uint64) string {
	asked := s.clients[i].asked
	bad := s.holds(i, token, s.clients[i].byTurn)
	s.clients[i].asked = asked
	return bad
}

// ask sends an acquire, behind what the client still has to release of the key.
func (s *turnState) ask(i int) {
	var ops []record.Op
	for _, id := range slices.Sorted(maps.Keys(s.clients[i].ledger)) {
		ops = append(ops, turnRelease(id, 0))
	}
	s.send(append(ops, record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: s.id(i), Lease: turnLease(i), Mode: record.X, TTL: time.Second})...)
}

// resends sends once more what a record that was read since does not show, and what is not under way.
func (s *turnState) resends(i int, step func(what string, do func(n *turnState, c *turnClient) string)) {
	c := &s.clients[i]
	underWay := func(id string, verb record.Verb) bool {
		return slices.ContainsFunc(s.flight, func(m turnOps) bool {
			return slices.ContainsFunc(m.ops, func(op record.Op) bool { return op.ID == id && op.Verb == verb })
		})
	}
	if id := s.id(i); c.phase == turnWaits && !c.seen && !underWay(id, record.OpAcquire) && !s.now.rec.Has(id) {
		step("asks again", func(n *turnState, _ *turnClient) string {
			n.ask(i)
			return ""
		})
	}
	for _, id := range slices.Sorted(maps.Keys(c.ledger)) {
		switch {
		case underWay(id, record.OpRelease):
		case s.now.rec.Has(id):
			step("releases again", func(n *turnState, _ *turnClient) string {
				n.send(turnRelease(id, 0))
				return ""
			})
		case !underWay(id, record.OpAcquire):
			step("is told that its release is done", func(_ *turnState, c *turnClient) string {
				delete(c.ledger, id)
				return ""
			})
		}
	}
}
