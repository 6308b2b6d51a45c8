package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// comesBack acquires and releases a lock and puts the record of the hold back, as a stream
// does that has lost its last writes.
func comesBack(t *testing.T, s *site, name string, m *fabric.Manager, key string) {
	t.Helper()
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	b := s.bucket(t, name+"-locks")
	l := acquire(t, m, key)
	e, err := b.Get(waitContext(t), enc)
	if err != nil {
		t.Fatal(err)
	}
	release(t, l)
	if _, err := b.Put(waitContext(t), enc, e.Value()); err != nil {
		t.Fatal(err)
	}
}

// A hold that comes back after its release stands under a lease that lives, so that nobody
// may evict it. Its process releases it again.
func TestReleasedHoldThatComesBack(t *testing.T) {
	t.Parallel()
	try := func(t *testing.T, m *fabric.Manager, key string) {
		t.Helper()
		eventually(t, "the lock is free", func() bool {
			l, err := m.TryAcquire(waitContext(t), key)
			if err != nil {
				if !errors.Is(err, fabric.ErrHeld) {
					t.Error(err)
				}
				return false
			}
			release(t, l)
			return true
		})
	}
	for name, freed := range map[string]func(t *testing.T, owner, other, sweeper *fabric.Manager){
		"force release": func(t *testing.T, _, other, _ *fabric.Manager) {
			if n, err := other.ForceRelease(waitContext(t), "k"); n != 1 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			release(t, acquire(t, other, "k"))
		},
		"force release by its own process": func(t *testing.T, owner, other, _ *fabric.Manager) {
			if n, err := owner.ForceRelease(waitContext(t), "k"); n != 1 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			release(t, acquire(t, other, "k"))
		},
		"somebody waits, and a third one sweeps": func(t *testing.T, _, other, _ *fabric.Manager) {
			release(t, acquire(t, other, "k"))
		},
		"its own process tries": func(t *testing.T, owner, _, _ *fabric.Manager) { try(t, owner, "k") },
		"its own process collects": func(t *testing.T, owner, other, _ *fabric.Manager) {
			if _, err := owner.Collect(waitContext(t), ""); err != nil {
				t.Error(err)
			}
			try(t, other, "k")
		},
	} {
		onSite(t, singleSite, func(t *testing.T, s *site) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				own := s.fabric(t)
				manager := func(sweep time.Duration) *fabric.Manager {
					return s.manager(t, fabric.WithFabric(own), fabric.WithSweepInterval(sweep))
				}
				owner, other := manager(0), manager(0)
				sweeper := manager(time.Second)
				held := acquire(t, owner, "held")
				waits := queue(t, waitContext(t), other, "held")
				comesBack(t, s, own, owner, "k")
				freed(t, owner, other, sweeper)
				if err := held.Err(); err != nil {
					t.Errorf("a hold that others ask about: %v", err)
				}
				release(t, held)
				release(t, granted(t, waits))
			})
		})
	}
}

// So it is after a forced release whose writes are lost, the mark as well as what its holder wrote.
func TestForcedReleaseThatIsLost(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own := s.fabric(t)
		owner, other := s.manager(t, fabric.WithFabric(own)), s.manager(t, fabric.WithFabric(own))
		b := s.bucket(t, own+"-locks")
		l := acquire(t, owner, "k")
		e, err := b.Get(waitContext(t), "k")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := other.ForceRelease(waitContext(t), "k"); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrRevoked) {
			t.Error(reason)
		}
		release(t, acquire(t, other, "k")) // the entry is gone
		if _, err := b.Put(waitContext(t), "k", e.Value()); err != nil {
			t.Fatal(err)
		}
		s.manager(t, fabric.WithFabric(own), fabric.WithSweepInterval(time.Second)) // asks the owner, for who waits
		release(t, acquire(t, other, "k"))
	})
}

