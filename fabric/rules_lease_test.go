package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// The rules about leases. The lease itself is tried in its own package; here is
// what its holds do.

func TestRule6_OnlyTheStoredAttemptCounts(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	for _, b := range []behaviour{
		{"acknowledgements lost, the hold goes on", func(t *testing.T, s *site) {
			m, w := s.wired(t, fabric.WithTTL(4*ttl), fabric.WithRenewInterval(ttl/4))
			key := s.key(t)
			l := acquire(t, m, key)
			f := w.fault(-1, leaseWrite, deaf)
			for range 5 {
				receive(t, f.hit)
				if err := l.Err(); err != nil {
					t.Fatal(err)
				}
			}
			f.end()
			expectHolder(t, m, key, l)
			release(t, l)
		}},
		{"and counts from its own sending", renewalCountsFromItsSending},
		{"an unrecognised revision means lost", func(t *testing.T, s *site) {
			m := s.manager(t)
			l := acquire(t, m, s.key(t))
			leases := s.bucket(t, fabric.DefaultFabric+"-leases")
			e, err := leases.Get(waitContext(t), leaseOf(l.ID()))
			if err != nil {
				t.Fatal(err)
			}
			// The very same value, but not our attempt's write.
			if _, err := leases.Put(waitContext(t), leaseOf(l.ID()), e.Value()); err != nil {
				t.Fatal(err)
			}
			if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrTakenOver) {
				t.Errorf("lost because of %v", reason)
			}
		}},
		{"a lease that is gone is not made again", func(t *testing.T, s *site) {
			m := s.manager(t, fabric.WithTTL(4*ttl), fabric.WithRenewInterval(ttl/4))
			l := acquire(t, m, s.key(t))
			leases := s.bucket(t, fabric.DefaultFabric+"-leases")
			if err := leases.Purge(waitContext(t), leaseOf(l.ID())); err != nil {
				t.Fatal(err)
			}
			if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrTakenOver) {
				t.Errorf("lost because of %v", reason)
			}
			next := acquire(t, m, s.key(t))
			if leaseOf(next.ID()) == leaseOf(l.ID()) {
				t.Error("the same lease again")
			}
			for end := time.Now().Add(ttl); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				e, err := leases.Get(waitContext(t), leaseOf(l.ID()))
				if err == nil && !leaseState(t, s, leaseOf(l.ID())) {
					t.Fatalf("it lives again: %s", e.Value())
				}
			}
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			onSite(t, singleSite, func(t *testing.T, s *site) {
				t.Parallel()
				b.run(t, s)
			})
		})
	}
}

// The first renewal is under way for long, and what is sent after it gets lost.
// When it arrives at last, the hold lives as long as that renewal is good for.
func renewalCountsFromItsSending(t *testing.T, s *site) {
	const ttl = 3 * time.Second
	for range 10 {
		m, w := s.wired(t, fabric.WithTTL(ttl))
		l := acquire(t, m, s.key(t))
		deliver := make(chan struct{})
		act, replies := w.delayed(deliver)
		var sent time.Time
		first := w.fault(1, leaseWrite, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			sent = time.Now()
			return act(ctx, msg, send)
		})
		w.fault(-1, leaseWrite, vanish)
		receive(t, first.hit)
		was := l.ValidUntil()
		<-time.After(ttl * 2 / 5)
		close(deliver)
		receive(t, replies)
		eventually(t, "the renewal is found", func() bool { return l.ValidUntil().Sub(was) > ttl/10 || l.Err() != nil })
		until := l.ValidUntil()
		if l.Err() != nil {
			continue // this machine stood still
		}
		if most := sent.Add(ttl * 95 / 100); until.After(most.Add(5 * time.Millisecond)) {
			t.Errorf("valid for %v longer than the renewal that is stored", until.Sub(most))
		}
		if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrExpired) {
			t.Errorf("lost because of %v", reason)
		}
		return
	}
	t.Error("lost ten times")
}

