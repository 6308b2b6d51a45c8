package lease_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
)

// A creation that is acknowledged within the TTL, but after the lease has ended.
func TestCreateDoesNotReturnALeaseInItsMargin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		b.hooks(func(n int, _ write) fault {
			if n == 1 {
				return fault{slow: 9700 * ms, forced: true}
			}
			return fault{}
		}, nil)
		if l := create(t, b, lease.Config{TTL: 10 * sec}); !l.Valid() {
			t.Error(l.Err())
		}
	})
}

// On a link that is known to be slow the wait for a tombstone is long enough.
func TestTombstonesOnASlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		link := measured(5 * sec)
		l, err := lease.Create(t.Context(), b, lease.Config{TTL: time.Minute, Clock: newClock(1), RTT: link})
		if err != nil {
			t.Fatal(err)
		}
		setLink(b, always(5*sec))
		if err := l.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		o := lease.NewObserver(b, b.Watch, newClock(1), "", link, nil)
		defer o.Close()
		if st, err := o.Check(t.Context(), l.ID(), time.Minute); err != nil || !st.Dead {
			t.Errorf("%+v, %v", st, err)
		}
		id := ghost(b, 10*sec)
		if dead, err := o.WaitDead(t.Context(), id, 10*sec); err != nil || !dead {
			t.Errorf("%v, %v", dead, err)
		}
		// The read is that of Check: no tombstone had to be looked for.
		if n := len(b.committed()); n != 3 || b.reads() != 1 || link.Timeouts() != 0 {
			t.Errorf("%d writes, %d reads, %d timeouts", n, b.reads(), link.Timeouts())
		}
	})
}

// For a missing lease the longest known TTL counts.
func TestMissingLeaseOfSeveralTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		start := time.Now()
		o.Observe(testID, 10*sec, true, d.dead)
		time.Sleep(sec)
		o.Observe(testID, sec, true, func(string) {})
		time.Sleep(time.Minute)
		if got := d.after(testID, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
	})
}
