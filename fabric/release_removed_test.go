package fabric_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// A hold that was removed before anything told its holder is not released: the
// holder has to learn that it was not alone up to the end, whether the release
// meets the next holder's record or none.
func TestReleaseOfARemovedHoldIsALoss(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		op, m := s.manager(t), s.manager(t)
		for _, taken := range []bool{false, true} {
			key := s.key(t)
			l := acquire(t, m, key)
			if n, err := op.ForceRelease(waitContext(t), key, fabric.ForceNow()); n != 1 || err != nil {
				t.Fatalf("ForceRelease: %d, %v", n, err)
			}
			if taken {
				defer release(t, acquire(t, op, key))
			}
			var lost *fabric.LostError
			if err := l.Release(waitContext(t)); !errors.As(err, &lost) || !errors.Is(err, fabric.ErrRemoved) {
				t.Errorf("taken by another one: %v; release: %v", taken, err)
			}
		}
	})
}

// Holders that are told to let go all at once, and whose managers close as soon as they know, as those of
// commands do: the releases are under way then, in each other's way, and none of their entries stays.
func TestTakenFromSeveralWhoClose(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		op := s.manager(t)
		for range 2 {
			key := s.key(t)
			var holders sync.WaitGroup
			var late atomic.Bool // Close has three seconds for its requests: what it can't release then stays, under a tombstone
			for range 4 {
				m := s.manager(t)
				l := acquire(t, m, key, shared)
				holders.Go(func() {
					<-l.Lost()
					began := time.Now()
					if err := m.Close(); err != nil {
						t.Error(err)
					}
					if time.Since(began) > 2*time.Second {
						late.Store(true)
					}
				})
			}
			if n, err := op.ForceRelease(waitContext(t), key); n != 4 || err != nil {
				t.Fatalf("ForceRelease: %d, %v", n, err)
			}
			holders.Wait()
			if !late.Load() {
				expectFree(t, op, key)
			}
			for _, h := range inspect(t, op, key).Holders {
				if h.Lease.State != "dead" {
					t.Errorf("left: %+v", h)
				}
			}
		}
	})
}
