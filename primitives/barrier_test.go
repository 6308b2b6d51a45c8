package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestBarrierConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"one party", barrierOne},
		{"many parties × many generations", barrierMany},
		{"n parties cost at most n writes, and one more with an action", barrierWrites},
		{"a cancelled party breaks the generation", barrierCancelled},
		{"a timed-out party breaks the generation", barrierTimedOut},
		{"a crashed party breaks the generation", barrierCrashed},
		{"one that comes after the break is the first of the next", barrierAfterBreak},
		{"reset", barrierReset},
		{"reset with nobody waiting", barrierResetNobody},
		{"more parties than expected", barrierMore},
		{"an action runs once for each generation, before anybody is let go", barrierAction},
		{"an action that fails or panics breaks the generation", barrierActionFails},
		{"while an action runs nobody breaks it", barrierActionUnbroken},
		{"who runs the action crashes", barrierActionCrashes},
		{"other numbers of parties are refused until it is deleted", barrierParties},
		{"bad numbers of parties are an error of the first call", barrierBadParties},
	})
}

// parties are n barriers of the same name, each of a manager of its own.
func (s *site) parties(t testing.TB, key string, n int, opts ...fabric.Option) (managers []*fabric.Manager, barriers []*primitives.Barrier) {
	t.Helper()
	for range n {
		m := s.manager(t, opts...)
		managers, barriers = append(managers, m), append(barriers, primitives.NewBarrier(m, key, n))
	}
	return managers, barriers
}

// arrive waits at a barrier in the background, and returns when it stands there as the n-th.
func arrive(t testing.TB, m *fabric.Manager, key string, b *primitives.Barrier, n int) <-chan result[int] {
	t.Helper()
	return arriveUnder(t, waitContext(t), m, key, b, n)
}

func arriveUnder(t testing.TB, ctx context.Context, m *fabric.Manager, key string, b *primitives.Barrier, n int) <-chan result[int] {
	t.Helper()
	c := async(func() (int, error) { return b.Wait(ctx) })
	waitInfo(t, m, key, fmt.Sprintf("%d arrived", n), func(i fabric.Info) bool { return i.Arrived == n })
	return c
}

// broken checks that a wait ended with a broken generation.
func broken(t testing.TB, c <-chan result[int], why string) *fabric.BrokenError {
	t.Helper()
	r := receive(t, c)
	var b *fabric.BrokenError
	if !errors.As(r.err, &b) || !errors.Is(r.err, fabric.ErrBroken) || b.Why != why || r.value != -1 {
		t.Fatalf("%d, %v, want broken: %s", r.value, r.err, why)
	}
	return b
}

