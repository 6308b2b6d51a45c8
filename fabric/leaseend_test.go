package fabric_test

import (
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// leaseEnd is one way for a holder's lease to end.
type leaseEnd struct {
	name   string
	timing []fabric.AcquireOption // of the holder
	own    time.Duration          // TTL of the holder's manager
	bring  func(t *testing.T, s *site, m *fabric.Manager, l *fabric.Lock)
	closes bool // the manager ends, too
}

// Whatever ends a lease, all who wait behind its entries are granted within its
// TTL + margin + 1 s, and what a busy machine adds: in the holder's manager or in another,
// whatever their timing.
func TestEveryEndOfALeaseLetsWaitersThrough(t *testing.T) {
	t.Parallel()
	const ttl, long = time.Second, 30 * time.Second
	purge := func(t *testing.T, s *site, _ *fabric.Manager, l *fabric.Lock) {
		if err := s.bucket(t, fabric.DefaultFabric+"-leases").Purge(waitContext(t), leaseOf(l.ID())); err != nil {
			t.Fatal(err)
		}
	}
	ends := []leaseEnd{
		{name: "not renewed", own: long, timing: []fabric.AcquireOption{fabric.WithTTL(ttl), fabric.WithAutoRenew(false)}},
		{name: "renewals used up", own: long, timing: []fabric.AcquireOption{
			fabric.WithTTL(ttl), fabric.WithRenewInterval(ttl / 4), fabric.WithMaxRenewals(1),
		}},
		{name: "retired", own: long, timing: []fabric.AcquireOption{fabric.WithTTL(ttl)}, bring: func(_ *testing.T, _ *site, _ *fabric.Manager, l *fabric.Lock) {
			fabric.DisposeLease(l)
		}},
		{name: "deleted", own: long, timing: []fabric.AcquireOption{fabric.WithTTL(ttl)}, bring: purge},
		{name: "the manager's own, deleted", own: ttl, bring: purge},
		{name: "the manager's own, closed", own: ttl, closes: true, bring: func(t *testing.T, _ *site, m *fabric.Manager, _ *fabric.Lock) {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}},
	}
	onSite(t, singleSite, func(t *testing.T, s *site) {
		other := s.manager(t)
		for _, end := range ends {
			t.Run(end.name, func(t *testing.T) {
				t.Parallel()
				m := s.manager(t, fabric.WithTTL(end.own))
				waiters := []*fabric.Manager{m, other}
				if end.closes {
					waiters = waiters[1:]
				}
				end.run(t, s, m, waiters, ttl+ttl/20+10*time.Second)
			})
		}
	})
}

func (end *leaseEnd) run(t *testing.T, s *site, holder *fabric.Manager, waiters []*fabric.Manager, limit time.Duration) {
	const patient = 20 * time.Second // outlasts the set-up of all pairs on a busy machine
	timings := [][]fabric.AcquireOption{
		nil, // the waiter's manager's own
		end.timing,
		{fabric.WithTTL(patient)},
		{fabric.WithTTL(patient), fabric.WithAutoRenew(false)},
		{fabric.WithTTL(patient), fabric.WithMaxRenewals(2)},
	}
	ctx := waitContext(t)
	type pair struct {
		held *fabric.Lock
		next <-chan grant
	}
	var pairs []pair
	for _, m := range waiters {
		for _, timing := range timings {
			key := s.key(t)
			held := acquire(t, holder, key, end.timing...)
			pairs = append(pairs, pair{held, acquireAsync(ctx, m, key, timing...)})
		}
	}
	if end.bring != nil {
		for _, p := range pairs {
			eventually(t, "a waiter", func() bool { return p.held.Err() != nil || len(inspect(t, holder, p.held.Key()).Waiters) == 1 })
		}
		end.bring(t, s, holder, pairs[0].held) // they are all under one lease
	}
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() {
			select {
			case <-p.held.Lost():
			case <-ctx.Done():
				t.Errorf("pair %d: never lost", i)
			}
			lost := time.Now()
			g := <-p.next
			took := time.Since(lost)
			switch {
			case g.err != nil:
				t.Errorf("pair %d: %v", i, g.err)
			case took > limit:
				t.Errorf("pair %d: granted %v after the loss, which is more than %v", i, took, limit)
			case g.lock.Token() <= p.held.Token():
				t.Errorf("pair %d: token %d after %d", i, g.lock.Token(), p.held.Token())
			}
		})
	}
	wg.Wait()
}
