package fabric

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/lease"
)

// Nothing is registered, or found by others, before it is complete or once it is over.

func completeManager(t *testing.T) *Manager {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	srv, err := embedded.Start(ctx, embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Shutdown(context.WithoutCancel(ctx)) })
	nc, err := srv.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	m, err := New(ctx, nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// A process that is stopped between the creation of a lease and what follows finds
// the lease lost.
func TestComplete_LeaseLostBeforeItsShareIsMade(t *testing.T) {
	t.Parallel()
	m := completeManager(t)
	s, err := m.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	le, err := lease.Create(t.Context(), s.buckets.Leases, lease.Config{TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := le.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	watches := s.leaseHub.Registrations
	before := watches()
	for range 1000 {
		if sl := s.adopt(le, timing{ttl: time.Second, noRenewal: true}); sl == nil || sl.enter() {
			t.Fatal("the session has ended, or a lost lease is entered")
		}
	}
	for end := time.Now().Add(time.Minute); watches() != before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d watches are left", watches()-before)
		}
	}
	if _, live := s.liveLeases.Load(le.ID()); live {
		t.Error("a lost lease counts as alive")
	}
}

// A lease that its last user leaves while the session ends is closed by that end: it would be renewed for ever.
func TestComplete_LeaseLeftWhileTheSessionEnds(t *testing.T) {
	t.Parallel()
	m := completeManager(t)
	s, err := m.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sl, err := s.newLeaseShare(t.Context(), timing{ttl: time.Minute, maxRenewals: 9})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.ended = ErrClosed // as end begins
	s.mu.Unlock()
	sl.leave()
	left := s.leaseShareOf(sl.id)
	s.mu.Lock()
	s.ended = nil
	s.mu.Unlock()
	if left != sl {
		t.Error("the session's end does not find it")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if sl.lease.Valid() {
		t.Error("it lives on after Close")
	}
}

// The buckets can be gone before the session that was opened on them is known.
func TestComplete_SessionEndedBeforeItIsCurrent(t *testing.T) {
	t.Parallel()
	m := completeManager(t)
	s, err := m.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.end(context.Background(), ErrBucketGone, false)
	m.mu.Lock()
	m.publish(s)
	m.mu.Unlock()
	next, err := m.session(t.Context())
	if err != nil || next == s || !errors.Is(s.endReason(), ErrBucketGone) {
		t.Fatalf("the ended session is current: %v", err)
	}
}

// A bucket of waits that can't be opened, as during an election, is tried again soon, and then more and more rarely.
func TestComplete_WaitsAreOpenedAgainSoon(t *testing.T) {
	t.Parallel()
	m := completeManager(t)
	s, err := m.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	d := &detection{s: s}
	for n, least := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 40 * time.Second} {
		d.retry = time.Time{}
		began := time.Now()
		if _, err := d.waits(ended); err == nil {
			t.Fatal("opened under a context that has ended")
		}
		if after := time.Until(d.retry); after > 3*least || d.retry.Sub(began) < least {
			t.Errorf("after %d failures it is tried again in %v", n+1, after)
		}
	}
	d.retry = time.Time{}
	if _, err := d.waits(t.Context()); err != nil || d.failed > 0 {
		t.Errorf("%d failures, %v", d.failed, err)
	}
}
