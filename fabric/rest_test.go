package fabric_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// TestHeldLocksCostNothingAtRest counts what a process sends that only holds locks: its one lease is renewed, no record
// is read or written, and no coalescer is used. The figures of a minute are asserted on a clock of its own by
// jskv.TestFollowedKeysCostNothingAtRest.
func TestHeldLocksCostNothingAtRest(t *testing.T) {
	t.Parallel()
	for _, n := range []int{300, 2000} {
		onSite(t, singleSite, func(t *testing.T, s *site) {
			nc := s.conn(t)
			name := s.fabric(t)
			m := newManager(t, nc, fabric.WithFabric(name), fabric.WithTTL(3*time.Second))
			next := make(chan int)
			var acquiring sync.WaitGroup
			for range 16 {
				acquiring.Go(func() {
					for i := range next {
						if _, err := m.Acquire(waitContext(t), fmt.Sprintf("rest/%d", i)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for i := range n {
				next <- i
			}
			close(next)
			acquiring.Wait()
			type counts struct {
				sent           uint64
				renewed, wrote uint64 // revisions of the streams
				reads, term    uint64
			}
			count := func() (c counts) {
				for bucket, last := range map[string]*uint64{kv.LeasesBucket(name): &c.renewed, kv.LocksBucket(name): &c.wrote} {
					stream, err := s.jetStream(t).Stream(waitContext(t), "KV_"+bucket)
					if err != nil {
						t.Fatal(err)
					}
					*last = stream.CachedInfo().State.LastSeq
				}
				st := m.Stats()
				c.sent, c.reads, c.term = nc.Stats().OutMsgs, st.Reads, st.CoalescerTerm
				return c
			}
			// Until the holds are watched, nothing is told of them.
			var before, after counts
			// A third of the TTL is a second. One renewal may begin early, and one late.
			atRest := func() bool {
				return after.sent-before.sent <= 10 && after.renewed-before.renewed <= 4 && after.renewed > before.renewed &&
					after.wrote == before.wrote && after.reads == before.reads && after.term == 0
			}
			for try := 0; try < 10 && !atRest(); try++ {
				before = count()
				time.Sleep(2 * time.Second)
				after = count()
			}
			if !atRest() {
				t.Errorf("%d locks held: %+v, and two seconds later %+v", n, before, after)
			}
		})
	}
}