func TestRule7_InvalidBeforeTheReleaseIsSent(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Run("release", func(t *testing.T) {
			for name, act := range map[string]action{"done": nil, "result unknown": deaf, "not sent": notSent} {
				m, w := s.wired(t)
				key := s.key(t)
				l := acquire(t, m, key)
				ctx := l.Context()
				w.fault(1, about(t, key, lockWrite), func(c context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
					if err := l.Err(); !errors.Is(err, fabric.ErrReleased) || ctx.Err() == nil || !l.ValidUntil().IsZero() {
						t.Errorf("%s: when the release is sent, the handle says %v, its context %v", name, err, ctx.Err())
					}
					if act == nil {
						return send(c, msg)
					}
					return act(c, msg, send)
				})
				release(t, l)
				expectFree(t, m, key)
			}
		})
		t.Run("a release that is never confirmed", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t)
			key := s.key(t)
			l := acquire(t, m, key)
			w.fault(-1, about(t, key, lockTraffic), vanish)
			if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrUnconfirmed) {
				t.Errorf("release: %v", err)
			}
			if err := l.Err(); !errors.Is(err, fabric.ErrReleased) {
				t.Errorf("the handle says %v", err)
			}
			w.heal()
			release(t, acquire(t, s.manager(t), key)) // it goes on in the background
		})
		t.Run("close", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t)
			key := s.key(t)
			l, own := acquire(t, m, key), acquire(t, m, s.key(t), fabric.WithTTL(time.Hour), fabric.WithAutoRenew(false))
			f := w.fault(-1, leaseWrite, seen(func(*nats.Msg) {
				for _, l := range []*fabric.Lock{l, own} {
					if err := l.Err(); !errors.Is(err, fabric.ErrLost) {
						t.Errorf("when a tombstone is sent, the handle says %v", err)
					}
				}
			}))
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if f.count() < 2 {
				t.Errorf("%d tombstones", f.count())
			}
		})
		t.Run("revoked", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t)
			key := s.key(t)
			l := acquire(t, m, key)
			f := w.fault(1, about(t, key, lockWrite), seen(func(*nats.Msg) {
				if err := l.Err(); !errors.Is(err, fabric.ErrRevoked) {
					t.Errorf("when a revoked hold is let go, the handle says %v", err)
				}
			}))
			if _, err := s.manager(t).ForceRelease(waitContext(t), key); err != nil {
				t.Fatal(err)
			}
			receive(t, f.hit)
			release(t, acquire(t, s.manager(t), key))
		})
	})
}

func TestRule8_OneAcquireStandsUnderOneLease(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithTTL(5*time.Second))
		keys := []string{s.key(t), s.key(t), s.key(t)}
		a, b := acquire(t, m, keys[0]), acquire(t, m, keys[1])
		own := acquire(t, m, keys[2], fabric.WithTTL(2*time.Second), fabric.WithAutoRenew(false))
		for i, l := range []*fabric.Lock{a, b, own} {
			if h := inspect(t, m, keys[i]).Holders[0]; h.Lease.ID != leaseOf(l.ID()) || h.ID != l.ID() {
				t.Errorf("%s stands under %s", l.ID(), h.Lease.ID)
			}
		}
		if leaseOf(a.ID()) != leaseOf(b.ID()) || leaseOf(own.ID()) == leaseOf(a.ID()) {
			t.Errorf("leases of %s, %s and, with its own end, %s", a.ID(), b.ID(), own.ID())
		}
		// With the lease ends what stands under it, and nothing else.
		waitLost(t, own)
		if a.Err() != nil || b.Err() != nil {
			t.Errorf("%v, %v", a.Err(), b.Err())
		}
		if err := s.bucket(t, fabric.DefaultFabric+"-leases").Delete(waitContext(t), leaseOf(a.ID())); err != nil {
			t.Fatal(err)
		}
		waitLost(t, a)
		waitLost(t, b)
	})
}

