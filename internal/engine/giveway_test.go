package engine

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// processes returns an engine for each of n processes, which reach one bucket over a link of 0.3 ms.
func processes(t *testing.T, n int) (*bucket, []*Engine) {
	b := newBucket(t)
	all := make([]*Engine, n)
	for i := range all {
		l := &link{bucket: b}
		l.set(300*time.Microsecond, 300*time.Microsecond)
		all[i] = New(Config{Store: l, Watcher: b, Observer: &observer{}})
	}
	return b, all
}

// Of many requests at the same moment each tries only a few times, since those that would only queue pause.
func TestACrowdThatComesAtOnceGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 64
		b, all := processes(t, n)
		var wg sync.WaitGroup
		for i, e := range all {
			wg.Go(func() {
				op := acquireOp(record.ID("L", uint64(i+1)))
				if _, err := Do(t.Context(), e, "k", op, Options{}); err != nil {
					t.Error(err)
				}
				if _, err := Do(t.Context(), e, "k", releaseOp(op.ID), Options{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, e := range all {
			e.Close()
		}
		writes, commits, _ := b.counts()
		t.Logf("%d writes, of which %d committed", writes, commits)
		if commits != 2*n {
			t.Errorf("%d commits", commits)
		}
		if refused := writes - commits; refused > 10*n {
			t.Errorf("%d writes of %d processes were refused", refused, n)
		}
	})
}

// meddled is a link on which another process writes first, each time, while meddle is set.
type meddled struct {
	link
	meddle func()
}

func (m *meddled) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	if m.meddle != nil {
		m.meddle()
	}
	return m.link.Update(ctx, key, value, rev, ttl)
}

// A request that pauses after a conflict does not delay another one of its process.
func TestAReleaseDoesNotWaitForOneThatGivesWay(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket(t)
			m := &meddled{link: link{bucket: b}}
			m.set(10*time.Millisecond, 10*time.Millisecond)
			e := New(Config{Store: m, Watcher: b, Observer: &observer{}})
			defer e.Close()
			holder, waiter := acquireOp("L.1"), acquireOp("L.2")
			if _, err := Do(t.Context(), e, "k", holder, Options{}); err != nil {
				t.Fatal(err)
			}
			b.apply("k", acquireOp("O.1"))
			m.meddle = func() { b.apply("k", acquireOp("P.1")); b.apply("k", releaseOp("P.1")) }
			done := make(chan error, 1)
			go func() {
				_, err := Do(t.Context(), e, "k", waiter, Options{})
				done <- err
			}()
			time.Sleep(200 * time.Millisecond) // many attempts
			w := e.lock("k")
			for !w.retrySet || w.running {
				w.mu.Unlock()
				time.Sleep(time.Millisecond)
				w = e.lock("k")
			}
			m.meddle = nil
			begun, released := time.Now(), make(chan error, 1)
			w.accept(&Request{Key: "k", Op: releaseOp("L.1"), Done: func(_ Outcome, err error) { released <- err }})
			w.mu.Unlock()
			if err := <-released; err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took > 20*time.Millisecond { // a read and a write
				t.Errorf("the release took %v", took)
			}
			if rec := b.record("k"); len(rec.Waiters) != 1 || rec.Waiters[0].ID != waiter.ID {
				t.Errorf("the waiter went not with it: %+v", rec.Waiters)
			}
			b.apply("k", releaseOp("O.1"))
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Who would only queue pauses for several answer times after conflicts in a row: where answers are slow because very many try,
// the holder could not release otherwise.
func TestPauseOfWhoQueuesFollowsTheAnswers(t *testing.T) {
	longest := func(conflicts int, took time.Duration) (most time.Duration) {
		for range 200 {
			b := backoff{conflicts: conflicts - 1}
			most = max(most, b.queuePause(1, took))
		}
		return most
	}
	if d := longest(9, 300*time.Microsecond); d > maxQueuePause {
		t.Errorf("a pause of %v where answers take 0.3 ms", d)
	}
	if d := longest(1, 200*time.Millisecond); d > 200*time.Millisecond {
		t.Errorf("a pause of %v after the first conflict", d)
	}
	if d := longest(9, 200*time.Millisecond); d < time.Second {
		t.Errorf("no pause of nine conflicts is longer than %v, where answers take 0.2 s", d)
	}
}
