package explore

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// split makes clients release and wait in two operations, for a record that would let them (P2).
var split = flag.Bool("explore.split", false, "clients release before they wait: for a mutant of the record")

// wait gives the hold up and waits for the condition.
func wait(queue string) step {
	return step{name: "wait", ends: true, op: func(k *client, id string) record.Op {
		hold, token := k.hold, k.token
		if hold == "" {
			hold, token = k.gave, k.gaveToken
		}
		return record.Op{Kind: record.KindLock, Verb: record.OpWait, ID: id, Lease: record.LeaseOf(id), Holder: hold, Token: token, Queue: queue}
	}}
}

func signal(queue string, all bool) step {
	return step{name: "signal", stay: true, op: func(k *client, id string) record.Op {
		return record.Op{Kind: record.KindLock, Verb: record.OpSignal, ID: id, Lease: record.LeaseOf(id), Holder: k.hold, Token: k.token, Queue: queue, All: all}
	}}
}

// condProgram checks what conditions promise. ghost.text names the signals that were written.
func condProgram(name string, f faults, clients ...[]step) program {
	p := lockProgram(name, f, clients...)
	p.change = condChange
	p.told = func(s *state, k *client, a *answer) string {
		if a.outcome == refused {
			return fmt.Sprintf("%s is refused to who holds: %s", a.op.ID, a.verdict)
		}
		return lockTold(s, k, a)
	}
	p.rest = func(p *program, s *state) string {
		for i := range p.clients {
			k := &s.clients[i]
			if k.phase == done || k.phase == lost || k.phase == waits && waitsForSignal(s.key.rec, k.op.ID) && !k.quit {
				continue
			}
			return fmt.Sprintf("%s can't go on, and nothing more happens", leaseOf(i))
		}
		if r := s.key.rec; r != nil && len(r.Holders)+len(r.Waiters) > 0 {
			return "an entry is left behind"
		}
		return ""
	}
	return p
}

func waitsForSignal(r *record.Record, id string) bool {
	return slices.ContainsFunc(r.Facts().Queues, func(q record.Queue) bool {
		return slices.ContainsFunc(q.Waiters, func(e record.Entry) bool { return e.ID == id })
	})
}

