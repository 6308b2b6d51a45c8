package fabric_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestLeases(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"at most 5 renewals, lost when they are used up", renewalsUsedUp},
		{"renewals by hand count too", renewalsByHand},
		{"no auto-renewal, lost at TTL", noAutoRenewal},
		{"no auto-renewal, renewed by hand, held", renewedByHand},
		{"time in the queue does not count", limitsBeginWithTheGrant},
		{"one heartbeat for all locks", oneHeartbeat},
		{"close releases everything at once", closeReleases},
		{"a crashed holder is replaced after its TTL", crashedHolder},
	})
}

// withTTL runs fn with a TTL, and again with twice as long a one where fn says that its lease ended too soon: a machine
// that stands still for a whole TTL loses it, and rightly so.
func withTTL(t *testing.T, ttl time.Duration, fn func(ttl time.Duration) (tooSoon bool)) {
	t.Helper()
	for range 4 {
		if !fn(ttl) {
			return
		}
		t.Logf("a lease of %v was lost", ttl)
		ttl *= 2
	}
	t.Error("no lease lasted")
}

// The 10 s, 3 s and 5 renewals of the specification, at a fifth of their length.
func renewalsUsedUp(t *testing.T, s *site) {
	withTTL(t, 2*time.Second, func(ttl time.Duration) bool { return useRenewalsUp(t, s, ttl) })
}

func useRenewalsUp(t *testing.T, s *site, ttl time.Duration) (tooSoon bool) {
	const renewals = 5
	every := ttl * 3 / 10
	key, m := s.key(t), s.manager(t)
	start := time.Now()
	l := acquire(t, m, key, fabric.WithTTL(ttl), fabric.WithRenewInterval(every), fabric.WithMaxRenewals(renewals))
	switch reason := waitLost(t, l); {
	case errors.Is(reason, fabric.ErrExpired):
		return true
	case !errors.Is(reason, fabric.ErrRenewalsUsedUp):
		t.Errorf("lost because of %v", reason)
	}
	// Intervals are shortened by half on a slow link, and by up to a tenth, the TTL by the margin.
	if took, least := time.Since(start), renewals*every/2*9/10+ttl*95/100; took < least {
		t.Errorf("lost after %v, with five renewals it has to last %v", took, least)
	}
	if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("release: %v", err)
	}
	release(t, acquire(t, m, key))
	return false
}

func renewalsByHand(t *testing.T, s *site) {
	withTTL(t, 2*time.Second, func(ttl time.Duration) bool { return renewByHand(t, s, ttl) })
}

func renewByHand(t *testing.T, s *site, ttl time.Duration) (tooSoon bool) {
	m := s.manager(t)
	l := acquire(t, m, s.key(t), fabric.WithTTL(ttl), fabric.WithRenewInterval(ttl*9/10), fabric.WithMaxRenewals(3))
	for i := range 3 {
		before := l.ValidUntil()
		switch err := l.Renew(waitContext(t)); {
		case errors.Is(err, fabric.ErrExpired):
			return true
		case err != nil:
			t.Fatalf("renewal %d: %v", i+1, err)
		}
		if after := l.ValidUntil(); !after.After(before) {
			t.Errorf("renewal %d moved the end from %v to %v", i+1, before, after)
		}
	}
	if err := l.Renew(waitContext(t)); !errors.Is(err, fabric.ErrRenewalsUsedUp) || errors.Is(err, fabric.ErrLost) {
		t.Errorf("the fourth renewal: %v", err)
	}
	if err := l.Err(); err != nil {
		t.Errorf("a hold whose renewals are used up ends before its time: %v", err)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrRenewalsUsedUp) {
		t.Errorf("lost because of %v", reason)
	}
	if err := l.Renew(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("renewal after the loss: %v", err)
	}
	return false
}

