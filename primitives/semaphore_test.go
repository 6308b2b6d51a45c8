package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestSemaphoreConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"acquire and release, one write each", semaphoreWrites},
		{"n permits, weighted", semaphoreWeighted},
		{"try n", semaphoreTry},
		{"timed out and cancelled waits leave the queue", semaphoreGiveUp},
		{"release wakes all that fit", semaphoreWakesAll},
		{"a large request is not starved", semaphoreLarge},
		{"a cancelled large waiter frees the small ones behind it", semaphoreCancelledLarge},
		{"a request above the size fails at once and blocks nobody", semaphoreTooLarge},
		{"size conflict between clients is an error", semaphoreSizes},
		{"resize up grants, resize down drains", semaphoreResize},
		{"partial release", semaphorePart},
		{"drain takes what is free", semaphoreDrain},
		{"delete", semaphoreDelete},
		{"another kind of the same name is refused", semaphoreKind},
		{"a crashed client's permits return", semaphoreCrash},
		{"never more than n out", semaphoreNeverMore},
	})
}

func permits(t testing.TB, s *primitives.Semaphore, n int) *primitives.Permit {
	t.Helper()
	p, err := s.AcquireN(waitContext(t), n)
	if err != nil {
		t.Fatalf("acquire %d: %v", n, err)
	}
	if p.Permits() != n {
		t.Errorf("%d permits, want %d", p.Permits(), n)
	}
	return p
}

// asks acquires n permits in the background, and returns when the request stands in the queue.
func asks(t testing.TB, ctx context.Context, m *fabric.Manager, s *primitives.Semaphore, key string, n int) <-chan result[*primitives.Permit] {
	t.Helper()
	was := len(read(t, m, key).Waiters)
	out := async(func() (*primitives.Permit, error) { return s.AcquireN(ctx, n) })
	waitQueue(t, m, key, was+1)
	return out
}

func taken(t testing.TB, m *fabric.Manager, key string, want int) {
	t.Helper()
	if info := read(t, m, key); info.Taken != want {
		t.Errorf("%d permits are out, want %d: %+v", info.Taken, want, info)
	}
}

func semaphoreWrites(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 3)
	release(t, permits(t, sem, 1)) // opens what is opened once
	n := writes(func() {
		p := permits(t, sem, 2)
		if p.Key() != key || p.Token() == 0 || p.Err() != nil || p.ValidUntil().IsZero() || p.Context().Err() != nil {
			t.Errorf("%s, %d, %v", p.Key(), p.Token(), p.Err())
		}
		release(t, p)
		if err := p.Release(t.Context()); err != nil || p.Permits() != 0 || !errors.Is(p.Err(), fabric.ErrReleased) {
			t.Errorf("released twice: %v, %d, %v", err, p.Permits(), p.Err())
		}
	}, m)
	if n.not(2) {
		t.Errorf("%d writes, want 2", n)
	}
	expectFree(t, m, key)
}

func semaphoreWeighted(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem, other := primitives.NewSemaphore(m, key, 3), primitives.NewSemaphore(s.manager(t), key, 3)
	a, b := permits(t, sem, 2), permits(t, other, 1)
	taken(t, m, key, 3)
	wait := asks(t, t.Context(), m, other, key, 2)
	release(t, a)
	c := must(t, wait)
	taken(t, m, key, 3)
	release(t, b)
	release(t, c)
	expectFree(t, m, key)
	for _, bad := range []int{0, -1, 1 << 31} {
		if _, err := sem.AcquireN(t.Context(), bad); !errors.Is(err, fabric.ErrInvalidOption) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("%d permits: %v", bad, err)
		}
		if _, err := primitives.NewSemaphore(m, key, bad).Acquire(t.Context()); !errors.Is(err, fabric.ErrInvalidOption) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("a size of %d: %v", bad, err)
		}
	}
}

func semaphoreTry(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 3)
	p := permits(t, sem, 2)
	if held, ok := errors.AsType[*fabric.HeldError](second(sem.TryAcquireN(waitContext(t), 2))); !ok || !errors.Is(held, fabric.ErrHeld) || held.Owner != p.ID() {
		t.Errorf("%+v", held)
	}
	q, err := sem.TryAcquireN(waitContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	if info := read(t, m, key); len(info.Waiters) > 0 || info.Taken != 3 {
		t.Errorf("%+v", info)
	}
	release(t, p)
	release(t, q)
}

func semaphoreGiveUp(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 2)
	p := permits(t, sem, 1)
	began := time.Now()
	short := primitives.NewSemaphore(m, key, 2, fabric.WithWaitLimit(50*time.Millisecond))
	if _, err := short.AcquireN(waitContext(t), 2); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	waitQueue(t, m, key, 0) // it may leave later than its caller is told, where the servers are slow
	cancelled, cancel := context.WithCancel(t.Context())
	wait := asks(t, cancelled, m, sem, key, 2)
	cancel()
	if r := receive(t, wait); !errors.Is(r.err, context.Canceled) || !errors.Is(r.err, fabric.ErrNotAcquired) {
		t.Errorf("%v", r.err)
	}
	waitQueue(t, m, key, 0)
	release(t, p)
	expectFree(t, m, key)
}