// woken returns who stood in a queue before and has left it signalled.
func woken(before, after *record.Record, q record.Queue) (ids []string) {
	for _, e := range q.Waiters {
		now, ok := after.Holder(e.ID)
		if !ok {
			now, _, ok = after.Waiter(e.ID)
		}
		if ok && now.Signalled == q.Name {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func condChange(c *change) string {
	if bad := lockChange(c); bad != "" {
		return bad
	}
	if c.before == nil || len(c.ops) > 1 {
		if c.before != nil {
			for _, op := range c.ops {
				if op.Verb == record.OpSignal {
					c.after.ghost.text = noted(c.after.ghost.text, op.ID)
				}
			}
		}
		return ""
	}
	op, after := &c.ops[0], c.after.key.rec
	if after == nil {
		after = &record.Record{Kind: record.KindLock}
	}
	queues := c.before.Facts().Queues
	if len(queues) == 0 {
		queues = []record.Queue{{Name: "q"}}
	}
	for _, q := range queues {
		got, alive, n := woken(c.before, after, q), q.Waiters, 0
		switch op.Verb {
		case record.OpSignal:
			h, ok := c.before.Holder(op.Holder)
			if ok && h.Token == op.Token && op.Queue == q.Name && c.after.ghost.text == noted(c.after.ghost.text, op.ID) {
				break // it was done before
			}
			switch {
			case !ok || h.Token != op.Token || op.Queue != q.Name:
			case op.All:
				n = len(q.Waiters)
			default:
				n = 1
			}
		case record.OpEvict, record.OpRelease:
			alive = slices.DeleteFunc(slices.Clone(alive), func(e record.Entry) bool {
				return e.ID == op.ID || slices.Contains(op.Leases, e.Lease())
			})
			for _, list := range [][]record.Entry{c.before.Holders, c.before.Waiters} {
				for _, e := range list {
					gone := e.ID == op.ID && op.Token == 0 || slices.Contains(op.Leases, e.Lease())
					if gone && e.Signalled == q.Name && !e.SignalAll {
						n++
					}
				}
			}
		}
		var want []string
		for _, e := range alive[:min(n, len(alive))] {
			want = append(want, e.ID)
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("%s %s wakes %v of condition %s, and should wake %v", op.Verb, op.ID, got, q.Name, want)
		}
	}
	if op.Verb == record.OpSignal && c.results[0].Verdict == record.Applied {
		c.after.ghost.text = noted(c.after.ghost.text, op.ID)
	}
	return ""
}

// noted adds an id to a list, once.
func noted(list, id string) string {
	if slices.Contains(strings.Fields(list), id) {
		return list
	}
	all := append(strings.Fields(list), id)
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestCondition(t *testing.T) {
	waiter := []step{acquire(record.X), wait("q"), release()}
	one := []step{acquire(record.X), signal("q", false), release()}
	all := []step{acquire(record.X), signal("q", true), release()}
	twice := []step{acquire(record.X), signal("q", false), signal("q", false), release()}
	exploreAll(t, []program{
		condProgram("one signal", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, waiter, one),
		condProgram("two waiters, one signal", faults{lost: 1, deaths: 1}, waiter, waiter, one),
		condProgram("two waiters, late signal", faults{late: 1}, waiter, waiter, one),
		condProgram("two waiters, one wants it back", faults{cancels: 1}, waiter, waiter, one),
		condProgram("two waiters, broadcast", faults{lost: 1, deaths: 1}, waiter, waiter, all),
		condProgram("two signals", faults{late: 1}, waiter, waiter, twice),
		condProgram("signals of two", faults{cancels: 1, deaths: 1}, waiter, one, one),
		condProgram("late acquire and signal", faults{late: 2}, waiter, one),
		condProgram("late acquire and broadcast", faults{late: 2}, waiter, all),
		condProgram("late acquire, wanted back", faults{late: 2, cancels: 1}, waiter),
		larger(condProgram("two signals, all faults", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, waiter, waiter, twice)),
		larger(condProgram("three waiters, broadcast", faults{deaths: 1}, waiter, waiter, waiter, all)),
		larger(condProgram("three waiters, one signal", faults{deaths: 1}, waiter, waiter, waiter, one)),
		larger(condProgram("two waiters, all faults", faults{late: 1, cancels: 1, deaths: 1}, waiter, waiter, one)),
	})
}

// TestP2_NoWakeupIsLost: what the signaller has set under the lock is seen by whoever waits for it. ghost.n[0]
// says that it is set.
func TestP2_NoWakeupIsLost(t *testing.T) {
	look := acquire(record.X)
	look.then = func(n *state, k *client, a *answer) int8 {
		switch {
		case a.outcome != applied:
			return end
		case n.ghost.n[0] > 0:
			return k.pc + 2 // nothing to wait for
		}
		return k.pc + 1
	}
	set := acquire(record.X)
	set.then = func(n *state, k *client, a *answer) int8 {
		if a.outcome != applied {
			return end
		}
		n.ghost.n[0] = 1
		return k.pc + 1
	}
	waiter := []step{look, wait("q"), release()}
	if *split {
		look.then = func(n *state, k *client, a *answer) int8 {
			if n.ghost.n[0] > 0 {
				return k.pc + 3
			}
			return k.pc + 1
		}
		waiter = []step{look, release(), wait("q"), release()}
	}
	p := condProgram("predicate", faults{lost: 1, late: 1}, waiter, []step{set, signal("q", false), release()})
	rest := p.rest
	p.rest = func(p *program, s *state) string {
		if bad := rest(p, s); bad != "" {
			return bad
		}
		if s.clients[0].phase == waits && s.ghost.n[0] > 0 {
			return "a waits for a signal, and what it waits for was set and signalled"
		}
		return ""
	}
	exploreAll(t, []program{p})
}
