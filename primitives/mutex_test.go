package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestMutexConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"lock and unlock, one write each", mutexLockUnlock},
		{"try of a free and of a held one", mutexTry},
		{"timed out and cancelled waits leave the queue", mutexGiveUp},
		{"the same owner again is refused", mutexSameOwner},
		{"release twice, and by a former holder", mutexReleaseTwice},
		{"release after loss leaves the successor alone", mutexReleaseAfterLoss},
		{"FIFO among 50 waiters from several processes", mutexFIFO},
		{"tokens rise", mutexTokens},
		{"an operator's release closes Lost", mutexForced},
		{"another kind of the same name is refused", mutexKind},
		{"Do unlocks whatever happens", mutexDo},
		{"Locker excludes", mutexLocker},
	}, bothRoadsOfThree)
}

func lock(t testing.TB, mu *primitives.Mutex) *primitives.Lock {
	t.Helper()
	l, err := mu.Lock(waitContext(t))
	if err != nil {
		t.Fatalf("lock: %v", err)
	}
	return l
}

func mutexLockUnlock(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	mu := primitives.NewMutex(m, key)
	release(t, lock(t, mu)) // opens what is opened once
	if n := writes(func() {
		l := lock(t, mu)
		if l.Mode() != fabric.Exclusive || l.Err() != nil || l.Key() != key {
			t.Errorf("%s, %v, %s", l.Mode(), l.Err(), l.Key())
		}
		release(t, l)
	}, m); n.not(2) {
		t.Errorf("%d writes, want 2", n)
	}
	expectFree(t, m, key)
}

func mutexTry(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	mu := primitives.NewMutex(m, key, fabric.WithOwner("alice"))
	l, err := mu.TryLock(waitContext(t))
	if err != nil {
		t.Fatal(err)
	}
	other := primitives.NewMutex(s.manager(t), key)
	var held *fabric.HeldError
	if _, err := other.TryLock(waitContext(t)); !errors.Is(err, fabric.ErrHeld) || !errors.As(err, &held) || held.Owner != "alice" || held.Token != l.Token() {
		t.Errorf("%v", err)
	}
	if info := read(t, m, key); len(info.Waiters) > 0 {
		t.Errorf("a try waits: %+v", info)
	}
	release(t, l)
}

func mutexGiveUp(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := lock(t, primitives.NewMutex(m, key))
	other := primitives.NewMutex(s.manager(t), key)
	began := time.Now()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := other.Lock(short); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	cancelled, cancel := context.WithCancel(t.Context())
	wait := async(func() (*primitives.Lock, error) { return other.Lock(cancelled) })
	waitQueue(t, m, key, 1)
	cancel()
	if r := receive(t, wait); !errors.Is(r.err, context.Canceled) || !errors.Is(r.err, fabric.ErrNotAcquired) {
		t.Errorf("%v", r.err)
	}
	waitQueue(t, m, key, 0)
	if _, err := other.Lock(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	release(t, l)
	expectFree(t, m, key)
}

func mutexSameOwner(t *testing.T, s *site) {
	key := s.key(t)
	l := lock(t, primitives.NewMutex(s.manager(t), key, fabric.WithOwner("alice")))
	if _, err := primitives.NewMutex(s.manager(t), key, fabric.WithOwner("alice")).Lock(waitContext(t)); !errors.Is(err, fabric.ErrAlreadyHeld) {
		t.Errorf("%v", err)
	}
	release(t, l)
}

func mutexReleaseTwice(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	mu := primitives.NewMutex(m, key)
	l := lock(t, mu)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Release(ended); err != nil {
		t.Errorf("under a context that has ended: %v", err)
	}
	next := lock(t, mu)
	if err := l.Release(t.Context()); err != nil || !errors.Is(l.Err(), fabric.ErrReleased) {
		t.Errorf("again: %v, %v", err, l.Err())
	}
	if info := read(t, m, key); len(info.Holders) != 1 || info.Holders[0].ID != next.ID() {
		t.Errorf("held by %+v", info.Holders)
	}
	release(t, next)
}

func mutexReleaseAfterLoss(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := lock(t, primitives.NewMutex(m, key, fabric.WithTTL(300*time.Millisecond), fabric.WithAutoRenew(false)))
	next := lock(t, primitives.NewMutex(s.manager(t), key))
	if next.Token() <= l.Token() {
		t.Errorf("token %d after %d", next.Token(), l.Token())
	}
	if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("%v", err)
	}
	if info := read(t, m, key); len(info.Holders) != 1 || info.Holders[0].ID != next.ID() {
		t.Errorf("held by %+v", info.Holders)
	}
	release(t, next)
}

