package lease_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
)

// silentFor returns a bucket that gets no request between two times from now.
func silentFor(from, until time.Duration) *bucket {
	b := newBucket()
	start := time.Now()
	lost := func() fault {
		at := time.Since(start)
		return fault{lost: at >= from && at < until}
	}
	b.onWrite = func(int, write) fault { return lost() }
	b.onRead = func(int, string) fault { return lost() }
	return b
}

// sent returns how many writes were sent.
func sent(b *bucket) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nWrites
}

// A TTL of 2 s and 0.8 s without answers that end with a reset: the renewal and the read
// after it are lost, and without Resend the lease would wait for their answers until it ends.
func TestResend_ALeaseOutlivesSilenceThatEndsInAReset(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			b := silentFor(550*time.Millisecond, 1350*time.Millisecond)
			l := create(t, b, lease.Config{TTL: 2 * time.Second, AutoRenew: true})
			time.Sleep(1450 * time.Millisecond)
			writes := sent(b)
			l.Resend(t.Context())
			if n := sent(b) - writes; n != 1 || l.Renewals() != 1 {
				t.Errorf("%d writes and %d renewals at once after the reconnect", n, l.Renewals())
			}
			time.Sleep(5 * time.Second)
			if err := l.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// At whatever moment of a renewal the connection comes back, another
// attempt follows at once. The first one begins after 600 to 667 ms.
func TestResend_AtOnce(t *testing.T) {
	for at := 700 * time.Millisecond; at < 1850*time.Millisecond; at += 25 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			b := silentFor(500*time.Millisecond, at)
			l := create(t, b, lease.Config{TTL: 2 * time.Second, AutoRenew: true})
			time.Sleep(at + time.Millisecond)
			back := time.Now()
			l.Resend(t.Context())
			if took := time.Since(back); took != 0 || l.Remaining() < 1800*time.Millisecond {
				t.Errorf("after %v: renewed %v after the reconnect, valid for %v more", at, took, l.Remaining())
			}
		})
	}
}

// An attempt of which only the answer was lost counts from its own sending, and does not
// count as another process's write.
func TestResend_TheFirstAttemptWasCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		b.onWrite = func(n int, _ write) fault { return fault{mute: n == 2} }
		l := create(t, b, lease.Config{TTL: 2 * time.Second, AutoRenew: true})
		time.Sleep(time.Second)
		l.Resend(t.Context())
		if n := l.Renewals(); n != 1 || l.Err() != nil || l.Remaining() > 1900*time.Millisecond {
			t.Errorf("%d renewals, valid for %v more: %v", n, l.Remaining(), l.Err())
		}
	})
}

func TestResend_WithoutARenewalUnderWayNothingIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{TTL: 2 * time.Second, AutoRenew: true})
		l.Resend(t.Context())
		if n := sent(b); n != 1 {
			t.Errorf("%d writes", n)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Resend(t.Context())
	})
}
