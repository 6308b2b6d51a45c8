package fabric_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// behindProxy returns a manager behind a proxy, and a match of what it writes of leases.
func behindProxy(t *testing.T, s *site) (m *fabric.Manager, p *faultproxy.Proxy, leases faultproxy.Match) {
	t.Helper()
	p = faultproxy.New(t, s.server.ClientURL())
	nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return newManager(t, nc), p, faultproxy.Subject("$KV." + fabric.DefaultFabric + "-leases.>")
}

// A hold without renewal has its whole TTL from the grant on, also if its lease, which
// was made for it, was acknowledged late.
func TestLimitsBeginWithTheGrantOfALateLease(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const ttl, late = 10 * time.Second, 1200 * time.Millisecond // too early for the first renewal
		m, p, leases := behindProxy(t, s)
		rule := p.HoldRequests(faultproxy.Times(1, leases))
		next := acquireAsync(waitContext(t), m, s.key(t), fabric.WithTTL(ttl), fabric.WithAutoRenew(false))
		if err := rule.Wait(waitContext(t), 1); err != nil {
			t.Fatal(err)
		}
		held := time.NewTimer(late)
		<-held.C
		before := time.Now()
		if err := rule.Release(); err != nil {
			t.Fatal(err)
		}
		l := granted(t, next)
		if until := l.ValidUntil(); until.Before(before.Add(ttl * 9 / 10)) {
			t.Errorf("valid for %v of %v", until.Sub(before), ttl)
		}
		release(t, l)
	})
}

// Who fails fast does not wait for the renewal either with which a hold begins that
// stood in the queue.
func TestFailFastWhenALimitedHoldBegins(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const ttl = 40 * time.Second
		m, p, leases := behindProxy(t, s)
		other, key := s.manager(t), s.key(t)
		holder := acquire(t, other, key)
		next := queue(t, waitContext(t), m, key, fabric.WithTTL(ttl), fabric.WithAutoRenew(false), fabric.WithFailFast())
		queued := time.NewTimer(ttl/20 + ttl/100)
		<-queued.C
		rule := p.DropRequests(leases)
		release(t, holder)
		start := time.Now()
		if err := receive(t, next).err; !errors.Is(err, fabric.ErrUnavailable) {
			t.Error(err)
		}
		if took := time.Since(start); took > ttl/2 {
			t.Errorf("failed after %v", took)
		}
		rule.Remove()
		release(t, acquire(t, other, key)) // nothing is left behind
	})
}
