package fabric_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

func TestLossEvents(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		reason error
		opts   []fabric.AcquireOption
		lose   func(t *testing.T, s *site, m *fabric.Manager, own string, l *fabric.Lock)
	}{
		{
			"expired", fabric.ErrExpired,
			[]fabric.AcquireOption{fabric.WithTTL(300 * time.Millisecond), fabric.WithAutoRenew(false)}, nil,
		},
		{
			"renewals used up", fabric.ErrRenewalsUsedUp,
			[]fabric.AcquireOption{fabric.WithTTL(3 * time.Second), fabric.WithRenewInterval(100 * time.Millisecond), fabric.WithMaxRenewals(1)}, nil,
		},
		{"revoked", fabric.ErrRevoked, nil, func(t *testing.T, s *site, _ *fabric.Manager, own string, l *fabric.Lock) {
			if _, err := s.manager(t, fabric.WithFabric(own)).ForceRelease(waitContext(t), l.Key()); err != nil {
				t.Fatal(err)
			}
		}},
		{"removed", fabric.ErrRemoved, nil, func(t *testing.T, s *site, _ *fabric.Manager, own string, l *fabric.Lock) {
			if _, err := s.manager(t, fabric.WithFabric(own)).ForceRelease(waitContext(t), l.Key(), fabric.ForceNow()); err != nil {
				t.Fatal(err)
			}
		}},
		{"found gone by Release", fabric.ErrRemoved, nil, func(t *testing.T, s *site, _ *fabric.Manager, own string, l *fabric.Lock) {
			if _, err := s.manager(t, fabric.WithFabric(own)).ForceRelease(waitContext(t), l.Key(), fabric.ForceNow()); err != nil {
				t.Fatal(err)
			}
			if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
				t.Errorf("release: %v", err)
			}
		}},
		{"lease deleted", fabric.ErrTakenOver, nil, func(t *testing.T, s *site, _ *fabric.Manager, own string, l *fabric.Lock) {
			if err := s.bucket(t, own+"-leases").Delete(waitContext(t), leaseOf(l.ID())); err != nil {
				t.Fatal(err)
			}
		}},
		{"bucket gone", fabric.ErrBucketGone, nil, func(t *testing.T, s *site, _ *fabric.Manager, own string, _ *fabric.Lock) {
			if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+own+"-locks"); err != nil {
				t.Fatal(err)
			}
		}},
		{"closed", fabric.ErrClosed, nil, func(t *testing.T, _ *site, m *fabric.Manager, _ string, _ *fabric.Lock) {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onSite(t, singleSite, func(t *testing.T, s *site) {
				t.Parallel()
				var rec recorder
				own, key := s.fabric(t), s.key(t)
				m := s.manager(t, fabric.WithFabric(own), fabric.WithEvents(rec.hook))
				l := acquire(t, m, key, tc.opts...)
				token := l.Token()
				if tc.lose != nil {
					tc.lose(t, s, m, own, l)
				}
				e := rec.await(t, fabric.EventLost)
				if !errors.Is(e.Reason, tc.reason) || e.ID != l.ID() || e.Token != token || e.Held <= 0 || e.Key != key {
					t.Errorf("%+v", e)
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
				rec.check(t)
				if n := len(rec.of(fabric.EventLost)); n != 1 || len(rec.of(fabric.EventReleased)) != 0 {
					t.Errorf("%d losses; all: %+v", n, rec.events())
				}
			})
		})
	}
}

