package explore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// arrive waits for all parties, and goes on behind the next step when it is let go; with act it goes on
// with the next step, which ends the action, if it came last.
func arrive(parties int, act bool) step {
	verb := record.OpArrive
	if act {
		verb = record.OpArriveToAct
	}
	return step{
		name: verb.String(),
		op: func(k *client, id string) record.Op {
			return record.Op{Kind: record.KindBarrier, Verb: verb, ID: id, Lease: record.LeaseOf(id), TTL: ttl, Limit: parties, Gen: k.gen, Life: k.life}
		},
		when: func(s *state, k *client) bool {
			f := s.key.rec.Facts()
			return !f.Acting || f.Arrived < parties // else it waits for the end of the action
		},
		then: func(_ *state, k *client, a *answer) int8 {
			switch {
			case a.outcome == refused && (a.verdict == record.Stale || a.verdict == record.OtherLife) && k.tries < 2:
				k.tries++
				return k.pc
			case a.outcome == applied && act && k.hold == "":
				return k.pc + 2
			case a.outcome == applied:
				return k.pc + 1
			}
			return end
		},
	}
}

// trip ends the action.
func trip(fail bool) step {
	return step{name: "trip", ends: true, op: func(k *client, id string) record.Op {
		return record.Op{Kind: record.KindBarrier, Verb: record.OpTrip, ID: id, Lease: record.LeaseOf(id), Holder: k.hold, Token: k.token, Fail: fail}
	}}
}

func reset(parties int) step {
	return step{name: "reset", op: func(k *client, id string) record.Op {
		return record.Op{Kind: record.KindBarrier, Verb: record.OpReset, ID: id, Lease: record.LeaseOf(id), Limit: parties, Gen: k.gen, Life: k.life}
	}}
}

// sweep takes the record away once nobody has to do with it, as one that was read long ago.
func sweep() step {
	return step{
		name: "sweep", stay: true,
		op: func(k *client, _ string) record.Op { return record.Op{Verb: record.OpSweep, Base: k.seen} },
		when: func(s *state, k *client) bool {
			return s.key.rec.Outlived(1<<62) && len(s.flight) == 0 && !slices.ContainsFunc(s.clients[:], func(k client) bool { return k.op != nil })
		},
		then: func(_ *state, k *client, _ *answer) int8 { return k.pc + 1 },
	}
}

// barrierProgram checks what barriers promise. ghost.text names the ids whose clients were told that they
// passed ("a.1+") or that they did not ("a.1-").
func barrierProgram(name string, f faults, clients ...[]step) program {
	return program{
		name: name, kind: record.KindBarrier, clients: clients, faults: f, batch: true, expire: true, oneSize: true,
		change: barrierChange, told: barrierTold, each: barrierEach, rest: barrierRest,
	}
}

func barrierTold(s *state, _ *client, a *answer) string {
	if a.op.Verb != record.OpArrive && a.op.Verb != record.OpArriveToAct {
		return ""
	}
	switch {
	case a.outcome == missing && s.ghost.n[0] == 0: // else nobody can tell
		return a.op.ID + " waited, and there is no trace of it"
	case a.outcome == applied && (a.state.Entry == nil || !slices.ContainsFunc(a.rec.Holders, func(e record.Entry) bool { return e.ID == a.op.ID })):
		s.ghost.text = noted(s.ghost.text, a.op.ID+"+")
	case a.outcome == refused || a.outcome == cancelled:
		s.ghost.text = noted(s.ghost.text, a.op.ID+"-")
	}
	return ""
}

// barrierEach: nobody who was told otherwise passed, and nobody is in two generations.
func barrierEach(s *state) string {
	if s.key.rec == nil {
		return ""
	}
	told := strings.Fields(s.ghost.text)
	in := map[string]uint64{}
	f := s.key.rec.Facts()
	for _, e := range s.key.rec.Waiters {
		if e.Gen == f.Gen {
			in[e.ID] = e.Gen
		}
	}
	for _, g := range f.Ended {
		if n := len(g.IDs); !g.Broken && n != f.Parties {
			return fmt.Sprintf("generation %d tripped with %d of %d parties", g.Gen, n, f.Parties)
		}
		for _, id := range g.IDs {
			if _, twice := in[id]; twice {
				return fmt.Sprintf("%s is in generation %d and in %d", id, in[id], g.Gen)
			}
			in[id] = g.Gen
			if g.Broken && slices.Contains(told, id+"+") {
				return fmt.Sprintf("%s was told that it passed, and generation %d is broken", id, g.Gen)
			}
			if !g.Broken && slices.Contains(told, id+"-") {
				return fmt.Sprintf("generation %d tripped with %s, which was told that it did not", g.Gen, id)
			}
		}
	}
	for _, id := range told {
		if _, known := in[strings.TrimSuffix(id, "+")]; strings.HasSuffix(id, "+") && !known && s.ghost.n[0] == 0 {
			return strings.TrimSuffix(id, "+") + " was told that it passed, and is in no generation"
		}
	}
	return ""
}