func TestRule9_ManyDeadWaitersCostOneTTL(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		const ttl, n = 4 * time.Second, 15 // a manager has at most 16 waiters in a record
		key, other := s.key(t), s.manager(t)
		nc := s.conn(t)
		m := newManager(t, nc)
		acquire(t, m, key, fabric.WithTTL(ttl))
		for i := range n {
			// A renewal limit gives each a lease of its own, as n processes would have.
			acquireAsync(waitContext(t), m, key, fabric.WithTTL(ttl), fabric.WithMaxRenewals(1000+i))
		}
		eventually(t, fmt.Sprintf("%d waiters, each under a lease", n), func() bool {
			leases := map[string]bool{}
			for _, p := range inspect(t, other, key).Waiters {
				leases[p.Lease.ID] = true
			}
			return len(leases) == n
		})
		last := queue(t, waitContext(t), other, key)
		before := inspect(t, other, key).Revision
		start := time.Now()
		nc.Close()
		l := granted(t, last)
		took := time.Since(start)
		if took > n/3*ttl {
			t.Errorf("granted after %v, %.1f TTLs", took, took.Seconds()/ttl.Seconds())
		}
		t.Logf("%d dead waiters cost %.1f TTLs", n, took.Seconds()/ttl.Seconds())
		if record.RevisionOf(l.Token()) > before { // it queued before
			t.Errorf("token %d after revision %d", l.Token(), before)
		}
		release(t, l)
	})
}

func TestRule10_TryUsersReplaceADeadHolder(t *testing.T) {
	t.Parallel()
	const ttl = time.Second
	dead := func(t *testing.T, s *site) string {
		key := s.key(t)
		nc := s.conn(t)
		acquire(t, newManager(t, nc, fabric.WithTTL(ttl)), key)
		nc.Close()
		return key
	}
	for _, b := range []behaviour{
		{"one manager, tries much shorter than the TTL", func(t *testing.T, s *site) {
			key, m := dead(t, s), s.manager(t)
			eventually(t, "a try that succeeds", func() bool {
				ctx, cancel := context.WithTimeout(context.Background(), ttl/4)
				defer cancel()
				l, err := m.TryAcquire(ctx, key)
				if err == nil {
					release(t, l)
				} else if !errors.Is(err, fabric.ErrHeld) && !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				return err == nil
			})
		}},
		{"a new process for each try", func(t *testing.T, s *site) {
			key := dead(t, s)
			eventually(t, "a try that succeeds", func() bool {
				m := s.manager(t)
				defer func() { _ = m.Close() }()
				l, err := m.TryAcquire(waitContext(t), key)
				if err == nil {
					release(t, l)
				} else if !errors.Is(err, fabric.ErrHeld) {
					t.Fatal(err)
				}
				return err == nil
			})
		}},
		{"a holder that lives is not replaced", func(t *testing.T, s *site) {
			for try := 1; ; try++ {
				key, m := s.key(t), s.manager(t)
				l := acquire(t, s.manager(t, fabric.WithTTL(2*ttl)), key)
				err := fabric.ErrHeld
				for n := 0; n < 5 && errors.Is(err, fabric.ErrHeld); n++ {
					_, err = m.TryAcquire(waitContext(t), key)
					<-time.After(ttl)
				}
				switch lost := l.Err(); {
				case errors.Is(lost, fabric.ErrExpired) && try < 5: // the holder did not renew in time, and knows it
					t.Logf("the machine is too busy: %v, %v", lost, err)
					continue
				case lost != nil, !errors.Is(err, fabric.ErrHeld):
					t.Fatal(errors.Join(err, lost))
				}
				expectHolder(t, m, key, l)
				return
			}
		}},
		{"nor is any without takeover", func(t *testing.T, s *site) {
			key, m := dead(t, s), s.manager(t)
			for i := range 5 {
				if _, err := m.TryAcquire(waitContext(t), key, fabric.WithoutTakeover()); !errors.Is(err, fabric.ErrHeld) {
					t.Fatal(fmt.Errorf("try %d: %w", i, err))
				}
				<-time.After(ttl)
			}
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			onBothSites(t, func(t *testing.T, s *site) {
				t.Parallel()
				b.run(t, s)
			})
		})
	}
}
