package record

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// P23: a thousand who wait, each under a lease of its own, are less than 144 KiB in every kind, but for the
// names of conditions that signalled them.
func TestP23_BytesOfAThousandWaiters(t *testing.T) {
	const n, most = 1000, 144 << 10
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
		for i := range n + 1 { // the first one holds, as a rule
			ops = append(ops, from(op, i))
		}
		s.must(ops...)
		bytes(name, most)
	}

	s = newSite(t)
	condition := strings.Repeat("c", maxQueueName)
	apply := func(op Op) {
		next, results, _ := Apply(s.rec, s.rev, []Op{op}, s.lim)
		if results[0].Verdict != Applied {
			t.Fatalf("%s: %v", op.Verb, results[0].Verdict)
		}
		s.rev++
		next.Resolve(s.rev)
		s.rec = next
	}
	hold := func(i int) Op {
		op := from(lock, i)
		apply(op)
		return Op{Kind: KindLock, ID: ID(op.Lease, uint64(2000+i)), Lease: op.Lease, Holder: op.ID, Token: s.rec.Holders[0].Token, Queue: condition}
	}
	for i := range n {
		op := hold(i)
		op.Verb = OpWait
		apply(op)
	}
	bytes("condition", most)
	op := hold(n)
	op.Verb, op.All = OpSignal, true
	apply(op)
	if len(s.rec.Waiters) != n {
		t.Fatalf("%d were woken", len(s.rec.Waiters))
	}
	bytes("signalled", most+n*len(condition))
}
