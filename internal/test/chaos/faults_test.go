package chaos_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// share matches one in n requests to the buckets: writes and leader reads.
func share(n int) faultproxy.Match {
	return func(subject string, _, _ []byte) bool {
		return (strings.HasPrefix(subject, "$KV.") || strings.HasPrefix(subject, "$JS.API.STREAM.MSG.GET.")) && rand.IntN(n) == 0
	}
}

// Requests and answers get lost, arrive twice, or arrive long after their sender has
// given up, and connections break. The outcome of any write may be unknown.
// Still no lock is granted twice and no entry is left behind.
func TestSoakMessagesLost(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	proxy := faultproxy.New(t, srv.ClientURL())
	managers := newManagers(t, 8, func(int) string { return proxy.URL() }, connOptions())
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 64, Keys: 32, Tolerance: chaos.Tolerance{Unconfirmed: true}})
	rules := []*faultproxy.Rule{
		proxy.DropRepliesTo(share(100)), proxy.DropRequests(share(200)), proxy.DuplicateRequests(share(100)),
		proxy.DuplicateReplies(share(100)),
	}
	names := []string{"answers lost", "requests lost", "requests twice", "answers twice"}
	late := 0
	none := func() bool {
		return slices.ContainsFunc(rules, func(r *faultproxy.Rule) bool { return r.Count() == 0 })
	}
	ctx := testContext(t)
	for deadline := time.Now().Add(lasts(2500 * time.Millisecond)); time.Now().Before(deadline) || none() && ctx.Err() == nil; {
		// This is longer than an attempt waits: the write arrives long after it was
		// given up, and maybe repeated.
		held := proxy.HoldRequests(share(200))
		s.work(2500 * time.Millisecond)
		proxy.Cut()
		proxy.Heal()
		late += held.Count()
		if err := held.Release(); err != nil {
			t.Error(err)
		}
	}
	for i, r := range rules {
		r.Remove()
		t.Logf("%s: %d", names[i], r.Count())
		if r.Count() == 0 {
			t.Errorf("%s: none", names[i])
		}
	}
	t.Logf("requests late: %d", late)
	s.finish()
}

// Clients with short leases are stalled again and again: nothing moves for a
// while, and then all delayed messages arrive. Other clients take over lost locks
// at the earliest moment at which that is safe. So the test catches a holder
// that believes for too long that it has its lock.
func TestSoakClientsStall(t *testing.T) {
	clientsStall(t, 6, &chaos.Workload{Workers: 24, Keys: 12}, func(fabric.Stats) bool { return true })
}

// The same with kept locks: a client usually uses a key several times before another client does.
func TestSoakKept(t *testing.T) {
	clientsStall(t, 2, &chaos.Workload{Workers: 6, Keys: 12, LongOneIn: 32}, func(st fabric.Stats) bool { return st.KeptJoins > 0 },
		fabric.WithKeep(200*time.Millisecond))
}

// clientsStall lasts until holds were lost and a manager has shown what it is about.
func clientsStall(t *testing.T, n int, w *chaos.Workload, shown func(fabric.Stats) bool, opts ...fabric.Option) {
	t.Helper()
	t.Parallel()
	const ttl = 800 * time.Millisecond
	srv := startServer(t)
	proxies := make([]*faultproxy.Proxy, n)
	for i := range proxies {
		proxies[i] = faultproxy.New(t, srv.ClientURL())
	}
	managers := newManagers(t, len(proxies), func(i int) string { return proxies[i].URL() }, connOptions(), append(opts, fabric.WithTTL(ttl))...)
	w.Managers, w.LongHold, w.LongOneIn = managers, 3*ttl, max(w.LongOneIn, 1)
	w.Tolerance = chaos.Tolerance{Lost: []error{fabric.ErrExpired, fabric.ErrTakenOver}, Unconfirmed: true}
	s := begin(t, w)
	var wg sync.WaitGroup
	deadline := time.Now().Add(lasts(2500 * time.Millisecond))
	for _, p := range proxies[:n/2] {
		p.SetDelay(15*time.Millisecond, 15*time.Millisecond)
		wg.Go(func() {
			for time.Now().Before(deadline) {
				p.Stall(true)
				s.work(ttl/10 + rand.N(3*ttl/2))
				p.Stall(false)
				s.work(ttl/50 + rand.N(ttl))
			}
		})
	}
	wg.Wait()
	for s.w.Progress().Lost == 0 { // otherwise the scenario would show nothing
		proxies[0].Stall(true)
		s.work(2 * ttl)
		proxies[0].Stall(false)
		s.work(2 * ttl)
	}
	for ctx := testContext(t); !slices.ContainsFunc(managers, func(m *fabric.Manager) bool { return shown(m.Stats()) }); s.work(ttl) {
		if ctx.Err() != nil {
			t.Fatal("the scenario showed nothing")
		}
	}
	for _, p := range proxies {
		p.SetDelay(0, 0)
	}
	s.finish()
}

// An operator removes locks. Their holders know before another client gets the
// lock, as for every other loss.
func TestSoakForceRelease(t *testing.T) {
	t.Parallel()
	s, forced := forceRelease(t, &chaos.Workload{Tolerance: chaos.Tolerance{Lost: []error{fabric.ErrRevoked}}})
	r := s.finish()
	if forced == 0 || r.Lost == 0 {
		t.Errorf("%d holds taken away, %d lost", forced, r.Lost)
	}
}

// With ForceNow two clients can hold at once, until the old holder knows.
// Only the order of the tokens is still guaranteed.
func TestSoakForceReleaseNow(t *testing.T) {
	t.Parallel()
	w := &chaos.Workload{Tolerance: chaos.Tolerance{Lost: []error{fabric.ErrRevoked, fabric.ErrRemoved}}}
	w.Oracle.TokensOnly = true
	s, forced := forceRelease(t, w, fabric.ForceNow())
	r := s.finish()
	if forced == 0 || r.Lost == 0 {
		t.Errorf("%d holds taken away, %d lost", forced, r.Lost)
	}
}

// forceRelease runs a load with an operator.
func forceRelease(t *testing.T, w *chaos.Workload, opts ...fabric.ForceOption) (_ *scenario, forced int) {
	t.Helper()
	srv := startServer(t)
	w.Managers = newManagers(t, 4, func(int) string { return srv.ClientURL() }, connOptions())
	w.Workers, w.Keys = 16, 4
	// Only long holds are told.
	w.LongHold, w.LongOneIn = 2*time.Second, 10
	s := begin(t, w)
	operator := newManagers(t, 1, func(int) string { return srv.ClientURL() }, connOptions())[0]
	ctx := testContext(t)
	for end := time.Now().Add(lasts(1500 * time.Millisecond)); time.Now().Before(end) || w.Progress().Lost == 0 && ctx.Err() == nil; {
		name := w.Names()[rand.IntN(w.Keys)]
		n, err := operator.ForceRelease(ctx, name, opts...)
		if err != nil {
			t.Error(err)
		}
		forced += n
	}
	t.Logf("%d holds taken away", forced)
	return s, forced
}