// barrierChange: a generation ends once, and none passes one whose action runs. ghost.n[0] counts the
// records that were taken away.
func barrierChange(c *change) string {
	after := c.after.key.rec
	if c.before != nil && (after == nil || after.Life != c.before.Life) && c.changed {
		c.after.ghost.n[0]++
	}
	for i, op := range c.ops {
		if op.Verb == record.OpSweep && c.before != nil && c.results[i].Verdict == record.Applied && op.Base != c.rev {
			return "a record was swept that has changed since it was read"
		}
	}
	if after == nil || c.before == nil || len(c.ops) > 1 {
		return ""
	}
	was, is := c.before.Facts(), after.Facts()
	if len(c.before.Holders) > 0 && len(after.Holders) > 0 && c.before.Holders[0].ID != after.Holders[0].ID &&
		!slices.ContainsFunc(is.Ended, func(g record.Ended) bool { return g.Gen == c.before.Holders[0].Gen }) {
		return "an action begins before the one before has ended"
	}
	if len(after.Holders) > 0 {
		for _, g := range is.Ended {
			if g.Gen >= after.Holders[0].Gen && !g.Broken {
				return fmt.Sprintf("generation %d tripped while the action of %d runs", g.Gen, after.Holders[0].Gen)
			}
		}
	}
	if op := c.ops[0]; op.Verb == record.OpCancel && c.changed && max(op.Gen, 1) != was.Gen {
		return fmt.Sprintf("a cancel of generation %d changes generation %d", op.Gen, was.Gen)
	}
	if op := c.ops[0]; op.Verb == record.OpEvict && !was.Acting {
		dead := slices.ContainsFunc(c.before.Waiters, func(e record.Entry) bool { return slices.Contains(op.Leases, e.Lease()) })
		if dead && (is.Gen != was.Gen+1 || !is.Ended[len(is.Ended)-1].Broken) || !dead && is.Gen != was.Gen {
			return fmt.Sprintf("an eviction makes generation %d of %d", is.Gen, was.Gen)
		}
	} else if op.Verb == record.OpEvict && len(c.before.Holders) > 0 {
		acts := slices.Contains(op.Leases, c.before.Holders[0].Lease())
		ended := slices.ContainsFunc(is.Ended, func(g record.Ended) bool { return g.Gen == c.before.Holders[0].Gen })
		switch {
		case acts && !ended:
			return "the one whose action ran was evicted, and its generation has not ended"
		case !acts && (ended || is.Gen != was.Gen):
			return "an eviction beside the action ended a generation"
		}
	}
	return ""
}

// barrierRest: who waits is in a generation that is not complete.
func barrierRest(p *program, s *state) string {
	f := s.key.rec.Facts()
	for i := range p.clients {
		k := &s.clients[i]
		switch {
		case k.phase == done || k.phase == lost:
		case k.phase == waits && !f.Acting && f.Arrived < f.Parties && s.key.rec.Has(k.op.ID):
		case k.phase == ready && p.clients[i][k.pc].name == "sweep":
		default:
			return fmt.Sprintf("%s can't go on, and nothing more happens", leaseOf(i))
		}
	}
	return ""
}

func TestBarrier(t *testing.T) {
	once := []step{arrive(2, false)}
	twice := []step{arrive(2, false), arrive(2, false)}
	acts := []step{arrive(2, true), trip(false)}
	actsTwice := []step{arrive(2, true), trip(false), arrive(2, true), trip(false)}
	fails := []step{arrive(2, true), trip(true), arrive(2, true), trip(false)}
	exploreAll(t, []program{
		barrierProgram("two parties, twice", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, twice, twice),
		barrierProgram("three clients of two", faults{lost: 1, cancels: 1, deaths: 1}, once, once, once),
		barrierProgram("three clients of two, late", faults{late: 1, cancels: 1}, twice, once, once),
		barrierProgram("an action", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, acts, acts),
		barrierProgram("actions", faults{cancels: 1, deaths: 1}, actsTwice, fails),
		barrierProgram("an action, and those who come early", faults{deaths: 1}, acts, acts, acts),
		barrierProgram("a full generation behind an action", faults{}, acts, once, acts, once),
		barrierProgram("two dead", faults{deaths: 2}, []step{arrive(3, false)}, []step{arrive(3, false)}, []step{arrive(3, false)}),
		barrierProgram("reset", faults{lost: 1, late: 1}, twice, once, []step{reset(2)}),
		barrierProgram("reset of an action", faults{late: 1}, acts, acts, []step{reset(2)}),
		barrierProgram("deleted", faults{late: 1, lost: 1}, twice, once, []step{remove(record.KindBarrier)}),
		barrierProgram("swept", faults{late: 1}, twice, twice, []step{sweep()}),
		larger(barrierProgram("four clients of two, actions", faults{cancels: 1, deaths: 1}, acts, acts, acts, acts)),
		larger(barrierProgram("three parties, all faults", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, []step{arrive(3, true), trip(false)}, []step{arrive(3, true), trip(false)}, []step{arrive(3, true), trip(false)})),
	})
}

// Without P26 who gives up returns at once.
func TestP26_NoProofIsMissed(t *testing.T) {
	p := barrierProgram("no proof", faults{cancels: 1, late: 1}, []step{arrive(2, false)}, []step{arrive(2, false)})
	p.noProof = true
	missed(t, p, "knows the outcome changed the record")
}