func semaphoreWakesAll(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 3)
	p := permits(t, sem, 3)
	var waits []<-chan result[*primitives.Permit]
	for _, n := range []int{1, 2, 1} {
		waits = append(waits, asks(t, t.Context(), m, sem, key, n))
	}
	if n := writes(func() {
		release(t, p)
		p = must(t, waits[0])
		q := must(t, waits[1])
		if p.Token() != q.Token() {
			t.Errorf("tokens %d and %d", p.Token(), q.Token())
		}
		waits = waits[2:]
		waits = append(waits, async(func() (*primitives.Permit, error) { return q, nil }))
	}, m); n.not(1) {
		t.Errorf("%d writes let two in, want 1", n)
	}
	taken(t, m, key, 3)
	release(t, p)
	for _, w := range waits {
		release(t, must(t, w))
	}
	expectFree(t, m, key)
}

func semaphoreLarge(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 3)
	p, q := permits(t, sem, 1), permits(t, sem, 1)
	large := asks(t, t.Context(), m, sem, key, 3)
	small := asks(t, t.Context(), m, sem, key, 1) // would fit
	if _, err := sem.TryAcquireN(waitContext(t), 1); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("a try passes the queue: %v", err)
	}
	release(t, p)
	if info := read(t, m, key); len(info.Holders) != 1 || len(info.Waiters) != 2 {
		t.Errorf("%+v", info)
	}
	release(t, q)
	release(t, must(t, large))
	release(t, must(t, small))
	expectFree(t, m, key)
}

func semaphoreCancelledLarge(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 3)
	p := permits(t, sem, 1)
	ctx, cancel := context.WithCancel(t.Context())
	large := asks(t, ctx, m, sem, key, 3)
	a, b := asks(t, t.Context(), m, sem, key, 1), asks(t, t.Context(), m, sem, key, 1)
	cancel()
	if r := receive(t, large); !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v", r.err)
	}
	first, second := must(t, a), must(t, b)
	if first.Token() != second.Token() {
		t.Errorf("let in by two writes: %d, %d", first.Token(), second.Token())
	}
	for _, q := range []*primitives.Permit{p, first, second} {
		release(t, q)
	}
}

func semaphoreTooLarge(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 2)
	if _, err := sem.AcquireN(waitContext(t), 3); !errors.Is(err, fabric.ErrTooLarge) {
		t.Errorf("of a free one: %v", err)
	}
	p := permits(t, sem, 1)
	if _, err := sem.AcquireN(waitContext(t), 3); !errors.Is(err, fabric.ErrTooLarge) || !errors.Is(err, fabric.ErrNotAcquired) {
		t.Errorf("%v", err)
	}
	waitQueue(t, m, key, 0)
	release(t, permits(t, sem, 1))
	release(t, p)
}

func semaphoreSizes(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	p := permits(t, primitives.NewSemaphore(m, key, 3), 1)
	other := primitives.NewSemaphore(s.manager(t), key, 4)
	var mismatch *fabric.SizeMismatchError
	if _, err := other.Acquire(waitContext(t)); !errors.As(err, &mismatch) || !errors.Is(err, fabric.ErrSizeMismatch) || mismatch.Have != 3 || mismatch.Want != 4 {
		t.Errorf("%v", err)
	}
	release(t, p)
	release(t, permits(t, other, 4)) // a name that nobody uses has no size
}

func semaphoreResize(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 2)
	p := permits(t, sem, 2)
	one, three := asks(t, t.Context(), m, sem, key, 1), asks(t, t.Context(), m, sem, key, 1)
	resize := func(n int) {
		t.Helper()
		if err := sem.Resize(waitContext(t), n); err != nil {
			t.Fatalf("resize: %v", err)
		}
	}
	resize(4)
	a, b := must(t, one), must(t, three)
	large, small := asks(t, t.Context(), m, sem, key, 3), asks(t, t.Context(), m, sem, key, 1)
	resize(1)
	if r := receive(t, large); !errors.Is(r.err, fabric.ErrTooLarge) {
		t.Errorf("more than the new size: %v", r.err)
	}
	waitQueue(t, m, key, 1)
	release(t, p)
	release(t, a)
	waitInfo(t, m, key, "nobody let in at the size", func(i fabric.Info) bool { return i.Size == 1 && i.Taken == 1 && len(i.Waiters) == 1 })
	release(t, b)
	c := must(t, small)
	// Nobody has to agree with the first size any more, and the new one stays without users.
	release(t, permitsAfter(t, primitives.NewSemaphore(m, key, 9), c))
	if info := read(t, m, key); info.Size != 1 || info.Initial != 2 {
		t.Errorf("%+v", info)
	}
	if err := sem.Delete(waitContext(t)); err != nil {
		t.Error(err)
	}
	expectFree(t, m, key)
	resize(5) // of a name that nobody uses
	if info := read(t, m, key); info.Size != 5 || info.Initial != 2 {
		t.Errorf("%+v", info)
	}
	if err := sem.Delete(waitContext(t)); err != nil {
		t.Error(err)
	}
}

