package explore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// count counts a latch down by n, or up with OpAdd. What was refused as stale is sent again.
func count(verb record.Verb, n, initial int) step {
	return step{
		name: verb.String(),
		op: func(k *client, id string) record.Op {
			return record.Op{Kind: record.KindLatch, Verb: verb, ID: id, Lease: record.LeaseOf(id), TTL: ttl, N: n, Limit: initial, Base: k.seen, Life: k.life}
		},
		then: again,
	}
}

// await waits until the latch is open.
func await(initial int) step {
	return step{
		name: "await",
		op: func(k *client, id string) record.Op {
			return record.Op{Kind: record.KindLatch, Verb: record.OpAwait, ID: id, Lease: record.LeaseOf(id), TTL: ttl, Limit: initial, Life: k.life}
		},
		then: again,
	}
}

// latchProgram checks what latches promise. ghost.text names the counts and adds that were written, as
// "a.1=-2"; ghost.n[0] counts the records that were taken away, and ghost.n[1] says that the latch was open.
func latchProgram(name string, initial int, f faults, clients ...[]step) program {
	return program{
		name: name, kind: record.KindLatch, clients: clients, faults: f, batch: true, expire: true, oneSize: true,
		change: func(c *change) string { return latchChange(c, initial) },
		told:   latchTold,
		rest: func(p *program, s *state) string {
			for i := range p.clients {
				k := &s.clients[i]
				if k.phase == done || k.phase == lost || k.phase == waits && s.key.rec.Facts().Count > 0 && s.key.rec.Has(k.op.ID) {
					continue
				}
				return fmt.Sprintf("%s can't go on, and nothing more happens", leaseOf(i))
			}
			return ""
		},
	}
}

// latchChange: each count is in the count once.
func latchChange(c *change, initial int) string {
	after, g := c.after.key.rec, &c.after.ghost
	if c.before != nil && (after == nil || after.Life != c.before.Life) && c.changed {
		g.n[0]++
		g.n[1], g.text = 0, ""
	}
	if after == nil || !c.changed {
		return ""
	}
	want := initial
	for i, op := range c.ops {
		if (op.Verb == record.OpCount || op.Verb == record.OpAdd) && c.results[i].Verdict == record.Applied && op.Life == after.Life && (c.before == nil || g.n[1] == 0) {
			sign := "-"
			if op.Verb == record.OpAdd {
				sign = "+"
			}
			g.text = noted(g.text, fmt.Sprintf("%s=%s%d", op.ID, sign, op.N))
		}
	}
	for entry := range strings.FieldsSeq(g.text) {
		n := 0
		_, amount, _ := strings.Cut(entry, "=")
		_, _ = fmt.Sscanf(amount, "%d", &n)
		want += n
	}
	f := after.Facts()
	switch {
	case f.Open:
		g.n[1] = 1
		if g.n[1] == 0 && want > 0 {
			return fmt.Sprintf("the latch opens, and %s leaves %d", g.text, want)
		}
	case g.n[1] == 1:
		return "the latch was open, and is not any more"
	case f.Count != want:
		return fmt.Sprintf("the count is %d, and %s leaves %d", f.Count, g.text, want)
	}
	return ""
}

// latchTold: who is told that it counted has counted, and who is told that it did not has not.
func latchTold(s *state, _ *client, a *answer) string {
	if a.op.Verb == record.OpAwait {
		if a.outcome == missing && s.ghost.n[0] == 0 {
			return a.op.ID + " waited, and there is no trace of it"
		}
		if a.outcome == applied && !a.rec.Facts().Open {
			return a.op.ID + " is let go, and the latch is not open"
		}
		return ""
	}
	if a.op.Verb == record.OpDelete || s.key.rec == nil || s.key.rec.Life != a.op.Life || s.ghost.n[1] == 1 {
		return ""
	}
	written := slices.ContainsFunc(strings.Fields(s.ghost.text), func(e string) bool { return strings.HasPrefix(e, a.op.ID+"=") })
	switch {
	case a.outcome == applied && !written:
		return a.op.ID + " was told that it counted, and it did not"
	case (a.outcome == cancelled || a.outcome == refused) && written:
		return a.op.ID + " was told that it did not count, and it did"
	}
	return ""
}

// twins has the first two clients share a lease.
func twins(p program) program {
	p.twins = true
	return p
}

func TestLatch(t *testing.T) {
	one := []step{count(record.OpCount, 1, 2)}
	two := []step{count(record.OpCount, 1, 3), count(record.OpCount, 1, 3)}
	add := []step{count(record.OpAdd, 1, 2), count(record.OpCount, 1, 2)}
	waiter := []step{await(2)}
	exploreAll(t, []program{
		latchProgram("two counts and a waiter", 2, faults{lost: 1, late: 1, cancels: 1, deaths: 1}, one, one, waiter),
		latchProgram("two of each", 3, faults{lost: 1, late: 1, cancels: 1, deaths: 1}, two, two),
		latchProgram("late counts", 4, faults{late: 2, deaths: 1}, []step{count(record.OpCount, 1, 4), count(record.OpCount, 1, 4)}, []step{count(record.OpCount, 1, 4)}),
		latchProgram("counted up", 2, faults{lost: 1, late: 1, cancels: 1, deaths: 1}, add, one),
		latchProgram("deleted", 2, faults{late: 1, lost: 1}, one, []step{await(2)}, []step{count(record.OpCount, 2, 2), remove(record.KindLatch)}),
		latchProgram("two first users", 2, faults{lost: 1, late: 1, cancels: 1}, one, one, []step{remove(record.KindLatch)}),
		twins(latchProgram("of one lease", 4, faults{lost: 1, late: 1, deaths: 1}, []step{count(record.OpCount, 1, 4)}, []step{count(record.OpCount, 1, 4)}, []step{count(record.OpCount, 1, 4)})),
		larger(latchProgram("three, all faults", 3, faults{late: 1, cancels: 1, deaths: 1}, two, []step{count(record.OpAdd, 1, 3), count(record.OpCount, 2, 3)}, []step{await(3)})),
		larger(latchProgram("two dead", 4, faults{lost: 1, late: 2, deaths: 2}, []step{count(record.OpCount, 1, 4)}, []step{count(record.OpCount, 1, 4)}, []step{count(record.OpCount, 1, 4)})),
	})
}
