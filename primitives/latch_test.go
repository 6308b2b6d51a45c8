package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestLatchConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"count down to zero once, waiters before and after", latchOpens},
		{"one write for a count, none for a wait on an open latch", latchWrites},
		{"a wait that is given up leaves the queue", latchGiveUp},
		{"every count of many processes counts once", latchMany},
		{"add", latchAdd},
		{"initial counts differ", latchSizes},
		{"delete, and a new latch of the same name", latchDelete},
		{"another kind of the same name is refused", latchKind},
		{"crash of a counter", latchCrash},
	})
}

func waits(ctx context.Context, l *primitives.Latch) <-chan result[struct{}] {
	return async(func() (struct{}, error) { return struct{}{}, l.Wait(ctx) })
}

func countDown(t testing.TB, l *primitives.Latch, n int) {
	t.Helper()
	if err := l.CountDownN(waitContext(t), n); err != nil {
		t.Errorf("count down: %v", err)
	}
}

func wantCount(t testing.TB, l *primitives.Latch, want int) {
	t.Helper()
	if n, err := l.Count(waitContext(t)); err != nil || n != want {
		t.Errorf("count %d, %v; want %d", n, err, want)
	}
}

func latchOpens(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l, other := primitives.NewLatch(m, key, 3), primitives.NewLatch(s.manager(t), key, 3)
	wantCount(t, l, 3)
	a, b := waits(t.Context(), l), waits(t.Context(), other)
	waitQueue(t, m, key, 2)
	countDown(t, l, 1)
	countDown(t, other, 1)
	wantCount(t, l, 1)
	select {
	case r := <-a:
		t.Errorf("open at 1: %v", r.err)
	default:
	}
	countDown(t, other, 1)
	must(t, a)
	must(t, b)
	must(t, waits(t.Context(), l))
	wantCount(t, l, 0)
	countDown(t, l, 1) // changes nothing
	wantCount(t, l, 0)
	if info := read(t, m, key); !info.Open || len(info.Waiters) > 0 || info.Initial != 3 {
		t.Errorf("%+v", info)
	}
}

func latchWrites(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := primitives.NewLatch(m, key, 4)
	countDown(t, l, 1)
	if n := writes(func() { countDown(t, l, 2) }, m); n.not(1) {
		t.Errorf("a count: %d writes, want 1", n)
	}
	if n := writes(func() {
		wait := waits(t.Context(), l)
		waitQueue(t, m, key, 1)
		countDown(t, l, 1)
		must(t, wait)
	}, m); n.not(2) {
		t.Errorf("a wait and the count that ends it: %d writes, want 2", n)
	}
	if n := writes(func() { must(t, waits(t.Context(), l)); countDown(t, l, 1) }, m); n.not(0) {
		t.Errorf("a wait and a count on an open latch: %d writes", n)
	}
}

func latchGiveUp(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := primitives.NewLatch(m, key, 1)
	ctx, cancel := context.WithCancel(t.Context())
	wait := waits(ctx, l)
	waitQueue(t, m, key, 1)
	cancel()
	if r := receive(t, wait); !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v", r.err)
	}
	waitQueue(t, m, key, 0)
	countDown(t, l, 1) // in the same life
	must(t, waits(t.Context(), l))
	if err := l.CountDown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

func latchMany(t *testing.T, s *site) {
	key := s.key(t)
	const managers, counts = 4, 10
	last := primitives.NewLatch(s.manager(t), key, managers*counts+1)
	wait := waits(t.Context(), last)
	var all sync.WaitGroup
	for range managers {
		l := primitives.NewLatch(s.manager(t), key, managers*counts+1)
		for range counts {
			all.Go(func() { countDown(t, l, 1) })
		}
	}
	all.Wait()
	wantCount(t, last, 1)
	countDown(t, last, 1)
	must(t, wait)
}

func latchAdd(t *testing.T, s *site) {
	l := primitives.NewLatch(s.manager(t), s.key(t), 1)
	if err := l.Add(waitContext(t), 2); err != nil {
		t.Error(err)
	}
	countDown(t, l, 1)
	wantCount(t, l, 2)
	countDown(t, l, 5)
	wantCount(t, l, 0)
	if err := l.Add(waitContext(t), 1); !errors.Is(err, fabric.ErrFinished) || errors.Is(err, fabric.ErrUncertain) {
		t.Errorf("on an open latch: %v", err)
	}
	for _, bad := range []int{0, -1, 1 << 31} {
		if err := l.CountDownN(t.Context(), bad); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("%d counts: %v", bad, err)
		}
		if err := primitives.NewLatch(s.manager(t), s.key(t), bad).Wait(t.Context()); !errors.Is(err, fabric.ErrInvalidOption) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("a wait for %d counts: %v", bad, err)
		}
	}
}

func latchSizes(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	countDown(t, primitives.NewLatch(m, key, 3), 1)
	other := primitives.NewLatch(m, key, 4)
	for what, err := range map[string]error{"count": other.CountDown(waitContext(t)), "wait": other.Wait(waitContext(t)), "add": other.Add(waitContext(t), 1)} {
		var mismatch *fabric.SizeMismatchError
		if !errors.As(err, &mismatch) || mismatch.Have != 3 || mismatch.Want != 4 {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func latchDelete(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := primitives.NewLatch(m, key, 2)
	if err := l.Delete(waitContext(t)); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wait := waits(ctx, l)
	waitQueue(t, m, key, 1)
	if err := l.Delete(waitContext(t)); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("somebody waits: %v", err)
	}
	cancel()
	receive(t, wait)
	countDown(t, l, 1)
	if err := l.Delete(waitContext(t)); err != nil {
		t.Error(err)
	}
	expectFree(t, m, key)
	next := primitives.NewLatch(m, key, 1) // with another count
	wantCount(t, next, 1)
	countDown(t, next, 1)
	must(t, waits(t.Context(), next))
}

func latchKind(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	lock, err := m.Acquire(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	l := primitives.NewLatch(m, key, 2)
	for what, err := range map[string]error{"count down": l.CountDown(waitContext(t)), "wait": l.Wait(waitContext(t)), "count": second(l.Count(waitContext(t))), "delete": l.Delete(waitContext(t))} {
		if !errors.Is(err, fabric.ErrKindMismatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	release(t, lock)
}

// latchCrash: what was counted stays counted when its process dies, and its mark goes.
func latchCrash(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := primitives.NewLatch(m, key, 2)
	wait := waits(t.Context(), l)
	waitQueue(t, m, key, 1)
	dying := s.proxied(t)
	gone := newManager(t, dying.conn, fabric.WithTTL(mortalTTL))
	countDown(t, primitives.NewLatch(gone, key, 2), 1)
	dying.cut()
	eventually(t, "the mark of the dead goes", func() bool {
		if _, err := m.Collect(waitContext(t), key); err != nil {
			t.Fatal(err)
		}
		return read(t, m, key).Fenced > 0
	})
	wantCount(t, l, 1)
	countDown(t, l, 1)
	must(t, wait)
}

func ExampleLatch() {
	ctx := context.Background()
	m, stop := embed(ctx)
	defer stop()
	ready := primitives.NewLatch(m, "ready", 2)
	for range 2 {
		go func() { _ = ready.CountDown(ctx) }()
	}
	err := ready.Wait(ctx)
	n, _ := ready.Count(ctx)
	fmt.Println(err, n)
	// Output: <nil> 0
}
