package fabric_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// behind returns a manager of the fabric behind a proxy.
func (o *office) behind(t *testing.T, opts ...fabric.Option) (*fabric.Manager, *faultproxy.Proxy) {
	t.Helper()
	proxy := faultproxy.New(t, o.s.server.ClientURL())
	nc, err := nats.Connect(proxy.URL(), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return newManager(t, nc, append(opts, fabric.WithFabric(o.name))...), proxy
}

// turnUsers returns two managers that use a coalescer, and the proxies of that and of them.
func (o *office) turnUsers(t *testing.T) (a, b *fabric.Manager, proxies [3]*faultproxy.Proxy) {
	t.Helper()
	_, proxies[0] = o.behind(t, fabric.WithCoalescer())
	a, proxies[1] = o.behind(t, fabric.WithRoad(fabric.RoadCoalesced), soon())
	b, proxies[2] = o.behind(t, fabric.WithRoad(fabric.RoadCoalesced), soon())
	for _, m := range []*fabric.Manager{a, b} {
		release(t, acquire(t, m, "first"))
		eventually(t, "a coalescer is known", func() bool { return m.Stats().CoalescerTerm > 0 })
	}
	return a, b, proxies
}

// H12: an operator reaches who holds by a turn, whom the record shows as waiting still.
func TestH12_ForceReleaseReachesWhoHoldsByATurn(t *testing.T) {
	for what, named := range map[string]bool{"whoever holds": false, "by id": true} {
		onSite(t, singleSite, func(t *testing.T, s *site) {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				o, operator := s.inOffice(t)
				a, b, proxies := o.turnUsers(t)
				var l *fabric.Lock
				var rule *faultproxy.Rule
				eventually(t, "a turn", func() bool { // there is none where the coalescer is taken to be lost
					first := acquire(t, a, "k")
					waits := queue(t, waitContext(t), b, "k")
					turns := b.Stats().Turns
					rule = proxies[0].HoldRequests(o.records())
					release(t, first)
					l = granted(t, waits)
					if h := inspect(t, operator, "k").Holders; b.Stats().Turns > turns && len(h) == 1 && h[0].ID == first.ID() {
						return true
					}
					rule.Remove()
					release(t, l)
					return false
				})
				var opts []fabric.ForceOption
				if named {
					opts = append(opts, fabric.ForceHolder(l.ID()))
				}
				if n, err := operator.ForceRelease(waitContext(t), "k", opts...); n != 1 || err != nil {
					t.Errorf("revoked: %d, %v", n, err)
				}
				receive(t, l.Lost())
				if !errors.Is(l.Err(), fabric.ErrRevoked) {
					t.Errorf("lost: %v", l.Err())
				}
				rule.Remove()
				release(t, acquire(t, operator, "k"))
			})
		})
	}
}

// H18: what has been released, and the record still shows, is no edge of a deadlock, though somebody waits behind it
// for what its unit waits for.
func TestH18_AnEndedEntryIsNoEdge(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, look := s.inOffice(t)
		a, b, proxies := o.turnUsers(t)
		ua, ub := fabric.WithUnit(waitContext(t)), fabric.WithUnit(waitContext(t))
		hold := func(m *fabric.Manager, unit context.Context, key string) *fabric.Lock {
			return granted(t, acquireAsync(unit, m, key))
		}
		first, second, third := hold(a, ua, "k1"), hold(b, ub, "k2"), hold(a, ua, "k3")
		wantsFirst := queue(t, ub, b, "k1")
		rules := []*faultproxy.Rule{proxies[2].DropReplies(faultproxy.Subject("lf.*.n.*.r"))} // and so the turn
		for _, p := range proxies {
			rules = append(rules, p.HoldRequests(faultproxy.Subject("$KV."+o.name+"-locks.k1")))
		}
		release(t, first)
		wantsSecond := queue(t, ua, a, "k2")
		eventually(t, "both are looked at", func() bool { return a.Stats().DeadlockProbes > 1 && b.Stats().DeadlockProbes > 1 })
		if info := inspect(t, look, "k1"); info.Holders[0].ID != first.ID() || len(wantsFirst)+len(wantsSecond) > 0 {
			t.Errorf("this shows nothing: %+v", info)
		}
		for _, r := range rules {
			r.Remove()
		}
		release(t, granted(t, wantsFirst))
		release(t, second)
		release(t, granted(t, wantsSecond))
		release(t, third)
		if n := a.Stats().Deadlocks + b.Stats().Deadlocks; n > 0 {
			t.Errorf("%d victims", n)
		}
	})
}
