package explore

import (
	"fmt"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// begin runs, or waits for the result of another who runs.
func begin() step {
	return step{
		name: "begin",
		op: func(k *client, id string) record.Op {
			return record.Op{Kind: record.KindOnce, Verb: record.OpAcquire, ID: id, Lease: record.LeaseOf(id), TTL: ttl, Life: k.life}
		},
		then: func(_ *state, k *client, a *answer) int8 {
			switch {
			case a.outcome == refused && a.verdict == record.OtherLife && k.tries < 2:
				k.tries++
				return k.pc
			case a.outcome == applied:
				return k.pc + 1
			}
			return end
		},
	}
}

// finish ends the run, with a result or without.
func finish(fail bool) step {
	return step{
		name: "finish", ends: true,
		op: func(k *client, id string) record.Op {
			lease := record.LeaseOf(id)
			op := record.Op{Kind: record.KindOnce, Verb: record.OpFinish, ID: id, Lease: lease, Holder: k.hold, Token: k.token, Life: k.life, Fail: fail}
			if !fail {
				op.Value, op.N = record.Value{Set: true, Data: lease}, 60
			}
			return op
		},
		then: func(_ *state, k *client, _ *answer) int8 { return k.pc + 1 },
	}
}

// onceProgram checks what is promised of what is done once. ghost.text is the result, and who gave it;
// ghost.n[0] says that the last write has forgotten one, ghost.n[1] that any has.
func onceProgram(name string, f faults, clients ...[]step) program {
	return program{
		name: name, kind: record.KindOnce, clients: clients, faults: f, batch: true, expire: true,
		change: onceChange, told: onceTold,
		rest: func(p *program, s *state) string {
			if bad := allDone(p, s); bad != "" {
				return bad
			}
			if r := s.key.rec; r != nil && len(r.Holders)+len(r.Waiters) > 0 {
				return "an entry is left behind"
			}
			return ""
		},
	}
}

// onceChange: there is one result until it is forgotten, and it comes from one who holds.
func onceChange(c *change) string {
	after, g := c.after.key.rec, &c.after.ghost
	f := after.Facts()
	result := ""
	if f.By != "" {
		result = f.By + "=" + f.Value.Data
	}
	forgotten := false
	g.n[0] = 0
	for i, op := range c.ops {
		if (op.Verb == record.OpDelete || op.Verb == record.OpSweep) && c.results[i].Verdict == record.Applied {
			forgotten, g.n[0], g.n[1] = true, 1, 1
		}
	}
	if !c.changed || g.text == result {
		return ""
	}
	was := g.text
	g.text = result
	switch {
	case was != "" && !forgotten:
		return fmt.Sprintf("the result %s was replaced by %s", was, result)
	case result == "" || len(c.ops) > 1:
		return ""
	case c.before == nil:
		return fmt.Sprintf("the result %s was stored, and nobody ran", result)
	}
	if _, ok := c.before.Holder(f.By); !ok {
		return fmt.Sprintf("the result %s was stored by one who did not run", result)
	}
	return ""
}

// onceTold: who is told that its result is stored finds it, and who is told otherwise does not.
func onceTold(s *state, k *client, a *answer) string {
	if a.op.Verb != record.OpFinish || a.op.Fail {
		if a.outcome == missing && s.ghost.n[1] == 0 {
			return a.op.ID + " waited, and there is no trace of it"
		}
		return ""
	}
	stored := s.key.rec.Facts().By == a.op.Holder
	switch {
	case a.outcome == applied && !stored && s.ghost.n[0] == 0:
		return a.op.Holder + " was told that its result is stored, and it is not"
	case (a.outcome == cancelled || a.outcome == refused) && stored:
		return a.op.Holder + " was told that its result is not stored, and it is"
	case a.outcome == refused && a.verdict == record.NotHolder && s.ghost.n[1] == 0:
		return a.op.Holder + " runs, and its result is refused"
	}
	return ""
}

func TestOnce(t *testing.T) {
	runs := []step{begin(), finish(false)}
	fails := []step{begin(), finish(true)}
	forget := []step{remove(record.KindOnce)}
	exploreAll(t, []program{
		onceProgram("two", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, runs, runs),
		onceProgram("one fails", faults{cancels: 1, deaths: 1}, fails, runs, runs),
		onceProgram("forgotten", faults{lost: 1, late: 1, deaths: 1}, runs, forget, runs),
		onceProgram("swept", faults{lost: 1, late: 1}, runs, append([]step{sweep()}, runs...)),
		onceProgram("forgotten, late", faults{late: 2, cancels: 1}, runs, forget),
		larger(onceProgram("three, all faults", faults{lost: 1, late: 2, cancels: 2, deaths: 2}, fails, runs, forget)),
		larger(onceProgram("four", faults{late: 1, deaths: 1}, fails, runs, runs, forget)),
	})
}
