package fabric_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// TestHeldLocksCostNothingAtRest counts what a process sends that only holds locks.
// The figures of a minute are asserted on a clock of its own by
// jskv.TestFollowedKeysCostNothingAtRest.
func TestHeldLocksCostNothingAtRest(t *testing.T) {
	t.Parallel()
	for _, n := range []int{300, 2000} {
		onSite(t, singleSite, func(t *testing.T, s *site) {
			nc := s.conn(t)
			m := newManager(t, nc, fabric.WithFabric(s.fabric(t)))
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
			// Until the holds are watched, nothing is told of them.
			quietAfter := func() int {
				before := nc.Stats().OutMsgs
				time.Sleep(2 * time.Second)
				return int(nc.Stats().OutMsgs - before)
			}
			sent := 0
			for range 10 {
				if sent = quietAfter(); sent <= 10 {
					return
				}
			}
			t.Errorf("%d locks held: %d messages sent in the last two seconds, without an end", n, sent)
		})
	}
}