// permitsAfter acquires one permit after another one was released.
func permitsAfter(t *testing.T, s *primitives.Semaphore, before *primitives.Permit) *primitives.Permit {
	t.Helper()
	release(t, before)
	return permits(t, s, 1)
}

func semaphorePart(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 5)
	p := permits(t, sem, 5)
	wait := asks(t, t.Context(), m, sem, key, 2)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.ReleaseN(ended, 3); err != nil || p.Permits() != 2 {
		t.Errorf("%v, %d", err, p.Permits())
	}
	release(t, must(t, wait))
	if err := p.ReleaseN(t.Context(), 3); !errors.Is(err, fabric.ErrInvalidOption) || p.Permits() != 2 {
		t.Errorf("more than it has: %v", err)
	}
	taken(t, m, key, 2)
	if err := p.ReleaseN(t.Context(), 2); err != nil || !errors.Is(p.Err(), fabric.ErrReleased) {
		t.Errorf("the rest: %v, %v", err, p.Err())
	}
	expectFree(t, m, key)
	p = permits(t, sem, 5)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := p.ReleaseN(t.Context(), 1); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	taken(t, m, key, 1)
	release(t, p)
}

func semaphoreDrain(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 5)
	p := permits(t, sem, 2)
	all, err := sem.Drain(waitContext(t))
	if err != nil || all.Permits() != 3 {
		t.Fatalf("%v", err)
	}
	taken(t, m, key, 5)
	if _, err := sem.Drain(waitContext(t)); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("%v", err)
	}
	release(t, p)
	release(t, all)
	expectFree(t, m, key)
}

func semaphoreDelete(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	sem := primitives.NewSemaphore(m, key, 2)
	if err := sem.Delete(waitContext(t)); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	p := permits(t, sem, 1)
	if err := sem.Delete(waitContext(t)); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("in use: %v", err)
	}
	if info, err := sem.State(waitContext(t)); err != nil || info.Size != 2 || info.Taken != 1 || len(info.Holders) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	release(t, p)
}

func semaphoreKind(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l, err := m.Acquire(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	sem := primitives.NewSemaphore(m, key, 2)
	for what, err := range map[string]error{"acquire": second(sem.Acquire(waitContext(t))), "resize": sem.Resize(waitContext(t), 3), "delete": sem.Delete(waitContext(t))} {
		if !errors.Is(err, fabric.ErrKindMismatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	release(t, l)
}

func semaphoreCrash(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	dying := primitives.NewSemaphore(s.manager(t), key, 3, fabric.WithTTL(300*time.Millisecond), fabric.WithAutoRenew(false))
	p := permits(t, dying, 2)
	rest := permits(t, primitives.NewSemaphore(m, key, 3), 1)
	q := permits(t, primitives.NewSemaphore(m, key, 3), 2)
	select {
	case <-p.Lost():
	default:
		t.Error("the permits were granted to others before their holder knew")
	}
	if err := p.ReleaseN(t.Context(), 1); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("partial release after the loss: %v", err)
	}
	if err := p.Release(t.Context()); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("release after the loss: %v", err)
	}
	taken(t, m, key, 3)
	release(t, q)
	release(t, rest)
}

// semaphoreNeverMore has goroutines of several managers take permits at random, and give some back early.
func semaphoreNeverMore(t *testing.T, s *site) {
	key := s.key(t)
	const size = 3
	var out atomic.Int64
	var all sync.WaitGroup
	for i := range 4 {
		m := s.manager(t)
		sem := primitives.NewSemaphore(m, key, size)
		for range 3 {
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			all.Go(func() {
				for range 8 {
					n := 1 + rng.IntN(size)
					p, err := sem.AcquireN(waitContext(t), n)
					if err != nil {
						t.Error(err)
						return
					}
					if now := out.Add(int64(n)); now > size {
						t.Errorf("%d permits out", now)
					}
					if n > 1 {
						out.Add(-1)
						if err := p.ReleaseN(t.Context(), 1); err != nil && !errors.Is(err, fabric.ErrUncertain) {
							t.Error(err)
						}
						n--
					}
					out.Add(int64(-n))
					if err := p.Release(t.Context()); err != nil && !errors.Is(err, fabric.ErrUnconfirmed) { // goes on
						t.Error(err)
					}
				}
			})
		}
	}
	all.Wait()
	waitInfo(t, s.manager(t), key, "all is returned", func(i fabric.Info) bool { return i.Kind == "" })
}

func ExampleSemaphore() {
	ctx := context.Background()
	m, stop := embed(ctx)
	defer stop()
	downloads := primitives.NewSemaphore(m, "downloads", 3)
	p, err := downloads.AcquireN(ctx, 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = downloads.TryAcquireN(ctx, 2)
	fmt.Println(p.Permits(), errors.Is(err, fabric.ErrHeld))
	fmt.Println(p.Release(ctx))
	// Output:
	// 2 true
	// <nil>
}
