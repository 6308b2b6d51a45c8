package primitives_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
)

// P17: one write wakes all who wait at a barrier, a latch or a double barrier; they write nothing themselves.
func TestP17_TheWokenWriteNothing(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		const n = 20
		waiting, last := []*fabric.Manager{s.manager(t), s.manager(t)}, s.manager(t)
		for name, c := range map[string]struct {
			wait, wake func(m *fabric.Manager, key string) error
		}{
			"latch": {
				func(m *fabric.Manager, key string) error { return primitives.NewLatch(m, key, 1).Wait(waitContext(t)) },
				func(m *fabric.Manager, key string) error {
					return primitives.NewLatch(m, key, 1).CountDown(waitContext(t))
				},
			},
			"barrier":        {meetAt(t, n+1), meetAt(t, n+1)},
			"double barrier": {enterAt(t, n+1), enterAt(t, n+1)},
		} {
			key := s.key(t)
			var waits []<-chan result[bool]
			for i := range n {
				waits = append(waits, async(func() (bool, error) { return true, c.wait(waiting[i%2], key) }))
			}
			waitInfo(t, last, key, "all wait", func(i fabric.Info) bool { return len(i.Waiters)+len(i.Holders) == n })
			release(t, lock(t, primitives.NewMutex(last, s.key(t)))) // makes the lease
			if got := writes(func() {
				if err := c.wake(last, key); err != nil {
					t.Error(err)
				}
				for _, w := range waits {
					must(t, w)
				}
			}, append(waiting, last)...); got.not(1) {
				t.Errorf("%s: %d writes woke %d", name, got.done, n)
			}
		}
	})
}

func meetAt(t *testing.T, n int) func(m *fabric.Manager, key string) error {
	return func(m *fabric.Manager, key string) error {
		_, err := primitives.NewBarrier(m, key, n).Wait(waitContext(t))
		return err
	}
}

func enterAt(t *testing.T, n int) func(m *fabric.Manager, key string) error {
	return func(m *fabric.Manager, key string) error {
		_, err := primitives.NewDoubleBarrier(m, key, n).Enter(waitContext(t))
		return err
	}
}

var herd = flag.Int("herd", 20, "how many wait in each of the ten processes of TestP18")

// P18: of many who wait at a latch, in ten processes, nobody reads the record when it opens.
func TestP18_NoHerdReads(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		key, last := s.key(t), s.manager(t)
		reads := func(of []*fabric.Manager) (n uint64) {
			for _, m := range of {
				n += m.Stats().Reads
			}
			return n
		}
		var managers []*fabric.Manager
		var all sync.WaitGroup
		for range 10 {
			managers = append(managers, s.manager(t))
		}
		for i, m := range managers {
			for range *herd {
				all.Go(func() {
					if err := primitives.NewLatch(m, key, 1).Wait(waitContext(t)); err != nil {
						t.Error(err)
					}
				})
			}
			waitQueue(t, last, key, *herd*(i+1))
		}
		before := reads(managers)
		if err := primitives.NewLatch(last, key, 1).CountDown(waitContext(t)); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		// One look when it is told, and some that were due: the first comes after half a second of waiting, the next seconds later.
		if n := reads(managers) - before; n > 5*uint64(len(managers)) {
			t.Errorf("%d reads by %d processes", n, len(managers))
		}
	})
}

// P19: a leader that is stopped past its lease, and proclaims when it wakes, changes nothing.
func TestP19_ProclaimedAfterAStop(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		p := startProcess(t, s, "proclaimer", key)
		if said := p.next(); said != "leads" {
			t.Fatal(said)
		}
		e := primitives.NewElection(m, key)
		if !p.stop() {
			return // this system can't
		}
		next := campaign(t, e, "next") // when the stopped one's lease is over
		p.resume()
		if said := p.next(); said != "lost" {
			t.Errorf("the former leader: %s", said)
		}
		expectLeader(t, e, next.Term(), "next")
		release(t, next)
	})
}

// proclaimer leads, and proclaims until it is refused.
func proclaimer(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	l, err := primitives.NewElection(m, key).Campaign(ctx, nil)
	if err != nil {
		return err
	}
	say("leads")
	for n := 0; err == nil; n++ {
		err = l.Proclaim(ctx, fmt.Append(nil, n))
	}
	if errors.Is(err, fabric.ErrLost) {
		say("lost")
	} else {
		say("%v", err)
	}
	<-ctx.Done()
	return nil
}

// A condition's wait goes on through failures, also of a mutex that fails fast: it has to come back with the mutex.
func TestCondWaitOfOneWhoFailsFast(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		proxy, nc := s.behindProxy(t)
		p := newCondPair(t, s)
		mu := primitives.NewMutex(newManager(t, nc, fabric.WithFailFast()), p.key, fabric.WithFailFast())
		l := lock(t, mu)
		lost := proxy.DropRequests(faultproxy.Times(1, faultproxy.Subject("$KV."+fabric.DefaultFabric+"-locks.>")))
		wait := async(func() (*primitives.Lock, error) { return primitives.NewCond(mu, "full").Wait(waitContext(t), l) })
		if err := lost.Wait(waitContext(t), 1); err != nil {
			t.Fatal(err)
		}
		p.waiters("full", 1)
		l = lock(t, p.mus[0])
		p.signal(l)
		release(t, l)
		release(t, must(t, wait))
	})
}
