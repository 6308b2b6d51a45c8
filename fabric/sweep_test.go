package fabric_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// cutOff returns a manager of its own fabric that holds n locks under a prefix, and what
// cuts it off for good.
func cutOff(t *testing.T, s *site, name, prefix string, n int) (cut func()) {
	t.Helper()
	p := faultproxy.New(t, s.server.ClientURL())
	nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	m := newManager(t, nc, fabric.WithFabric(name), fabric.WithTTL(4*time.Second), fabric.WithSweepInterval(0))
	for i := range n {
		acquire(t, m, fmt.Sprintf("%s%d", prefix, i))
	}
	return p.Cut
}

// Locks of a process that is gone are freed without anybody who wants them, and until
// then they are shown as what they are.
func TestDeadEntriesAreCollected(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const n = 50
		name := s.fabric(t)
		m := s.manager(t, fabric.WithFabric(name))
		mine := acquire(t, m, "dead/mine")
		cut := cutOff(t, s, name, "dead/", n)
		got, err := m.Collect(waitContext(t), "")
		if err != nil || got != (fabric.Collected{Locks: n + 1, Leases: 1}) {
			t.Errorf("while all live: %+v, %v", got, err)
		}
		cut()
		lease := ""
		eventually(t, "a lease that looks dead", func() bool {
			info, err := m.Inspect(waitContext(t), "dead/7")
			if len(info.Holders) == 1 {
				lease = info.Holders[0].Lease.ID
			}
			return err == nil && len(info.Holders) == 1 && info.Holders[0].Lease.State == "stale" && !info.Holders[0].Lease.Renewed.IsZero()
		})
		want := fabric.Collected{Locks: n + 1, Leases: 1, Dead: 1, Freed: n, Entries: n}
		eventually(t, "a dry run that finds them", func() bool {
			got, err = m.Collect(waitContext(t), "dead/", fabric.DryRun())
			return err == nil && got == want
		})
		// dead/1, and dead/10 to dead/19.
		few := fabric.Collected{Locks: 11, Leases: 1, Dead: 1, Freed: 11, Entries: 11}
		if got, err = m.Collect(waitContext(t), "dead/1", fabric.DryRun()); err != nil || got != few {
			t.Errorf("with a prefix that ends within a level %+v, %v", got, err)
		}
		if list, err := m.List(waitContext(t), ""); err != nil || len(list) != n+1 {
			t.Errorf("after a dry run %d locks, %v", len(list), err)
		}
		if got, err = m.Collect(waitContext(t), "dead/"); err != nil || got != want {
			t.Errorf("got %+v, %v", got, err)
		}
		if e, err := s.bucket(t, name+"-leases").Get(waitContext(t), lease); err != nil || !strings.Contains(string(e.Value()), `"state":"dead"`) {
			t.Errorf("entries were removed before the tombstone of their lease: %v, %v", e, err)
		}
		list, err := m.List(waitContext(t), "")
		if err != nil || len(list) != 1 || list[0].Key != "dead/mine" {
			t.Errorf("left are %v, %v", list, err)
		}
		if err := mine.Err(); err != nil {
			t.Error(err)
		}
	})
}

// Somebody sweeps in each interval, and only one does.
func TestSweepsInTheBackground(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		name := s.fabric(t)
		var managers []*fabric.Manager
		for range 3 {
			managers = append(managers, s.manager(t, fabric.WithFabric(name), fabric.WithSweepInterval(time.Second)))
		}
		cutOff(t, s, name, "bg/", 5)()
		eventually(t, "an empty fabric", func() bool {
			list, err := managers[0].List(waitContext(t), "")
			return err == nil && len(list) == 0
		})
	})
}

var sweepBarriers = flag.Int("sweep.barriers", 40, "how many barriers TestP15_WhatIsKeptIsSwept uses")

// P15: a barrier that nobody has used for an hour goes, by the server's clock, and so does a result after its retention; a
// barrier where somebody waits stays, and a result without a retention.
func TestP15_WhatIsKeptIsSwept(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithFabric(s.fabric(t)))
		arrive := func(ctx context.Context, key string, parties int) error {
			_, _, err := m.Await(ctx, key, fabric.Claim{Kind: fabric.KindBarrier, Verb: "arrive", Limit: parties})
			return err
		}
		var all sync.WaitGroup
		for from := range 20 {
			all.Go(func() {
				for i := from; i < *sweepBarriers; i += 20 {
					if err := arrive(waitContext(t), fmt.Sprintf("used/%d", i), 1); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		result := func(key string, seconds int) {
			h, err := m.Claim(waitContext(t), key, fabric.Claim{Kind: fabric.KindOnce})
			if err == nil {
				_, err = h.Post(waitContext(t), fabric.Post{Kind: fabric.KindOnce, Verb: "finish", N: seconds, Ends: true})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		result("day", 24*60*60)
		result("ever", 0)
		ctx, cancel := context.WithCancel(waitContext(t))
		waits := make(chan error, 1)
		go func() { waits <- arrive(ctx, "waiting", 2) }()
		eventually(t, "one who waits", func() bool {
			info, err := m.Read(waitContext(t), "waiting")
			return err == nil && info.Arrived == 1
		})
		for _, c := range []struct {
			later time.Duration
			swept int
		}{{50 * time.Minute, 0}, {time.Hour, *sweepBarriers}, {time.Hour, 0}, {23 * time.Hour, 0}, {24 * time.Hour, 1}, {1 << 62, 0}} {
			if got, err := fabric.SweepAsIf(waitContext(t), m, c.later); err != nil || got.Swept != c.swept {
				t.Errorf("%v later: %+v, %v, want %d swept", c.later, got, err, c.swept)
			}
		}
		if list, err := m.List(waitContext(t), ""); err != nil || len(list) != 2 || list[0].Key != "waiting" && list[0].Key != "ever" {
			t.Errorf("left are %v, %v", list, err)
		}
		cancel()
		<-waits
	})
}
