package fabric_test

import (
	"errors"
	"testing"

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