func noAutoRenewal(t *testing.T, s *site) {
	const ttl = time.Second
	key, m := s.key(t), s.manager(t)
	start := time.Now()
	l := acquire(t, m, key, fabric.WithTTL(ttl), fabric.WithAutoRenew(false))
	got := time.Now()
	if until := l.ValidUntil(); until.After(got.Add(ttl)) {
		t.Errorf("valid for %v with a TTL of %v", time.Until(until), ttl)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrExpired) {
		t.Errorf("lost because of %v", reason)
	}
	if took := time.Since(start); took < ttl*9/10 {
		t.Errorf("lost after %v of %v", took, ttl)
	}
	release(t, acquire(t, s.manager(t), key))
}

func renewedByHand(t *testing.T, s *site) {
	withTTL(t, 2*time.Second, func(ttl time.Duration) bool {
		l := acquire(t, s.manager(t), s.key(t), fabric.WithTTL(ttl), fabric.WithAutoRenew(false))
		for end := time.Now().Add(2 * ttl); time.Now().Before(end); time.Sleep(ttl / 5) {
			switch err := l.Renew(waitContext(t)); {
			case errors.Is(err, fabric.ErrExpired):
				return true
			case err != nil:
				t.Fatal(err)
			}
		}
		return l.Release(waitContext(t)) != nil
	})
}

func limitsBeginWithTheGrant(t *testing.T, s *site) {
	withTTL(t, 2*time.Second, func(ttl time.Duration) bool { return limitBegins(t, s, ttl) })
}

func limitBegins(t *testing.T, s *site, ttl time.Duration) (tooSoon bool) {
	key, m := s.key(t), s.manager(t)
	holder := acquire(t, s.manager(t), key)
	wait := queue(t, waitContext(t), m, key, fabric.WithTTL(ttl), fabric.WithAutoRenew(false))
	var entry string
	if q := inspect(t, m, key).Waiters; len(q) > 0 {
		entry = q[0].ID
	}
	stay := time.NewTimer(2 * ttl)
	<-stay.C
	before := time.Now()
	release(t, holder)
	l := granted(t, wait)
	if l.ID() != entry { // under another lease
		return true
	}
	if until := l.ValidUntil(); until.Before(before.Add(ttl * 9 / 10)) {
		t.Errorf("valid for %v of %v", time.Until(until), ttl)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrExpired) {
		t.Errorf("lost because of %v", reason)
	}
	return false
}

