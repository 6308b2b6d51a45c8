package explore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

func enter(parties int) step {
	return step{
		name: "enter",
		op: func(k *client, id string) record.Op {
			return record.Op{Kind: record.KindGate, Verb: record.OpEnter, ID: id, Lease: record.LeaseOf(id), TTL: ttl, Limit: parties, Gen: k.gen, Life: k.life}
		},
		then: func(_ *state, k *client, a *answer) int8 {
			switch {
			case a.outcome == refused && (a.verdict == record.Stale || a.verdict == record.OtherLife) && k.tries < 3:
				k.tries++
				return k.pc
			case a.outcome == applied:
				return k.pc + 1
			}
			return end
		},
	}
}

func leave() step {
	return step{name: "leave", ends: true, op: func(k *client, id string) record.Op {
		return record.Op{Kind: record.KindGate, Verb: record.OpLeave, ID: id, Lease: record.LeaseOf(id), Holder: k.hold, Token: k.token}
	}}
}

// gateProgram checks what gates promise. ghost.text names the ids whose clients were told that they did not
// get in.
func gateProgram(name string, f faults, clients ...[]step) program {
	return program{
		name: name, kind: record.KindGate, clients: clients, faults: f, batch: true, expire: true, oneSize: true,
		change: gateChange, rest: gateRest,
		told: func(s *state, _ *client, a *answer) string {
			switch {
			case a.outcome == missing:
				return a.op.ID + " waited, and there is no trace of it"
			case a.op.Verb == record.OpEnter && (a.outcome == refused || a.outcome == cancelled):
				s.ghost.text = noted(s.ghost.text, a.op.ID)
			case a.op.Verb == record.OpLeave && a.outcome == refused:
				return fmt.Sprintf("%s of a member is refused: %s", a.op.ID, a.verdict)
			case a.op.Verb == record.OpLeave && a.rec.Has(a.op.Holder):
				return a.op.Holder + " is told that all have left, and stands in the record"
			}
			return ""
		},
	}
}

// gateChange: all go in together, and out together.
func gateChange(c *change) string {
	after := c.after.key.rec
	if after == nil || len(c.ops) > 1 {
		return ""
	}
	was, is := c.before.Facts(), after.Facts()
	if is.Open && !was.Open {
		if len(after.Holders) != is.Parties {
			return fmt.Sprintf("the gate opens for %d of %d", len(after.Holders), is.Parties)
		}
		for _, h := range after.Holders {
			if slices.Contains(strings.Fields(c.after.ghost.text), h.ID) {
				return fmt.Sprintf("the gate opens with %s, which was told that it did not get in", h.ID)
			}
		}
	}
	if !was.Open {
		return ""
	}
	op := &c.ops[0]
	for _, h := range c.before.Holders {
		left := h.Leaving > 0 || op.Verb == record.OpLeave && op.Holder == h.ID || op.ID == h.ID || slices.Contains(op.Leases, h.Lease())
		if !after.Has(h.ID) && !left {
			return h.ID + " is inside, and is not in the record any more"
		}
		if !is.Open && !left {
			return "the gate is cleared while " + h.ID + " is inside"
		}
	}
	again := !slices.ContainsFunc(c.before.Holders, func(h record.Entry) bool { return after.Has(h.ID) }) // cleared, and opened for others
	if is.Open && !again {
		for _, h := range after.Holders {
			if _, ok := c.before.Holder(h.ID); !ok {
				return h.ID + " gets in while the gate is open for others"
			}
		}
	}
	return ""
}

// gateRest: who waits outside waits for parties that don't come.
func gateRest(p *program, s *state) string {
	f := s.key.rec.Facts()
	for i := range p.clients {
		k := &s.clients[i]
		if k.phase == done || k.phase == lost || k.phase == waits && !f.Open && k.op.Verb == record.OpEnter && s.key.rec.Has(k.op.ID) && f.Arrived < f.Parties {
			continue
		}
		return fmt.Sprintf("%s can't go on, and nothing more happens", leaseOf(i))
	}
	return ""
}

func TestGate(t *testing.T) {
	both := []step{enter(2), leave()}
	again := []step{enter(2), leave(), enter(2), leave()}
	exploreAll(t, []program{
		gateProgram("two", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, both, both),
		gateProgram("two, twice", faults{late: 1, cancels: 1}, again, again),
		gateProgram("three of two", faults{cancels: 1, deaths: 1}, both, both, both),
		gateProgram("three of two, late", faults{late: 1}, both, both, both),
		larger(gateProgram("three of two, late and cancelled", faults{late: 1, cancels: 1}, both, both, both)),
		larger(gateProgram("four of two", faults{cancels: 1, deaths: 1}, both, both, both, both)),
		larger(gateProgram("two, twice, all faults", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, again, again)),
	})
}
