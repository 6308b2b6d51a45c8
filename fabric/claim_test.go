package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// A claim of any kind goes the way of Acquire; a semaphore shows it.
func TestClaimAndPostOfASemaphore(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		claim := func(permits, limit int) fabric.Claim {
			return fabric.Claim{Kind: fabric.KindSemaphore, Permits: permits, Limit: limit}
		}
		h, err := m.Claim(waitContext(t), key, claim(2, 3))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Claim(waitContext(t), key, claim(4, 3)); !errors.Is(err, fabric.ErrTooLarge) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("more than there are: %v", err)
		}
		var size *fabric.SizeMismatchError
		if _, err := m.Claim(waitContext(t), key, claim(1, 4)); !errors.As(err, &size) || size.Have != 3 || size.Want != 4 {
			t.Errorf("another size: %v", err)
		}
		if _, err := m.Acquire(waitContext(t), key); !errors.Is(err, fabric.ErrKindMismatch) {
			t.Errorf("a lock of that name: %v", err)
		}
		c := claim(2, 3)
		c.Verb = "try"
		if _, err := m.Claim(waitContext(t), key, c); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("try: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := m.Claim(short, key, claim(2, 3)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v", err)
		}
		info, err := h.Post(waitContext(t), fabric.Post{Kind: fabric.KindSemaphore, Verb: "reduce", N: 1})
		if err != nil || info.Taken != 1 || info.Size != 3 || len(info.Holders) != 1 || info.Holders[0].Permits != 1 {
			t.Errorf("%+v, %v", info, err)
		}
		resize := fabric.Post{Kind: fabric.KindSemaphore, Verb: "resize", N: 5, Limit: 3, Base: info.Sized, Life: info.Life}
		if info, err = m.Post(waitContext(t), key, resize); err != nil || info.Size != 5 {
			t.Errorf("%+v, %v", info, err)
		}
		resize.N = 6
		if _, err = m.Post(waitContext(t), key, resize); !errors.Is(err, fabric.ErrStale) {
			t.Errorf("resize of what was resized: %v", err)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if info, err = m.Read(waitContext(t), key); err != nil || info.Kind != fabric.KindSemaphore || info.Taken != 0 {
			t.Errorf("%+v, %v", info, err)
		}
		if _, err := h.Post(waitContext(t), fabric.Post{Kind: fabric.KindSemaphore, Verb: "reduce", N: 1}); !errors.Is(err, fabric.ErrReleased) {
			t.Errorf("post of a released hold: %v", err)
		}
		if _, err = m.Post(waitContext(t), key, fabric.Post{Kind: fabric.KindSemaphore, Verb: "delete", Life: info.Life}); err != nil {
			t.Error(err)
		}
		if _, err = m.Post(waitContext(t), key, fabric.Post{Kind: fabric.KindSemaphore, Verb: "delete", Life: info.Life}); !errors.Is(err, fabric.ErrDeleted) {
			t.Errorf("delete of another life: %v", err)
		}
		if info, err = m.Read(waitContext(t), key); err != nil || info.Kind != "" {
			t.Errorf("%+v, %v", info, err)
		}
		if _, err := m.Post(waitContext(t), key, fabric.Post{Kind: fabric.KindSemaphore, Verb: "nothing"}); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("no such verb: %v", err)
		}
	})
}

// P26: a party that gives up after its generation has tripped has passed, also if it is not sure
// yet that the bucket is still the one it knows.
func TestP26_WhatHasPassedIsTold(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, p := s.behindProxy(t)
		other, key := s.manager(t), s.key(t)
		arrive := func(ctx context.Context, m *fabric.Manager) <-chan error {
			out := make(chan error, 1)
			go func() {
				_, _, err := m.Await(ctx, key, fabric.Claim{Kind: fabric.KindBarrier, Verb: "arrive", Limit: 2, Gen: 1, Once: true})
				out <- err
			}()
			return out
		}
		ctx, cancel := context.WithCancel(waitContext(t))
		first := arrive(ctx, m)
		eventually(t, "one has arrived", func() bool {
			info, err := other.Read(waitContext(t), key)
			return err == nil && info.Arrived == 1
		})
		looks := p.HoldRequests(faultproxy.Subject("$JS.API.STREAM.INFO.>"))
		if err := fabric.Doubt(waitContext(t), m); err != nil {
			t.Fatal(err)
		}
		if err := looks.Wait(waitContext(t), 1); err != nil {
			t.Fatal(err)
		}
		if err := receive(t, arrive(waitContext(t), other)); err != nil {
			t.Fatal(err)
		}
		cancel()
		select {
		case err := <-first:
			t.Fatalf("it has passed, and is told %v", err)
		case <-time.After(100 * time.Millisecond): // nothing happens, so nothing to wait for
		}
		looks.Remove()
		if err := receive(t, first); err != nil {
			t.Errorf("it has passed, and is told %v", err)
		}
	})
}
