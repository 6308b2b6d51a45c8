package fabric_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// C22: the buckets are deleted and made anew under an owner: its term ends, and the next one serves the new ones.
func TestC22BucketsReplacedUnderTheOwner(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		ttl := fabric.WithTTL(time.Second)
		owner := o.manager(t, fabric.WithCoalescer(), ttl)
		m := o.manager(t, fabric.WithRoad(fabric.RoadCoalesced), ttl)
		served := func() bool {
			o.hello(t)
			st := m.Stats()
			return st.CoalescerTerm > 0 && st.CoalescerTerm == owner.Stats().Serving
		}
		eventually(t, "the owner is known", served)
		l := acquire(t, m, "k")
		term := m.Stats().CoalescerTerm
		js := s.jetStream(t)
		for _, bucket := range []string{"-locks", "-leases"} {
			if err := js.DeleteStream(waitContext(t), "KV_"+o.name+bucket); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the loss", func() bool { return l.Err() != nil })
		next := acquire(t, m, "k")
		release(t, acquire(t, owner, "own")) // a manager opens new buckets when it is used
		eventually(t, "another term", func() bool { return served() && m.Stats().CoalescerTerm != term })
		_ = next.Release(waitContext(t)) // it may be lost by now
		eventually(t, "the new owner is used", func() bool {
			before := m.Stats().Coalesced
			_ = acquire(t, m, "k").Release(waitContext(t))
			return m.Stats().Coalesced > before
		})
	})
}

// A link that slows from nothing to 200 ms under load costs time, and no lock.
func TestRoads_SlowingLink(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer())
		o.owned(t, record.Entry{})
		proxy := faultproxy.New(t, s.server.ClientURL())
		ctx, stop := context.WithCancel(waitContext(t))
		var wg sync.WaitGroup
		for i, road := range []fabric.Road{fabric.RoadAutomatic, fabric.RoadCoalesced, fabric.RoadBoth, fabric.RoadDirect} {
			url := proxy.URL()
			if i%2 == 1 {
				url = s.server.ClientURL()
			}
			nc, err := nats.Connect(url, nats.ReconnectBufSize(-1))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			m := newManager(t, nc, fabric.WithFabric(o.name), fabric.WithRoad(road), fabric.WithTTL(6*time.Second))
			wg.Go(func() {
				for ctx.Err() == nil {
					l, err := m.Acquire(ctx, "k")
					if ctx.Err() != nil && errors.Is(err, context.Canceled) {
						return
					}
					if err != nil {
						t.Errorf("%s: %v", road, err)
						return
					}
					if err := l.Release(waitContext(t)); err != nil {
						t.Errorf("%s: %v", road, err)
					}
				}
			})
		}
		for d := time.Millisecond; d <= 200*time.Millisecond; d *= 2 {
			proxy.SetDelay(d/2, d/10)
			time.Sleep(200 * time.Millisecond)
		}
		stop()
		wg.Wait()
	})
}
