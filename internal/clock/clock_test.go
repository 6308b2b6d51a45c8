package clock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/clock"
)

// TestClocksAdvanceWithTime holds both clocks against Go's monotonic time on a
// host that is not suspended meanwhile. The bracket makes the check exact
// without assuming any speed: what happens inside an interval cannot last
// longer than the interval.
func TestClocksAdvanceWithTime(t *testing.T) {
	for name, c := range map[string]clock.Clock{"holder": clock.Holder(), "observer": clock.Observer()} {
		t.Run(name, func(t *testing.T) {
			outer := time.Now()
			first := c.Now()
			inner := time.Now()
			for time.Since(inner) < 20*time.Millisecond {
				if now := c.Now(); now < first {
					t.Fatalf("went back from %v to %v", first, now)
				}
			}
			atLeast := time.Since(inner)
			last := c.Now()
			atMost := time.Since(outer)
			// The kernel disciplines its clocks alike; a tenth is far more than
			// two of them can differ by, and far less than a clock in the wrong
			// unit would.
			slack := atMost / 10
			if d := last - first; d < atLeast-slack || d > atMost+slack {
				t.Fatalf("measured %v, Go's clock between %v and %v", d, atLeast, atMost)
			}
		})
	}
}

func TestOriginIsTheCall(t *testing.T) {
	before := time.Now()
	h, o := clock.Holder(), clock.Observer()
	hNow, oNow := h.Now(), o.Now()
	bound := time.Since(before) + time.Second
	if hNow < 0 || hNow > bound || oNow < 0 || oNow > bound {
		t.Fatalf("holder %v, observer %v, want within [0, %v]", hNow, oNow, bound)
	}
}

func TestObserverFollowsTheBubblesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clock.Observer()
		time.Sleep(time.Hour)
		if c.Now() != time.Hour {
			t.Fatalf("measured %v", c.Now())
		}
	})
}

func TestNowDoesNotAllocate(t *testing.T) {
	for name, c := range map[string]clock.Clock{"holder": clock.Holder(), "observer": clock.Observer()} {
		if n := testing.AllocsPerRun(100, func() { c.Now() }); n > 0 {
			t.Errorf("%s: %v allocations per call", name, n)
		}
	}
}