// Close ends what waits and what is being released, too, and tells of all of it.
func TestCloseTellsHowEverythingEnded(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const n = 16 // as many of a manager wait in a record
		key := s.key(t)
		var rec recorder
		m := s.manager(t, fabric.WithEvents(rec.hook))
		first := acquire(t, s.manager(t), key)
		var waits []<-chan grant
		for range n {
			waits = append(waits, queue(t, waitContext(t), m, key))
		}
		var held []*fabric.Lock
		for range n {
			held = append(held, acquire(t, m, s.key(t)))
		}
		released := make(chan error, n)
		for _, l := range held[:n/2] {
			go func() { released <- l.Release(context.Background()) }()
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		got := rec.events() // nothing comes after Close
		for range n / 2 {
			receive(t, released)
		}
		for _, w := range waits {
			if g := receive(t, w); !errors.Is(g.err, fabric.ErrClosed) {
				t.Errorf("a waiter ended with %v", g.err)
			}
		}
		rec.check(t)
		if len(rec.events()) != len(got) {
			t.Errorf("%d events after Close", len(rec.events())-len(got))
		}
		if w := rec.of(fabric.EventWithdrawn); len(w) != n {
			t.Errorf("%d of %d waits withdrawn", len(w), n)
		}
		if ends := rec.of(fabric.EventReleased, fabric.EventLost); len(ends) != n {
			t.Errorf("%d of %d holds have ended", len(ends), n)
		}
		release(t, first)
	})
}

func TestEventsOfATakeover(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		key := s.key(t)
		nc := s.conn(t)
		dead := acquire(t, newManager(t, nc, fabric.WithTTL(4*time.Second)), key)
		var rec recorder
		m := s.manager(t, fabric.WithEvents(rec.hook))
		wait := queue(t, waitContext(t), m, key)
		nc.Close()
		l := granted(t, wait)
		rec.await(t, fabric.EventGranted)
		var types []fabric.EventType
		for _, e := range rec.events() {
			types = append(types, e.Type)
			switch e.Type {
			case fabric.EventTakeover:
				if e.Lease != leaseOf(dead.ID()) || e.Key != "" {
					t.Errorf("%+v", e)
				}
			case fabric.EventEvicted:
				if e.Key != key || !slices.Equal(e.Leases, []string{leaseOf(dead.ID())}) || e.Entries != 1 {
					t.Errorf("%+v", e)
				}
			}
		}
		if want := []fabric.EventType{"queued", "takeover", "evicted", "granted"}; !slices.Equal(types, want) {
			t.Errorf("got %v, want %v", types, want)
		}
		release(t, l)
	})
}

// A grant whose lease ended while it was on its way is nobody's: it has no event.
func TestNoEventsOfAGrantThatIsNotHandedOut(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		key := s.key(t)
		var rec recorder
		slow, w := s.wired(t, fabric.WithTTL(3*time.Second), fabric.WithEvents(rec.hook))
		witness := acquire(t, slow, s.key(t)) // under the same lease
		w.fault(1, lockPut, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			renewals := w.fault(-1, leaseWrite, vanish)
			reply, err := surely(ctx, msg, send)
			<-witness.Lost()
			renewals.end()
			return reply, err
		})
		l := acquire(t, slow, key)
		if err := slow.Close(); err != nil {
			t.Fatal(err)
		}
		rec.check(t)
		for _, e := range rec.of(fabric.EventGranted, fabric.EventLost, fabric.EventReleased) {
			if e.ID != l.ID() && e.ID != witness.ID() {
				t.Errorf("%+v", e)
			}
		}
	})
}

// A release that is on its way when the manager is closed is told, or Close says
// that something was not.
func TestCloseTellsOfAReleaseUnderWay(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		var rec recorder
		m, w := s.wired(t, fabric.WithEvents(rec.hook))
		l := acquire(t, m, s.key(t))
		arrived, gate := make(chan struct{}), make(chan struct{})
		w.fault(1, lockWrite, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			close(arrived)
			<-gate
			return send(ctx, msg)
		})
		released := make(chan error, 1)
		go func() { released <- l.Release(context.Background()) }()
		receive(t, arrived)
		// Longer than ending the session takes, shorter than delivering events may take.
		open := time.AfterFunc(3500*time.Millisecond, func() { close(gate) })
		defer open.Stop()
		err := m.Close()
		switch told := len(rec.of(fabric.EventReleased, fabric.EventLost)); {
		case err == nil && told != 1:
			t.Errorf("closed with %d ends told", told)
		case err != nil && !errors.Is(err, fabric.ErrEventsDropped):
			t.Error(err)
		}
		receive(t, released)
	})
}
