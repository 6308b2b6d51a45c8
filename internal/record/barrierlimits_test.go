package record

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Limits: parties that can never all wait are refused, but not a party that only waits for an action.
func TestBarrierLimits(t *testing.T) {
	s := newSite(t)
	s.lim.MaxWaiters = 2
	s.must(s.toAct("a.1", 3, 1))
	s.must(s.toAct("b.1", 3, 1))
	s.must(s.toAct("c.1", 3, 1)) // the last one needs no place
	if v := s.apply(s.toAct("d.1", 3, 2)); v != Stale {
		t.Error(v)
	}
	s = newSite(t)
	s.lim.MaxWaiters = 2
	s.must(s.arrive("a.1", 4, 1))
	s.must(s.arrive("b.1", 4, 1))
	if v := s.apply(s.arrive("c.1", 4, 1)); v != QueueFull {
		t.Error(v)
	}
	for _, n := range []int{0, MaxParties + 1} {
		if v := s.apply(s.arrive("z.1", n, 1)); v != BadOp {
			t.Error(n, v)
		}
	}
	// Ended generations are dropped to make room for arrivals.
	s = newSite(t)
	s.lim.MaxBytes = 8 << 10
	for gen := uint64(1); gen <= 40; gen++ {
		for i := range 5 {
			s.must(s.arrive(fmt.Sprintf("lease-%d-%d.1", i, gen), 5, gen))
			if n := len(s.rec.Append(nil)); n > s.lim.MaxBytes {
				t.Fatalf("%d bytes", n)
			}
		}
	}
}

// P22: the first three waiters observe all leases; the others observe those three.
func TestP22_FewLookAfterAll(t *testing.T) {
	s := newSite(t)
	for i := range 100 {
		s.must(s.arrive(fmt.Sprintf("p%02d.1", i), 101, 1))
	}
	seen, first := map[string]int{}, 0
	for i := range 100 {
		me := fmt.Sprintf("p%02d.", i)
		leases, next := s.rec.Ahead(func(id string) bool { return strings.HasPrefix(id, me) })
		for lease, d := range leases {
			if seen[lease]++; d != ttl {
				t.Error(d)
			}
		}
		if next {
			first++
		}
	}
	for i := 3; i < 100; i++ {
		if n := seen[fmt.Sprintf("p%02d", i)]; n != 3 {
			t.Errorf("%d look after p%02d", n, i)
		}
	}
	for i := range 3 {
		if n := seen[fmt.Sprintf("p%02d", i)]; n != 100 {
			t.Errorf("%d look after p%02d", n, i)
		}
	}
	if first != 1 {
		t.Errorf("%d evict first", first)
	}
}

// P23: 1,000 waiters and 1,000 ids that have just passed are less than 144 KiB.
func TestP23_BytesOfABarrier(t *testing.T) {
	s := newSite(t)
	since := time.UnixMilli(1790000000000)
	for gen := range uint64(2) {
		var ops []Op
		for i := range 1000 - int(gen) {
			op := s.arrive(fmt.Sprintf("l%021d.%d", i, 100+gen), 1000, gen+1)
			op.Since = since
			ops = append(ops, op)
		}
		s.must(ops...)
	}
	if n := len(s.rec.Append(nil)); n > 144<<10 {
		t.Errorf("%d bytes", n)
	} else {
		t.Logf("%d bytes", n)
	}
}
