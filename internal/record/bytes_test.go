package record

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// P23: a thousand who wait, each under a lease of its own, are less than 64 KiB in every kind, and 144 KiB where each
// has something of its own: the value of a candidate, or the name of the condition that signalled it.
func TestP23_BytesOfAThousandWaiters(t *testing.T) {
	t.Parallel()
	const n, most, withMore = 1000, 64 << 10, 144 << 10
	s := newSite(t)
	from := func(op Op, i int) Op {
		op.Lease = fmt.Sprintf("l%021d", i)
		op.ID, op.TTL, op.Since, op.Life = ID(op.Lease, uint64(100+i)), 30*time.Second, time.UnixMilli(1790000000000), s.life
		return op
	}
	bytes := func(name string, most int) {
		t.Helper()
		size := len(s.rec.Append(nil))
		t.Logf("%s: %d bytes", name, size)
		if size > most {
			t.Errorf("%s: %d bytes, more than %d", name, size, most)
		}
	}
	lock := Op{Kind: KindLock, Verb: OpAcquire, Mode: X}
	for name, op := range map[string]Op{
		"lock":      lock,
		"election":  {Kind: KindLock, Verb: OpAcquire, Mode: X, Value: Value{Set: true}},
		"semaphore": {Kind: KindSemaphore, Verb: OpAcquire, N: 1, Limit: 1},
		"gate":      {Kind: KindGate, Verb: OpEnter, Limit: MaxParties},
		"latch":     {Kind: KindLatch, Verb: OpAwait, Limit: 1},
		"once":      {Kind: KindOnce, Verb: OpAcquire},
	} {
		s = newSite(t)
		var ops []Op
		for i := range n + 1 { // the first one usually holds
			ops = append(ops, from(op, i))
		}
		s.must(ops...)
		if name == "election" {
			bytes(name, withMore)
		} else {
			bytes(name, most)
		}
	}

	s = newSite(t)
	condition := strings.Repeat("c", maxQueueName)
	apply := func(ops ...Op) {
		next, results, _ := Apply(s.rec, s.rev, ops, s.lim)
		for k, r := range results {
			if r.Verdict != Applied {
				t.Fatalf("%s: %v", ops[k].Verb, r.Verdict)
			}
		}
		s.rev++
		next.Resolve(s.rev)
		s.rec = next
	}
	of := func(i int, verb Verb) Op { // of the holder
		h := s.rec.Holders[0]
		return Op{Kind: KindLock, Verb: verb, ID: ID(h.Lease(), uint64(2000+i)), Lease: h.Lease(), Holder: h.ID, Token: h.Token, Queue: condition}
	}
	apply(from(lock, 0))
	for i := range n {
		apply(of(i, OpWait), from(lock, i+1))
	}
	bytes("condition", most)
	op := of(n, OpSignal)
	op.All = true
	apply(op)
	if len(s.rec.Waiters) != n {
		t.Fatalf("%d were woken", len(s.rec.Waiters))
	}
	bytes("signalled", withMore+n*len(condition))
}