func mutexFIFO(t *testing.T, s *site) {
	key := s.key(t)
	var managers []*fabric.Manager // of each, 16 waiters at a time stand in the record
	for range 5 {
		managers = append(managers, s.manager(t))
	}
	first := lock(t, primitives.NewMutex(managers[0], key))
	order := make(chan int, 50)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	progress := time.AfterFunc(time.Hour, cancel) // patience counts from the release, and again from each grant
	defer progress.Stop()
	for i := range 50 {
		all.Go(func() {
			err := primitives.NewMutex(managers[i%5], key).Do(ctx, func(context.Context, *primitives.Lock) error {
				progress.Reset(patience)
				order <- i
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		waitQueue(t, managers[0], key, i+1)
	}
	progress.Reset(patience)
	release(t, first)
	all.Wait()
	for i := range 50 {
		if got := <-order; got != i {
			t.Fatalf("waiter %d was granted in place %d", got, i)
		}
	}
}

func mutexTokens(t *testing.T, s *site) {
	key := s.key(t)
	mus := []*primitives.Mutex{primitives.NewMutex(s.manager(t), key), primitives.NewMutex(s.manager(t), key)}
	last := uint64(0)
	for i := range 6 {
		l := lock(t, mus[i%2])
		if l.Token() <= last {
			t.Errorf("token %d after %d", l.Token(), last)
		}
		last = l.Token()
		release(t, l)
	}
}

func mutexForced(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := lock(t, primitives.NewMutex(m, key))
	if n, err := s.manager(t).ForceRelease(waitContext(t), key); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	receive(t, l.Lost())
	if !errors.Is(l.Err(), fabric.ErrLost) || !errors.Is(context.Cause(l.Context()), fabric.ErrLost) {
		t.Errorf("%v", l.Err())
	}
	release(t, lock(t, primitives.NewMutex(m, key)))
}

func mutexKind(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := lock(t, primitives.NewMutex(m, key))
	if _, err := m.Claim(waitContext(t), key, fabric.Claim{Kind: fabric.KindSemaphore, Permits: 1, Limit: 1}); !errors.Is(err, fabric.ErrKindMismatch) {
		t.Errorf("%v", err)
	}
	release(t, l)
	h, err := m.Claim(waitContext(t), key, fabric.Claim{Kind: fabric.KindSemaphore, Permits: 1, Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := primitives.NewMutex(m, key).Lock(waitContext(t)); !errors.Is(err, fabric.ErrKindMismatch) {
		t.Errorf("%v", err)
	}
	release(t, h)
}

func mutexDo(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	mu := primitives.NewMutex(m, key)
	failed := errors.New("failed")
	if err := mu.Do(waitContext(t), func(ctx context.Context, l *primitives.Lock) error {
		if l.Err() != nil || ctx.Err() != nil {
			t.Error(l.Err(), ctx.Err())
		}
		return failed
	}); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	func() {
		defer func() {
			if fmt.Sprint(recover()) != "oh" {
				t.Error("the panic was lost")
			}
		}()
		_ = mu.Do(waitContext(t), func(context.Context, *primitives.Lock) error { panic("oh") })
	}()
	expectFree(t, m, key)
}

func mutexLocker(t *testing.T, s *site) {
	key := s.key(t)
	var n, inside atomic.Int32
	var all sync.WaitGroup
	shared := primitives.NewMutex(s.manager(t), key).Locker()
	for _, l := range []sync.Locker{shared, shared, primitives.NewMutex(s.manager(t), key).Locker()} {
		all.Go(func() {
			for range 10 {
				l.Lock()
				if inside.Add(1) > 1 {
					t.Error("two inside")
				}
				n.Add(1)
				inside.Add(-1)
				l.Unlock()
			}
		})
	}
	all.Wait()
	if n.Load() != 30 {
		t.Errorf("%d of 30", n.Load())
	}
}

// A Locker whose Lock could never return says so.
func TestLockerThatCanNeverLockPanics(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t)
		closed := s.manager(t)
		_ = closed.Close()
		for why, mu := range map[string]*primitives.Mutex{
			"bad name":   primitives.NewMutex(m, ""),
			"bad option": primitives.NewMutex(m, s.key(t), fabric.WithTTL(-1)),
			"closed":     primitives.NewMutex(closed, s.key(t)),
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: no panic", why)
					}
				}()
				mu.Locker().Lock()
			}()
		}
	})
}
