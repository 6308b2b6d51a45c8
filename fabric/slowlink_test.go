package fabric_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// C30: a link on which a round trip takes 200 ms instead of one, from one moment to the next and under load, loses no
// lock: neither held ones nor those that go from one to the next, directly and over a coalescer, which is behind
// such a link too. A busy machine can make round trips longer than a lease can bear: such a try is done again, with twice the times.
func TestC30_ALinkThatSlowsUnderLoad(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		for _, road := range []fabric.Road{fabric.RoadDirect, fabric.RoadCoalesced} {
			t.Run(fmt.Sprint(road), func(t *testing.T) {
				t.Parallel()
				slow := netLink{200 * time.Millisecond, 1500 * time.Millisecond}
				for try := 1; !slowsUnderLoad(t, s, road, slow); try++ {
					if try == 5 {
						t.Fatalf("the machine is too busy, in each of %d tries", try)
					}
					slow = netLink{2 * slow.rtt, 2 * slow.ttl}
				}
			})
		}
	})
}

// slowsUnderLoad reports whether the machine let it show anything.
func slowsUnderLoad(t *testing.T, s *site, road fabric.Road, slow netLink) bool {
	fast := netLink{rtt: time.Millisecond}
	o, _ := s.inOffice(t)
	var links []*faultproxy.Proxy
	var managers []*fabric.Manager
	var measured []*trips
	join := func(opts ...fabric.Option) *fabric.Manager {
		p := faultproxy.New(t, s.server.ClientURL())
		fast.on(p)
		nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		tr := &trips{nc: nc}
		m := newManager(t, nc, append(opts, fabric.WithFabric(o.name), fabric.WithRoad(road), fabric.WithTTL(slow.ttl), fabric.WithRequester(tr.trip))...)
		managers, links, measured = append(managers, m), append(links, p), append(measured, tr)
		return m
	}
	if road == fabric.RoadCoalesced {
		join(fabric.WithCoalescer())
	}
	var held []*fabric.Lock
	for i := range 3 {
		m := join()
		held = append(held, acquire(t, m, fmt.Sprint("own-", i)))
	}
	if road == fabric.RoadCoalesced {
		eventually(t, "a coalescer is known", func() bool { return managers[3].Stats().CoalescerTerm > 0 })
	}
	probe, err := nats.Connect(links[0].URL(), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	var rounds, lost atomic.Int64
	ctx, cancel := context.WithCancel(waitContext(t))
	defer cancel()
	ended := make(chan struct{})
	users := managers[len(managers)-3:]
	for _, m := range users {
		go func() {
			defer func() { ended <- struct{}{} }()
			for ctx.Err() == nil {
				l, err := m.Acquire(ctx, "shared")
				if ctx.Err() != nil && err != nil {
					return
				}
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				if err := l.Release(ctx); err != nil {
					t.Logf("release: %v", err)
					lost.Add(1)
				}
				rounds.Add(1)
			}
		}()
	}
	reach := func(n int64) {
		eventually(t, "locks change hands", func() bool { return rounds.Load() >= n })
	}
	reach(30)
	before := rounds.Load()
	for i, p := range links {
		measured[i].longest.Store(0)
		slow.on(p)
	}
	watching, over := context.WithCancel(waitContext(t))
	defer over()
	stalls := &trips{} // by which timers were late, to the end
	var watch sync.WaitGroup
	watch.Go(func() {
		for pause := slow.ttl / 100; watching.Err() == nil; {
			began := time.Now()
			time.Sleep(pause)
			stalls.note(time.Since(began) - pause)
		}
	})
	longest := (&trips{nc: probe}).whileHeld(t, held[0], slow.ttl*3/2, slow.ttl/20)
	reach(before + 3)
	cancel()
	for range users {
		<-ended
	}
	for _, l := range held {
		if err := l.Err(); err != nil {
			t.Logf("a hold: %v", err)
			lost.Add(1)
			continue
		}
		release(t, l)
	}
	over()
	watch.Wait()
	for _, tr := range append(measured, stalls) {
		longest = max(longest, time.Duration(tr.longest.Load()))
	}
	if lost.Load() > 0 && longest < slow.ttl/3 {
		t.Fatalf("%d locks were lost with round trips of at most %v", lost.Load(), longest)
	}
	t.Logf("%d rounds, %d lost, round trips of at most %v", rounds.Load(), lost.Load(), longest)
	return lost.Load() == 0
}
