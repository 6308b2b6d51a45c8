package fabric_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/record"
)

// A manager that may use a coalescer keeps what is not contended. Others get it, also over the coalescer, and
// also where it is the coalescer that keeps it.
func TestKept_BesideACoalescer(t *testing.T) {
	for _, keepsAs := range []string{"client", "coalescer"} {
		t.Run(keepsAs, func(t *testing.T) {
			onSite(t, singleSite, func(t *testing.T, s *site) {
				t.Parallel()
				o, _ := s.inOffice(t)
				keeps := []fabric.Option{fabric.WithKeep(time.Minute), fabric.WithRoad(fabric.RoadAutomatic)}
				if keepsAs == "coalescer" {
					keeps = append(keeps, fabric.WithCoalescer())
				} else {
					o.manager(t, fabric.WithCoalescer())
				}
				m := o.manager(t, keeps...)
				o.owned(t, record.Entry{})
				key := s.keptAlready(t, m)
				before := m.Stats()
				for range 100 {
					release(t, acquire(t, m, key))
				}
				if after := m.Stats(); after.Writes > before.Writes+1 { // a lease's, or a coalescer's own
					t.Errorf("%d writes of 100 acquires", after.Writes-before.Writes)
				}

				var holders atomic.Int32
				var last atomic.Uint64
				use := func(m *fabric.Manager) {
					l := acquire(t, m, key)
					if holders.Add(1) != 1 {
						t.Error("two hold")
					}
					if was := last.Swap(l.Token()); l.Token() < was {
						t.Errorf("token %d after %d", l.Token(), was)
					}
					holders.Add(-1)
					release(t, l)
				}
				var all sync.WaitGroup
				for _, m := range []*fabric.Manager{m, m, o.manager(t, fabric.WithRoad(fabric.RoadCoalesced)), o.manager(t, fabric.WithRoad(fabric.RoadAutomatic)), o.manager(t, fabric.WithRoad(fabric.RoadDirect))} {
					all.Go(func() {
						for range 50 {
							use(m)
						}
					})
				}
				all.Wait()

				joins := m.Stats().KeptJoins
				eventually(t, "it is kept again", func() bool { use(m); return m.Stats().KeptJoins > joins })
			})
		})
	}
}
