package lease_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nuid"
)

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		o.SetMemory(1000)
		ask := func(ttl time.Duration, n int) {
			for range n {
				if _, err := o.Check(t.Context(), nuid.Next(), ttl); err != nil {
					t.Fatal(err)
				}
			}
		}
		id := ghost(b, time.Hour)
		start := time.Now()
		o.Observe(id, time.Hour, true, d.dead) // observed all the time
		time.Sleep(sec)
		ask(10*time.Hour, 2_500)
		if n := o.Remembered(); n > 1000 || n < 800 {
			t.Errorf("%d leases remembered", n)
		}
		o.Observe(id, time.Hour, true, func(string) {})
		if n := b.watching(); n != 1 {
			t.Errorf("%d watches of it: it was forgotten", n)
		}
		time.Sleep(2 * time.Hour)
		if got := d.after(id, start); got != 63*time.Minute {
			t.Errorf("the one asked about died after %v", got)
		}
		// Observations that were unused for ten limits go first.
		time.Sleep(200 * time.Hour)
		ask(10*sec, 1000)
		if _, err := o.Check(t.Context(), id, time.Hour); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(time.Hour)
			ask(10*sec, 10)
		}
		if n := o.Remembered(); n > 200 {
			t.Errorf("%d leases remembered", n)
		}
	})
}

// If more leases are observed than the memory holds, each is kept all the same.
func TestMemoryKeepsWhatIsAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		const n = 600
		o.SetMemory(100)
		for range n {
			o.Observe(ghost(b, 10*sec), 10*sec, true, d.dead)
		}
		time.Sleep(time.Minute)
		if d.count() != n {
			t.Errorf("%d of %d", d.count(), n)
		}
	})
}
