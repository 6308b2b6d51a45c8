package explore

import (
	"fmt"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// permits acquires n permits of a semaphore that is made with the given size.
func permits(n, size int) step { return permitsBy(record.OpAcquire, n, size) }

func permitsBy(verb record.Verb, n, size int) step {
	return step{name: verb.String(), op: func(_ *client, id string) record.Op {
		return record.Op{Kind: record.KindSemaphore, Verb: verb, ID: id, Lease: record.LeaseOf(id), TTL: ttl, N: n, Limit: size}
	}}
}

// reduce gives back all permits but some.
func reduce(left int) step {
	return step{name: "reduce", op: func(k *client, id string) record.Op {
		k.n = min(k.n, left)
		return record.Op{Kind: record.KindSemaphore, Verb: record.OpReduce, ID: id, Lease: record.LeaseOf(id), Holder: k.hold, N: left}
	}, then: func(_ *state, k *client, _ *answer) int8 { return k.pc + 1 }}
}

// resize sets the size, on the base of what the client has read. It is sent again a few times if that has changed.
func resize(size, initial int) step {
	return step{name: "resize", op: func(k *client, _ string) record.Op {
		return record.Op{Kind: record.KindSemaphore, Verb: record.OpResize, N: size, Limit: initial, Base: k.base, Life: k.life}
	}, then: again}
}

// again sends what was refused as stale once more, with what is read then.
func again(_ *state, k *client, a *answer) int8 {
	if a.outcome == refused && (a.verdict == record.Stale || a.verdict == record.OtherLife) && k.tries < 2 {
		k.tries++
		return k.pc
	}
	return k.pc + 1
}

func remove(kind record.Kind) step {
	return step{name: "delete", op: func(k *client, _ string) record.Op {
		return record.Op{Kind: kind, Verb: record.OpDelete, Life: k.life}
	}, then: func(_ *state, k *client, _ *answer) int8 { return k.pc + 1 }}
}

func semaphoreProgram(name string, f faults, clients ...[]step) program {
	return program{
		name: name, kind: record.KindSemaphore, clients: clients, faults: f, batch: true, expire: true,
		change: semaphoreChange, rest: semaphoreRest,
	}
}

func semaphoreChange(c *change) string {
	after := c.after.key.rec
	if bad := resized(c); bad != "" {
		return bad
	}
	for i, res := range c.results {
		if res.Verdict != record.SizeMismatch {
			continue
		}
		if then, _, _ := record.Apply(c.before, c.rev, c.ops[:i], record.Limits{}); then.Idle() {
			return fmt.Sprintf("%s is refused for the size %d of a semaphore that is gone by then", c.ops[i].ID, res.Have)
		}
	}
	if after == nil {
		return ""
	}
	f := after.Facts()
	granted := false
	for _, h := range after.Holders {
		was := false
		if c.before != nil {
			_, was = c.before.Holder(h.ID)
		}
		granted = granted || !was
	}
	size := f.Size
	for i, op := range c.ops[:len(c.ops)-1] { // of several in one write a resize may come last
		if c.ops[i+1].Verb == record.OpResize && op.Verb != record.OpResize {
			size = max(size, c.before.Facts().Size, op.Limit)
		}
	}
	if granted && f.Taken > size {
		return fmt.Sprintf("a grant takes out %d permits of %d", f.Taken, f.Size)
	}
	for _, e := range after.Waiters {
		if !e.Refused {
			if e.Permits <= f.Size-f.Taken {
				return fmt.Sprintf("%s waits at the head of the queue for %d permits, and %d are free", e.ID, e.Permits, f.Size-f.Taken)
			}
			break
		}
	}
	if c.before == nil {
		return ""
	}
	return passed(c.before, after)
}

// resized: the size changes by a resize that is based on the one before, of the same life.
func resized(c *change) string {
	var was, is record.Facts
	life := c.rev
	if c.before != nil {
		was, life = c.before.Facts(), c.before.Life
	}
	if is = c.after.key.rec.Facts(); c.after.key.rec == nil {
		return "" // gone, with whatever size
	}
	size, sized := was.Size, was.Sized
	for i, op := range c.ops {
		switch {
		case c.results[i].Verdict != record.Applied:
		case op.Verb == record.OpResize && op.N != size:
			if op.Base != sized || op.Life != life {
				return fmt.Sprintf("a resize to %d was applied that is based on revision %d of life %d, not on %d of %d", op.N, op.Base, op.Life, sized, life)
			}
			size, sized = op.N, 0
		case size == 0 && op.Limit > 0:
			size, sized = op.Limit, 0
		}
	}
	if len(c.ops) == 1 && is.Size != size {
		return fmt.Sprintf("the size is %d, not %d", is.Size, size)
	}
	return ""
}

// semaphoreRest: a size that was set stays.
func semaphoreRest(p *program, s *state) string {
	if bad := allDone(p, s); bad != "" {
		return bad
	}
	if r := s.key.rec; r != nil {
		if f := r.Facts(); len(r.Holders)+len(r.Waiters) > 0 || f.Size == f.Initial {
			return "everybody is done, and the record is still there"
		}
	}
	return ""
}

func TestSemaphore(t *testing.T) {
	take := func(n, size int) []step { return []step{permits(n, size), release()} }
	part := []step{permits(2, 2), reduce(1), release()}
	tries := []step{permitsBy(record.OpTry, 1, 2), release()}
	drain := []step{permitsBy(record.OpDrain, 0, 2), release()}
	exploreAll(t, []program{
		semaphoreProgram("one permit", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, take(1, 1), take(1, 1)),
		semaphoreProgram("the large one first", faults{late: 1, cancels: 1, deaths: 1}, take(1, 2), take(2, 2), take(1, 2)),
		semaphoreProgram("in parts", faults{lost: 1, cancels: 1, deaths: 1}, part, take(1, 2), take(2, 2)),
		semaphoreProgram("tries", faults{lost: 1, late: 1, deaths: 1}, tries, drain, take(2, 2)),
		semaphoreProgram("another size", faults{lost: 1, late: 1}, take(1, 1), take(1, 2), take(2, 2)),
		semaphoreProgram("resize down", faults{late: 1, deaths: 1}, take(2, 3), take(1, 3), []step{resize(1, 3), resize(3, 3)}),
		semaphoreProgram("resize under waiters", faults{cancels: 1, deaths: 1}, take(2, 2), take(2, 2), []step{resize(1, 2), remove(record.KindSemaphore)}),
		semaphoreProgram("two resizes", faults{lost: 1, late: 1, cancels: 1}, []step{resize(2, 1), resize(1, 1)}, []step{resize(3, 1), resize(1, 1)}),
		semaphoreProgram("resize late", faults{late: 2}, []step{resize(2, 1), resize(1, 1)}, take(1, 1), take(1, 1)),
		semaphoreProgram("delete late", faults{late: 1}, []step{resize(2, 1), remove(record.KindSemaphore)}, []step{resize(3, 1)}),
		larger(semaphoreProgram("four", faults{}, take(2, 3), take(3, 3), take(1, 3), []step{resize(2, 3), resize(4, 3)})),
		larger(semaphoreProgram("three, all faults", faults{lost: 1, late: 1, cancels: 1, deaths: 1}, take(1, 2), take(2, 2), part)),
	})
}
