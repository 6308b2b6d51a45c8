package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// The behaviours of TestLock that are about waiting.

func cancelledWhileQueued(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := acquire(t, s.manager(t), key)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	first := queue(t, ctx, m, key)
	second := queue(t, waitContext(t), s.manager(t), key)
	cancel()
	if g := receive(t, first); !errors.Is(g.err, context.Canceled) || !errors.Is(g.err, fabric.ErrNotAcquired) || g.lock != nil {
		t.Fatalf("cancelled: %+v", g)
	}
	waitQueue(t, m, key, 1)
	release(t, holder)
	release(t, granted(t, second))
	expectFree(t, m, key)
}

func queueVisible(t *testing.T, s *site) {
	key, watcher := s.key(t), s.manager(t)
	holder := acquire(t, s.manager(t), key)
	m := []*fabric.Manager{s.manager(t), s.manager(t)}
	var waits []<-chan grant
	for i := range 4 {
		waits = append(waits, queue(t, waitContext(t), m[i%2], key, fabric.WithOwner(fmt.Sprint("w", i))))
	}
	info := inspect(t, watcher, key)
	if len(info.Waiters) != 4 || len(info.Holders) != 1 || info.Holders[0].Owner != holder.Owner() {
		t.Fatalf("%+v", info)
	}
	var last uint64
	for i, w := range info.Waiters {
		if w.Owner != fmt.Sprint("w", i) || w.Queued <= last || w.Token != 0 || w.Lease.State != "live" {
			t.Errorf("position %d: %+v", i, w)
		}
		last = w.Queued
	}
	release(t, holder)
	for i, w := range waits {
		l := granted(t, w)
		eventually(t, fmt.Sprintf("%d waiters behind w%d", 3-i, i), func() bool {
			return len(inspect(t, watcher, key).Waiters) == 3-i // the record follows a turn
		})
		release(t, l)
	}
}

func handsOver(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := acquire(t, m, key)
	first := queue(t, waitContext(t), s.manager(t), key)
	second := queue(t, waitContext(t), m, key)
	release(t, holder)
	l := granted(t, first)
	expectHolder(t, m, key, l)
	if l.Token() <= holder.Token() {
		t.Errorf("token %d after %d", l.Token(), holder.Token())
	}
	select {
	case g := <-second:
		t.Fatalf("the second waiter got %+v while the first holds", g)
	default:
	}
	release(t, l)
	release(t, granted(t, second))
}

func fifo(t *testing.T, s *site) {
	const n, processes = 50, 5
	key := s.key(t)
	var m [processes]*fabric.Manager
	for i := range m {
		m[i] = s.manager(t)
	}
	holder := acquire(t, m[0], key)
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	last := holder.Token()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	progress := time.AfterFunc(time.Hour, cancel) // patience counts from the release, and again from each grant
	defer progress.Stop()
	for i := range n {
		wg.Go(func() {
			l, err := m[i%processes].Acquire(ctx, key)
			if err != nil {
				t.Errorf("waiter %d: %v", i, err)
				return
			}
			progress.Reset(patience)
			mu.Lock()
			order = append(order, i)
			if l.Token() <= last {
				t.Errorf("waiter %d: token %d after %d", i, l.Token(), last)
			}
			last = l.Token()
			mu.Unlock()
			if err := l.Release(waitContext(t)); err != nil {
				t.Errorf("waiter %d: %v", i, err)
			}
		})
		waitQueue(t, m[1], key, i+1)
	}
	progress.Reset(patience)
	release(t, holder)
	wg.Wait()
	for i, got := range order {
		if got != i {
			t.Fatalf("order of grants: %v", order)
		}
	}
}

func timedAcquire(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := acquire(t, s.manager(t), key)
	const limit = 300 * time.Millisecond
	start := time.Now()
	_, err := m.Acquire(waitContext(t), key, fabric.WithWaitLimit(limit))
	took := time.Since(start)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fabric.ErrNotAcquired) || took < limit {
		t.Errorf("WithWaitLimit(%v): %v after %v", limit, err, took)
	}
	start = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err = m.Acquire(ctx, key)
	took = time.Since(start)
	var na *fabric.NotAcquiredError
	if !errors.As(err, &na) || na.Key != key || !errors.Is(err, context.DeadlineExceeded) || took < limit {
		t.Errorf("a context with a deadline in %v: %v after %v", limit, err, took)
	}
	expectHolder(t, m, key, l)
	waitQueue(t, m, key, 0) // after half a second what is left is taken back in the background
}

func largerTokens(t *testing.T, s *site) {
	key := s.key(t)
	managers := []*fabric.Manager{s.manager(t), s.manager(t)}
	var last uint64
	for i := range 20 {
		l := acquire(t, managers[i%2], key)
		if l.Token() <= last {
			t.Errorf("token %d after %d", l.Token(), last)
		}
		last = l.Token()
		release(t, l)
	}
}

// queueBehind is queue behind a hold that may be lost at any moment, because its TTL is short.
func queueBehind(t testing.TB, m *fabric.Manager, held *fabric.Lock) <-chan grant {
	t.Helper()
	out := acquireAsync(waitContext(t), m, held.Key())
	eventually(t, "a waiter", func() bool { return held.Err() != nil || len(inspect(t, m, held.Key()).Waiters) == 1 })
	return out
}
