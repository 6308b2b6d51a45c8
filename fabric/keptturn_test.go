package fabric_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// K9: what holds by a turn stands among those who wait in the record, and is not kept: its release is real.
func TestK9_WhoHoldsByATurnKeepsNothing(t *testing.T) {
	onSite(t, coalescedSite, func(t *testing.T, s *site) {
		key := s.key(t)
		var managers [2]*fabric.Manager
		for i := range managers {
			managers[i] = s.manager(t, fabric.WithKeep(time.Minute))
		}
		turns := func() uint64 { return managers[0].Stats().Turns + managers[1].Stats().Turns }
		var holders atomic.Int32
		var all sync.WaitGroup
		began := time.Now()
		for _, m := range managers {
			for range 4 {
				all.Go(func() {
					for n := 0; (n < 50 || turns() < 10) && time.Since(began) < patience; n++ {
						l := acquire(t, m, key)
						if holders.Add(1) != 1 {
							t.Error("two hold")
						}
						holders.Add(-1)
						release(t, l)
					}
				})
			}
		}
		all.Wait()
		if turns() < 10 {
			t.Errorf("%d turns", turns())
		}
		for _, m := range managers {
			if n := m.Stats().KeptJoins; n > 0 {
				t.Errorf("%d joins", n)
			}
		}
		if len(inspect(t, managers[0], key).Holders) > 0 {
			t.Error("it is kept")
		}
	})
}