// P25: so is an entry of a kind other than a lock.
func TestP25_PermitThatComesBack(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own := s.fabric(t)
		owner, other := s.manager(t, fabric.WithFabric(own)), s.manager(t, fabric.WithFabric(own))
		claim := func(m *fabric.Manager) *fabric.Hold {
			t.Helper()
			h, err := m.Claim(waitContext(t), "permits", fabric.Claim{Kind: fabric.KindSemaphore, Permits: 1, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		free := func(h *fabric.Hold) {
			t.Helper()
			if err := h.Release(waitContext(t)); err != nil {
				t.Fatal(err)
			}
		}
		enc, err := kv.EncodeName("permits")
		if err != nil {
			t.Fatal(err)
		}
		b := s.bucket(t, own+"-locks")
		h := claim(owner)
		e, err := b.Get(waitContext(t), enc)
		if err != nil {
			t.Fatal(err)
		}
		free(h)
		if _, err := b.Put(waitContext(t), enc, e.Value()); err != nil {
			t.Fatal(err)
		}
		if _, err := owner.Collect(waitContext(t), ""); err != nil {
			t.Error(err)
		}
		free(claim(other))
	})
}

// P25: who waits, in any kind, and comes back after it has left, is withdrawn by its process.
func TestP25_WaitersThatComeBack(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own := s.fabric(t)
		owner, other := s.manager(t, fabric.WithFabric(own)), s.manager(t, fabric.WithFabric(own))
		b := s.bucket(t, own+"-locks")
		for name, claim := range map[string]fabric.Claim{
			"arrival":           {Kind: fabric.KindBarrier, Verb: "arrive", Limit: 2, Gen: 1, Once: true},
			"member":            {Kind: fabric.KindGate, Verb: "enter", Limit: 2},
			"waiter of a latch": {Kind: fabric.KindLatch, Verb: "await", Limit: 1},
			"condition":         {Kind: fabric.KindLock, Verb: "wait", Queue: "c", Once: true},
		} {
			if claim.Queue != "" {
				claim.From = acquire(t, owner, name).Hold
			}
			enc, err := kv.EncodeName(name)
			if err != nil {
				t.Fatal(err)
			}
			stands := func() bool {
				i, err := other.Read(waitContext(t), name)
				return err == nil && len(i.Holders)+len(i.Waiters)+len(i.Conditions) > 0
			}
			ctx, cancel := context.WithCancel(waitContext(t))
			ended := make(chan error, 1)
			go func() {
				h, _, err := owner.Await(ctx, name, claim)
				if h != nil {
					err = h.Release(context.Background())
				}
				ended <- err
			}()
			eventually(t, name+" waits", func() bool {
				i, err := other.Read(waitContext(t), name)
				return err == nil && len(i.Waiters)+len(i.Conditions)+i.Arrived > 0
			})
			e, err := b.Get(waitContext(t), enc)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			<-ended
			eventually(t, name+" has left", func() bool { return !stands() })
			if _, err := b.Put(waitContext(t), enc, e.Value()); err != nil {
				t.Fatal(err)
			}
			if _, err := owner.Collect(waitContext(t), ""); err != nil {
				t.Error(err)
			}
			eventually(t, name+" is withdrawn", func() bool { return !stands() })
		}
	})
}

// Until a condition's wait has taken its place, the hold that it takes the place of is not one that
// came back: nobody may release it between.
func TestAHoldStaysUntilItsWaitIsWritten(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		l := acquire(t, s.manager(t), s.key(t))
		if nobodys, err := fabric.GiveAway(l.Hold); nobodys || err != nil {
			t.Errorf("nobody's: %t, %v", nobodys, err)
		}
	})
}

// H16: an entry under a lease of this process that nothing in it knows of, as one that a late acquire has written, is
// released when the process meets it in a record. Nobody sweeps, and nobody asks.
func TestH16_AGhostIsReleased(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own := s.fabric(t)
		owner, other := s.manager(t, fabric.WithFabric(own), fabric.WithSweepInterval(0)), s.manager(t, fabric.WithFabric(own), fabric.WithSweepInterval(0))
		comesBack(t, s, own, owner, "k")
		waits := queue(t, waitContext(t), other, "k")
		mine := queue(t, waitContext(t), owner, "k") // and so it sees the record
		release(t, granted(t, waits))
		release(t, granted(t, mine))
	})
}
