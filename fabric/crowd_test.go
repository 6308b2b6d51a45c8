package fabric_test

import (
	"flag"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// crowdSize is the number of managers of TestCrowd, and of the goroutines of each.
var crowdSize = flag.Int("crowd", 20, "number of managers in TestCrowd, and of the goroutines of each")

// A long queue of many processes over a coalescer: all are served, one at a time, each process gets its share, and the record's size
// follows the number of processes. The long form has 10,000 acquires: -crowd 100.
func TestCrowd(t *testing.T) {
	onSite(t, coalescedSite, func(t *testing.T, s *site) {
		for _, n := range []int{4, *crowdSize} {
			t.Run(fmt.Sprint(n, " processes"), func(t *testing.T) { testCrowd(t, s, n) })
		}
	})
}

func testCrowd(t *testing.T, s *site, n int) {
	const window = 16
	key, watcher := s.key(t), s.manager(t)
	managers := make([]*fabric.Manager, n)
	for i := range managers {
		managers[i] = s.manager(t)
	}
	first := acquire(t, watcher, key)
	var wg sync.WaitGroup
	var total atomic.Int64
	served := make([]atomic.Int64, n)
	token, spread := first.Token(), int64(0) // guarded by the lock under test
	for i, m := range managers {
		for range n {
			wg.Go(func() {
				l, err := m.Acquire(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				if l.Token() <= token {
					t.Errorf("token %d after %d", l.Token(), token)
				}
				token = l.Token()
				total.Add(1)
				mine := served[i].Add(1)
				for j := range served {
					if mine < int64(n) {
						spread = max(spread, mine-served[j].Load())
					}
				}
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	full := n * min(n, window)
	eventually(t, "the windows are nearly full", func() bool { return len(inspect(t, watcher, key).Waiters) >= full*15/16 })
	began := time.Now()
	release(t, first)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	last, since, most := int64(0), time.Now(), 0
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-look.C:
			info := inspect(t, watcher, key)
			most = max(most, len(info.Waiters))
			of := map[string]int{}
			for _, w := range info.Waiters {
				process, _, _ := strings.Cut(w.ID, "-")
				if of[process]++; of[process] > 2*window {
					t.Errorf("%d entries of one process", of[process])
				}
			}
			if now := total.Load(); now != last {
				last, since = now, time.Now()
			} else if time.Since(since) > patience {
				t.Fatalf("nobody is served any more after %d: %+v", now, s.owner.Stats())
			}
		}
	}
	took := time.Since(began)
	if total.Load() != int64(n*n) || spread > 4*window {
		t.Errorf("%d of %d served, and one process %d times more often than another", total.Load(), n*n, spread)
	}
	var turns, fallbacks uint64
	for _, m := range managers {
		st := m.Stats()
		turns, fallbacks = turns+st.Turns, fallbacks+st.Fallbacks
	}
	t.Logf("%d acquires in %v, %v each; at most %d waiters, %d turns, %d fallbacks, spread %d",
		n*n, took.Round(time.Millisecond), (took / time.Duration(n*n)).Round(time.Microsecond), most, turns, fallbacks, spread)
}
