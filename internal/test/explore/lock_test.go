package explore

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

func acquire(mode record.Mode) step {
	return step{name: "acquire", op: func(_ *client, id string) record.Op {
		return record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: id, Lease: record.LeaseOf(id), TTL: ttl, Mode: mode}
	}}
}

func try(mode record.Mode) step {
	return step{name: "try", op: func(_ *client, id string) record.Op {
		return record.Op{Kind: record.KindLock, Verb: record.OpTry, ID: id, Lease: record.LeaseOf(id), TTL: ttl, Mode: mode}
	}}
}

// release gives up what the client holds.
func release() step {
	return step{name: "release", ends: true, op: func(k *client, _ string) record.Op {
		return record.Op{Verb: record.OpRelease, ID: k.hold, Lease: record.LeaseOf(k.hold), Token: k.token}
	}}
}

// convert changes the mode of what the client holds; it goes on with what it has then.
func convert(mode record.Mode) step {
	return step{
		name: "convert",
		op: func(k *client, id string) record.Op {
			op := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: id, Lease: record.LeaseOf(id), Holder: k.hold, From: k.mode, Mode: mode}
			if k.mode.Covers(mode) {
				k.mode = mode // it counts on no more from now on
			}
			return op
		},
		then: func(_ *state, k *client, a *answer) int8 {
			if a.outcome != applied {
				k.token = 0 // it may have been granted between
			}
			return k.pc + 1
		},
	}
}

// lockProgram checks what locks promise.
func lockProgram(name string, f faults, clients ...[]step) program {
	return program{
		name: name, kind: record.KindLock, clients: clients, faults: f, batch: true,
		change: lockChange, told: lockTold,
	}
}

// lockChange: holders are compatible, and the queue is kept in its order.
func lockChange(c *change) string {
	after := c.after.key.rec
	if after == nil {
		return ""
	}
	converts := false
	for i, a := range after.Holders {
		for _, b := range after.Holders[i+1:] {
			if !record.Compatible(a.Mode, b.Mode) {
				return fmt.Sprintf("%s and %s hold %s and %s together", a.ID, b.ID, a.Mode, b.Mode)
			}
		}
		converts = converts || a.Convert.ID != ""
	}
	if len(after.Waiters) > 0 && !converts {
		fits := true
		for _, h := range after.Holders {
			fits = fits && record.Compatible(h.Mode, after.Waiters[0].Mode)
		}
		if fits {
			return fmt.Sprintf("%s waits at the head of the queue, and nobody is in its way", after.Waiters[0].ID)
		}
	}
	if c.before == nil {
		return ""
	}
	return passed(c.before, after)
}

// passed: of those who waited before, whoever is granted had nobody before it who still waits.
func passed(before, after *record.Record) string {
	waiting := ""
	for _, was := range before.Waiters {
		if e, _, ok := after.Waiter(was.ID); ok && !e.Refused {
			waiting = was.ID
		} else if _, ok := after.Holder(was.ID); ok && waiting != "" {
			return fmt.Sprintf("%s is granted before %s, which waited before it", was.ID, waiting)
		}
	}
	for _, h := range after.Holders {
		renamed := slices.ContainsFunc(before.Holders, func(e record.Entry) bool { return e.Token == h.Token && e.Lease() == h.Lease() })
		if waiting != "" && !before.Has(h.ID) && !renamed {
			return fmt.Sprintf("%s is granted at once although %s waits", h.ID, waiting)
		}
	}
	return ""
}

// lockTold: tokens rise from one hold to the next that excludes it. ghost.revs has the highest token
// that was told of an exclusive hold, and of any.
func lockTold(s *state, k *client, a *answer) string {
	if a.outcome != applied || !a.op.Waits() || k.token == 0 || a.op.Verb == record.OpWait && k.token == k.gaveToken {
		return ""
	}
	highest := s.ghost.revs[0]
	if k.mode == record.X {
		highest = s.ghost.revs[1]
	}
	if a.op.Verb != record.OpConvert && k.token <= highest {
		return fmt.Sprintf("the token %d of %s is not above %d, which was given before", k.token, k.hold, highest)
	}
	if k.mode == record.X {
		s.ghost.revs[0] = max(s.ghost.revs[0], k.token)
	}
	s.ghost.revs[1] = max(s.ghost.revs[1], k.token)
	return ""
}

func TestLock(t *testing.T) {
	x := []step{acquire(record.X), release()}
	s := []step{acquire(record.S), release()}
	u := []step{acquire(record.U), convert(record.X), release()}
	up := []step{acquire(record.S), convert(record.X), release()}
	down := []step{acquire(record.X), convert(record.S), release()}
	tries := []step{try(record.X), release()}
	exploreAll(t, []program{
		lockProgram("two exclusive", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, x, x),
		lockProgram("three exclusive", faults{late: 1, cancels: 1, deaths: 1}, x, x, x),
		lockProgram("a reader between", faults{lost: 1, cancels: 1, deaths: 1}, x, s, x),
		lockProgram("readers", faults{late: 1, deaths: 1}, s, s, x),
		lockProgram("tries", faults{lost: 1, late: 1, deaths: 1}, tries, tries, x),
		lockProgram("upgrades that cross", faults{lost: 1, cancels: 1, deaths: 1}, up, up),
		lockProgram("an upgrade", faults{cancels: 1, deaths: 1}, u, s, x),
		lockProgram("a downgrade", faults{lost: 1, cancels: 1, deaths: 1}, down, s),
		larger(lockProgram("four", faults{deaths: 2}, x, x, s, s)),
		larger(lockProgram("three, all faults", faults{lost: 2, late: 2, cancels: 2, deaths: 2}, x, s, x)),
		larger(lockProgram("conversions", faults{late: 1, cancels: 1}, up, u, down)),
	})
}

// Without P25 an acquire that comes late stays for ever.
func TestP25_GhostIsMissed(t *testing.T) {
	p := lockProgram("ghosts", faults{late: 1}, []step{acquire(record.X), release()}, []step{acquire(record.X), release()})
	exploreAll(t, []program{p})
	p.keepsGhosts = true
	missed(t, p, "nothing more happens")
}