func barrierOne(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	b := primitives.NewBarrier(m, key, 1)
	for range 3 {
		if i, err := b.Wait(waitContext(t)); i != 0 || err != nil {
			t.Errorf("%d, %v", i, err)
		}
	}
	if info, err := b.State(waitContext(t)); err != nil || info.Generation != 4 || info.Parties != 1 || info.Arrived != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

func barrierMany(t *testing.T, s *site) {
	const parties, generations = 6, 15
	key := s.key(t)
	m := []*fabric.Manager{s.manager(t), s.manager(t), s.manager(t)}
	var inside [generations]atomic.Int32
	var mu sync.Mutex
	indexes := map[int][]int{}
	var wg sync.WaitGroup
	for p := range parties {
		b := primitives.NewBarrier(m[p%3], key, parties)
		wg.Go(func() {
			for g := range generations {
				inside[g].Add(1)
				i, err := b.Wait(waitContext(t))
				if err != nil {
					t.Errorf("generation %d: %v", g, err)
					return
				}
				if n := inside[g].Load(); n != parties {
					t.Errorf("generation %d let go with %d of %d", g, n, parties)
				}
				mu.Lock()
				indexes[g] = append(indexes[g], i)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for g, got := range indexes {
		slices.Sort(got)
		if !slices.Equal(got, []int{0, 1, 2, 3, 4, 5}) {
			t.Errorf("generation %d: indexes %v", g, got)
		}
	}
}

func barrierWrites(t *testing.T, s *site) {
	const n = 5
	key := s.key(t)
	managers, barriers := s.parties(t, key, n)
	for i := range barriers { // opens what is opened once
		if _, err := primitives.NewBarrier(managers[i], s.key(t), 1).Wait(waitContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	for _, action := range []bool{false, true} {
		if got := writes(func() {
			var waits []<-chan result[int]
			for i, b := range barriers {
				if action {
					b = b.WithAction(func(context.Context, uint64) error { return nil })
				}
				if i < n-1 {
					waits = append(waits, arrive(t, managers[i], key, b, i+1))
				} else {
					waits = append(waits, async(func() (int, error) { return b.Wait(waitContext(t)) }))
				}
			}
			for i, c := range waits {
				if got := must(t, c); got != n-1-i {
					t.Errorf("the one that came as number %d has index %d", i, got)
				}
			}
		}, managers...); got.done > n && !action || got.done > n+1 {
			t.Errorf("action %v: %d parties took %d writes", action, n, got)
		}
	}
}

func barrierCancelled(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 4)
	first := arrive(t, m[0], key, b[0], 1)
	ctx, cancel := context.WithCancel(waitContext(t))
	second := arriveUnder(t, ctx, m[0], key, b[1], 2)
	third := arrive(t, m[0], key, b[2], 3)
	cancel()
	if r := receive(t, second); !errors.Is(r.err, context.Canceled) || !errors.Is(r.err, fabric.ErrBroken) || errors.Is(r.err, fabric.ErrUncertain) {
		t.Errorf("the one who gave up: %v", r.err)
	}
	if e := broken(t, first, "cancelled"); e.Gen != 1 || e.Key != key || e.Who == "" {
		t.Errorf("%+v", e)
	}
	broken(t, third, "cancelled")
	// Before the call: nobody hears of it.
	if _, err := b[0].Wait(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, fabric.ErrBroken) {
		t.Error(err)
	}
	if info := read(t, m[0], key); info.Generation != 2 {
		t.Errorf("%+v", info)
	}
}

func barrierTimedOut(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 3)
	first := arrive(t, m[0], key, b[0], 1)
	limited := primitives.NewBarrier(m[1], key, 3, fabric.WithWaitLimit(time.Second))
	began := time.Now()
	_, err := limited.Wait(waitContext(t))
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fabric.ErrBroken) || time.Since(began) < time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	broken(t, first, "cancelled")
}

func barrierCrashed(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 4)
	p := s.proxied(t)
	gone := newManager(t, p.conn, fabric.WithTTL(mortalTTL))
	waits := []<-chan result[int]{arrive(t, m[0], key, b[0], 1)}
	lost := arrive(t, m[0], key, primitives.NewBarrier(gone, key, 4), 2)
	waits = append(waits, arrive(t, m[0], key, b[1], 3))
	p.cut()
	for _, c := range waits {
		if e := broken(t, c, "died"); e.Who == "" {
			t.Errorf("%+v", e)
		}
	}
	if r := receive(t, lost); !errors.Is(r.err, fabric.ErrLost) && !errors.Is(r.err, fabric.ErrUncertain) || r.value != -1 {
		t.Errorf("the one who is cut off: %d, %v", r.value, r.err)
	}
	waits = nil
	for i := range 3 { // the next generation is whole
		waits = append(waits, arrive(t, m[0], key, b[i], i+1))
	}
	if i, err := b[3].Wait(waitContext(t)); i != 0 || err != nil {
		t.Errorf("the generation after: %d, %v", i, err)
	}
	for _, c := range waits {
		must(t, c)
	}
}

func barrierAfterBreak(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 2)
	ctx, cancel := context.WithCancel(waitContext(t))
	c := arriveUnder(t, ctx, m[0], key, b[0], 1)
	cancel()
	receive(t, c)
	next := arrive(t, m[0], key, b[1], 1)
	if i, err := b[0].Wait(waitContext(t)); i != 0 || err != nil {
		t.Errorf("%d, %v", i, err)
	}
	if i := must(t, next); i != 1 {
		t.Errorf("the first after the break has index %d", i)
	}
}

func barrierReset(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 3)
	first := arrive(t, m[0], key, b[0], 1)
	second := arrive(t, m[0], key, b[1], 2)
	if err := b[2].Reset(waitContext(t)); err != nil {
		t.Fatal(err)
	}
	broken(t, first, "reset")
	broken(t, second, "reset")
	if info := read(t, m[0], key); info.Generation != 2 || info.Arrived != 0 {
		t.Errorf("%+v", info)
	}
}

func barrierResetNobody(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	b := primitives.NewBarrier(m, key, 2)
	reset := func() {
		if err := b.Reset(waitContext(t)); err != nil {
			t.Error(err)
		}
	}
	reset()
	expectFree(t, m, key)
	c := arrive(t, m, key, b, 1)
	if _, err := b.Wait(waitContext(t)); err != nil {
		t.Error(err)
	}
	must(t, c)
	if n := writes(reset, m); n.not(0) {
		t.Errorf("%d writes", n)
	}
}

func barrierMore(t *testing.T, s *site) {
	key := s.key(t)
	m := s.manager(t)
	b := primitives.NewBarrier(m, key, 2)
	first := arrive(t, m, key, b, 1)
	_, err := b.Wait(waitContext(t))
	must(t, first)
	third := arrive(t, m, key, b, 1) // of the next generation
	if err != nil {
		t.Error(err)
	}
	fourth := async(func() (int, error) { return b.Wait(waitContext(t)) })
	if i, k := must(t, third), must(t, fourth); i != 1 || k != 0 {
		t.Errorf("%d, %d", i, k)
	}
}

func barrierParties(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	b, other := primitives.NewBarrier(m, key, 2), primitives.NewBarrier(m, key, 3)
	c := arrive(t, m, key, b, 1)
	var differ *fabric.SizeMismatchError
	if _, err := other.Wait(waitContext(t)); !errors.As(err, &differ) || differ.Have != 2 || differ.Want != 3 {
		t.Error(err)
	}
	if err := other.Reset(waitContext(t)); !errors.Is(err, fabric.ErrSizeMismatch) {
		t.Error(err)
	}
	if err := b.Delete(waitContext(t)); !errors.Is(err, fabric.ErrHeld) {
		t.Error(err)
	}
	if _, err := b.Wait(waitContext(t)); err != nil {
		t.Error(err)
	}
	must(t, c)
	for range 2 {
		if err := b.Delete(waitContext(t)); err != nil {
			t.Error(err)
		}
	}
	expectFree(t, m, key)
	arrive(t, m, key, other, 1)
	if err := other.Reset(waitContext(t)); err != nil {
		t.Error(err)
	}
	if _, err := fabricLock(t, m, key); !errors.Is(err, fabric.ErrKindMismatch) {
		t.Error(err)
	}
}

func fabricLock(t testing.TB, m *fabric.Manager, key string) (*fabric.Lock, error) {
	return m.TryAcquire(waitContext(t), key)
}

func barrierBadParties(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	for _, n := range []int{-1, 0, primitives.MaxParties + 1} {
		if _, err := primitives.NewBarrier(m, key, n).Wait(waitContext(t)); !errors.Is(err, fabric.ErrInvalidOption) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Error(n, err)
		}
		if _, err := primitives.NewDoubleBarrier(m, key, n).Enter(waitContext(t)); !errors.Is(err, fabric.ErrInvalidOption) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Error(n, err)
		}
	}
	if _, err := primitives.NewBarrier(m, "", 1).Wait(waitContext(t)); !errors.Is(err, fabric.ErrInvalidName) {
		t.Error(err)
	}
}
