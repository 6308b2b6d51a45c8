package engine

import (
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Frequent questions about one lease do not visit the ledger entries of others.
func TestE7_ALeaseIsAskedAboutByItself(t *testing.T) {
	const others = 20_000
	var l ledger
	mine := &Request{Op: releaseOp("L.1")}
	l.add(mine)
	fastest := func() time.Duration {
		best := time.Hour
		for range 200 {
			begun := time.Now()
			if l.oldest("L") <= 0 || len(l.under("L")) != 1 {
				t.Fatal("what is owed is gone")
			}
			best = min(best, time.Since(begun))
		}
		return best
	}
	alone := fastest()
	for i := range others {
		l.add(&Request{Op: releaseOp(record.ID("O", uint64(i)))})
	}
	if crowded := fastest(); crowded > 100*alone+10*time.Microsecond {
		t.Errorf("%v among %d of another lease, %v alone", crowded, others, alone)
	}
	l.remove(mine)
	if l.oldest("L") != 0 || len(l.byLease) != 1 {
		t.Error("a lease under which nothing is owed is still there")
	}
}