func oneHeartbeat(t *testing.T, s *site) {
	n := 10_000
	if s == clusterSite {
		n = 500 // the number makes no difference to the cluster, only to the time it takes
	}
	name, base := s.fabric(t), s.key(t)
	// A TTL that a busy machine can't use up while ten thousand locks are taken.
	const every = time.Second
	m := s.manager(t, fabric.WithFabric(name), fabric.WithTTL(30*time.Second), fabric.WithRenewInterval(every))
	locks := make([]*fabric.Lock, n)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < n; i += 64 {
				l, err := m.Acquire(waitContext(t), fmt.Sprintf("%s/%d", base, i))
				if err != nil {
					t.Errorf("lock %d: %v", i, err)
					return
				}
				locks[i] = l
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	cons, err := s.jetStream(t).OrderedConsumer(waitContext(t), "KV_"+name+"-leases", jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err != nil {
		t.Fatal(err)
	}
	var first, last time.Time
	const heartbeats = 4
	for i := range heartbeats {
		msg, err := cons.Next(jetstream.FetchMaxWait(patience))
		for until := time.Now().Add(patience); errors.Is(err, nats.ErrNoResponders) && time.Now().Before(until); {
			// Each Next makes a consumer, of which our server may not know yet.
			time.Sleep(10 * time.Millisecond)
			msg, err = cons.Next(jetstream.FetchMaxWait(patience))
		}
		if err != nil {
			t.Fatal(err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(msg.Subject(), leaseOf(locks[0].ID())) {
			t.Errorf("a write that is no heartbeat of the lease: %s", msg.Subject())
		}
		if last = meta.Timestamp; i == 0 {
			first = last
		}
	}
	// The interval, earlier by half of it on a slow link, less the jitter, less what the first was late.
	if took, least := last.Sub(first), (heartbeats-2)*every/2*9/10; took < least {
		t.Errorf("%d writes to the leases within %v", heartbeats, took)
	}
	for i, l := range locks {
		if err := l.Err(); err != nil {
			t.Fatalf("lock %d of %d: %v", i, n, err)
		}
	}
}

func closeReleases(t *testing.T, s *site) {
	const n = 40
	base, other := s.key(t), s.manager(t)
	m := s.manager(t, fabric.WithTTL(time.Hour))
	var locks []*fabric.Lock
	var waits []<-chan grant
	for i := range n {
		key := fmt.Sprintf("%s/%d", base, i)
		opts := []fabric.AcquireOption{}
		if i%10 == 0 {
			opts = append(opts, fabric.WithAutoRenew(false)) // a lease of its own
		}
		locks = append(locks, acquire(t, m, key, opts...))
		if i%2 == 0 {
			waits = append(waits, queue(t, waitContext(t), other, key))
		}
	}
	start := time.Now()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for i, l := range locks {
		if err := l.Err(); !errors.Is(err, fabric.ErrLost) || !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("lock %d after Close: %v", i, err)
		}
	}
	for _, w := range waits {
		granted(t, w)
	}
	// Had they had to wait for the leases, it would have been an hour.
	t.Logf("%d locks released and %d handed on in %v", n, len(waits), time.Since(start))
	for i := range n {
		if i%2 == 1 {
			if _, err := other.TryAcquire(waitContext(t), fmt.Sprintf("%s/%d", base, i), fabric.WithoutTakeover()); err != nil {
				t.Errorf("lock %d: %v", i, err)
			}
		}
	}
	if err := m.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

func crashedHolder(t *testing.T, s *site) {
	withTTL(t, time.Second, func(ttl time.Duration) bool { return holderCrashes(t, s, ttl) })
}

func holderCrashes(t *testing.T, s *site, ttl time.Duration) (tooSoon bool) {
	key, other := s.key(t), s.manager(t)
	nc := s.conn(t)
	m := newManager(t, nc, fabric.WithTTL(ttl))
	l := acquire(t, m, key)
	wait := queueBehind(t, other, l)
	until := l.ValidUntil()
	nc.Close()
	if until.IsZero() {
		return true
	}
	succ := granted(t, wait)
	if early := time.Until(until); early > 0 {
		t.Errorf("replaced %v before the end of its TTL of %v", early, ttl)
	}
	if err := l.Err(); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("the old holder does not know: %v", err)
	}
	if succ.Token() <= l.Token() {
		t.Errorf("token %d after %d", succ.Token(), l.Token())
	}
	expectHolder(t, other, key, succ)
	return false
}

// On one server in the process: on three, a busy machine is slower than this TTL.
func TestLeasesWithATTLOf300ms(t *testing.T) { onSite(t, singleSite, shortTTL) }

func shortTTL(t *testing.T, s *site) {
	const ttl = 300 * time.Millisecond
	// A machine that stands still for a whole TTL loses the lock, and rightly so.
	// Not every time, though.
	held := false
	for try := 0; try < 10 && !held; try++ {
		key, other := s.key(t), s.manager(t)
		m := s.manager(t, fabric.WithTTL(ttl))
		l := acquire(t, m, key)
		stay := time.NewTimer(5 * ttl)
		select {
		case <-l.Lost():
			t.Logf("try %d: %v", try, l.Err())
			stay.Stop()
			continue
		case <-stay.C:
		}
		_, err := other.TryAcquire(waitContext(t), key, fabric.WithoutTakeover())
		if l.Err() != nil {
			continue
		}
		held = errors.Is(err, fabric.ErrHeld)
		if !held {
			t.Fatalf("a try beside a valid hold: %v", err)
		}
	}
	if !held {
		t.Error("no hold lasted for five times its TTL")
	}
	key := s.key(t)
	nc := s.conn(t)
	l := acquire(t, newManager(t, nc, fabric.WithTTL(ttl)), key)
	nc.Close()
	succ := acquire(t, s.manager(t), key)
	if err := l.Err(); !errors.Is(err, fabric.ErrLost) || succ.Token() <= l.Token() {
		t.Errorf("old hold %v with token %d, new token %d", err, l.Token(), succ.Token())
	}
}
