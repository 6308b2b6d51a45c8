package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// A hook that does not return costs no lease and delays nobody.
func TestHookThatBlocks(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const ttl = 4 * time.Second
		rec := recorder{gate: make(chan struct{})}
		m := s.manager(t, fabric.WithTTL(ttl), fabric.WithEvents(rec.hook))
		key := s.key(t)
		l := acquire(t, m, key)
		stay := time.NewTimer(2 * ttl)
		defer stay.Stop()
		for done := false; !done; {
			select {
			case <-stay.C:
				done = true
			default:
				// Others come and go meanwhile.
				release(t, acquire(t, m, s.key(t)))
				time.Sleep(10 * time.Millisecond)
			}
		}
		if err := l.Err(); err != nil {
			t.Fatalf("the hold behind a blocked hook: %v", err)
		}
		// A loss closes Lost although nobody is told of anything.
		if _, err := s.manager(t).ForceRelease(waitContext(t), key); err != nil {
			t.Fatal(err)
		}
		if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrRevoked) {
			t.Error(reason)
		}
		if n := len(rec.events()); n != 0 {
			t.Fatalf("%d events", n)
		}
		close(rec.gate)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		rec.check(t)
	})
}

func TestCloseDoesNotWaitForEverForAHook(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		rec := recorder{gate: make(chan struct{})}
		defer close(rec.gate)
		m := s.manager(t, fabric.WithEvents(rec.hook))
		release(t, acquire(t, m, s.key(t)))
		if err := m.Close(); !errors.Is(err, fabric.ErrEventsDropped) {
			t.Errorf("close: %v", err)
		}
	})
}

// The hook runs without a lock of the library, so it can use it.
func TestHookThatCallsBack(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		var rec recorder
		var m *fabric.Manager
		key := s.key(t)
		given := make(chan *fabric.Lock, 1)
		ready := make(chan struct{})
		m = s.manager(t, fabric.WithEvents(func(e fabric.Event) {
			rec.hook(e)
			<-ready
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if e.Key != key || ctx.Err() != nil {
				return
			}
			if _, err := m.Inspect(ctx, key); err != nil {
				t.Errorf("inspect within the hook at %s: %v", e.Type, err)
			}
			if e.Type == fabric.EventGranted {
				l := <-given
				_ = l.Token()
				if err := l.Convert(ctx, fabric.Shared); err != nil {
					t.Errorf("convert within the hook: %v", err)
				}
				if err := l.Release(ctx); err != nil {
					t.Errorf("release within the hook: %v", err)
				}
			}
		}))
		close(ready)
		l := acquire(t, m, key)
		given <- l
		<-l.Context().Done()
		rec.await(t, fabric.EventReleased)
		expectFree(t, m, key)
	})
}

func TestHookOptionRefusesNil(t *testing.T) {
	if _, err := fabric.Connect(t.Context(), "nats://127.0.0.1:1", fabric.WithEvents(nil)); !errors.Is(err, fabric.ErrInvalidOption) {
		t.Error(err)
	}
}
