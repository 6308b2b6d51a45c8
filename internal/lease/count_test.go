package lease_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// A renewal whose answer is lost, and which the watch shows during the give-up or
// the read, counts once, not twice.
func TestRenewalThatTheWatchShowsIsOne(t *testing.T) {
	for name, watchAfter := range map[string]time.Duration{
		"in the pause":        2*sec + ms, // after the timeout of 2 s there is one of 10 to 20 ms
		"during the read":     2*sec + 500*ms,
		"before the time out": sec,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				l := create(t, b, lease.Config{MaxRenewals: 5})
				time.Sleep(sec)
				sent := time.Now()
				reads := fault{delay: sec}
				if name == "in the pause" {
					reads = fault{err: kv.ErrUnavailable}
				}
				b.hooks(func(n int, _ write) fault { return fault{mute: n == 1} }, func(int, string) fault { return reads })
				time.AfterFunc(watchAfter, func() { l.Saw(b.get(l.ID())) })
				if err := l.Renew(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := len(b.committed()) - 1; n != 1 || l.Renewals() != 1 {
					t.Errorf("%d renewals were written, %d counted", n, l.Renewals())
				}
				if got := l.Remaining() + time.Since(sent); got != 28500*ms {
					t.Errorf("valid until %v after it was sent", got)
				}
			})
		})
	}
}

// If a failed renewal turns out to be committed, the next Renew
// still renews from now on, and both count.
func TestRenewalByHandIsFromNowOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{MaxRenewals: 3})
		fails := func() {
			t.Helper()
			b.hooks(func(n int, _ write) fault { return fault{mute: n == 1, lost: n > 1} }, func(int, string) fault { return fault{lost: true} })
			ctx, cancel := context.WithTimeout(t.Context(), 5*sec)
			defer cancel()
			if err := l.Renew(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			b.hooks(nil, nil)
		}
		time.Sleep(10 * sec)
		fails()
		time.Sleep(10 * sec) // 3.5 s are left, and 13.5 s with the one that failed
		if err := l.Renew(t.Context()); err != nil || l.Remaining() < 28*sec || l.Renewals() != 2 {
			t.Errorf("%v, valid for %v after %d", err, l.Remaining(), l.Renewals())
		}
		// The last allowed one fails, but was committed.
		time.Sleep(sec)
		fails()
		until := l.ValidUntil()
		if err := l.Renew(t.Context()); !errors.Is(err, lease.ErrRenewalsUsedUp) || l.Renewals() != 3 || l.ValidUntil() <= until {
			t.Errorf("%v after %d renewals", err, l.Renewals())
		}
	})
}

// On a link so slow that the next renewal is due when one is answered, a renewal is always
// under way. The one that is under way at the grant does not count.
func TestLimitDoesNotCountWhatWasSentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		setLink(b, always(2*sec))
		l := create(t, b, lease.Config{TTL: 10 * sec, RenewEvery: 3 * sec, AutoRenew: true, RTT: measured(2 * sec)})
		time.Sleep(time.Minute)
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * ms)
		l.Limit(true, 5)
		start := time.Now()
		if <-l.Lost(); l.Renewals() != 5 || time.Since(start) < 5*2700*ms+7500*ms {
			t.Errorf("lost after %v and %d renewals", time.Since(start), l.Renewals())
		}
		n := 0
		for _, w := range b.committed() {
			if w.At.After(start) && !w.Info.Dead {
				n++
			}
		}
		if n != 5 {
			t.Errorf("%d renewals were sent after the limit", n)
		}
	})
}

// A renewal that is not answered when the limits begin is not tried again.
func TestLimitEndsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{TTL: 10 * sec, AutoRenew: true})
		b.hooks(func(n int, _ write) fault { return fault{lost: n == 1} }, nil)
		time.Sleep(4 * sec) // due after 3 to 3.4 s
		sent := b.committed()[0].At
		l.Limit(false, 0)
		<-l.Lost()
		if took := time.Since(sent); took != 9500*ms || l.Renewals() != 0 {
			t.Errorf("lost %v after its creation and %d renewals", took, l.Renewals())
		}
	})
}

// Once the watch has shown that an earlier attempt renewed the lease, the renewal does not wait for
// the answer to a later attempt: it can only be a conflict, and the next may be due.
func TestAnswersThatCannotMatterAreNotWaitedFor(t *testing.T) {
	for name, f := range map[string]struct{ write, read fault }{
		"to a write": {write: fault{slow: 20 * sec}, read: fault{err: kv.ErrUnavailable}},
		"to a read":  {read: fault{delay: 20 * sec}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				link := measured(8 * sec) // the time that a request waits
				l := create(t, b, lease.Config{TTL: 5 * time.Minute, MaxRenewals: 5, RTT: link})
				b.hooks(func(n int, _ write) fault {
					if n == 1 {
						return fault{mute: true}
					}
					return f.write
				}, func(int, string) fault { return f.read })
				start := time.Now()
				time.AfterFunc(12*sec, func() { l.Saw(b.get(l.ID())) })
				if err := l.Renew(t.Context()); err != nil || time.Since(start) != 12*sec {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				if l.Renewals() != 1 || link.Timeouts() != 1 {
					t.Errorf("%d renewals, %d timeouts", l.Renewals(), link.Timeouts())
				}
			})
		})
	}
}

// An old value of the lease that somebody writes again is not a renewal.
func TestAnOldValueIsNotOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		for range 2 {
			time.Sleep(sec)
			if err := l.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b.put(l.ID(), b.committed()[1].Value)
		l.Saw(b.get(l.ID()))
		if !errors.Is(l.Err(), lease.ErrDead) {
			t.Errorf("reason %v", l.Err())
		}
	})
}
