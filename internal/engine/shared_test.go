package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// A caller that gives up ends only its own wait: other requests of its round are answered
// as if it had stayed, even a fail-fast one, for which an aborted write
// would look like a leader without an answer.
func TestGivingUpLeavesASharedRoundAlone(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.release = make(chan struct{})
		b.fault = func(n int) fault {
			if n == 1 {
				return slow
			}
			return pass
		}
		// The other one submits while a runner works on the key, which has ended by the time
		// that the caller comes: both are in the caller's first round.
		w := e.lock("k")
		w.running = true
		w.mu.Unlock()
		type answer struct {
			out Outcome
			err error
		}
		other := make(chan answer, 1)
		go func() {
			out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{FailFast: true})
			other <- answer{out, err}
		}()
		synctest.Wait()
		w.mu.Lock()
		w.running = false
		w.mu.Unlock()

		ctx, cancel := context.WithCancel(t.Context())
		caller := make(chan error, 1)
		go func() {
			_, err := Do(ctx, e, "k", acquireOp("L1.2"), Options{})
			caller <- err
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(b.release)
		if err := <-caller; !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that gave up: %v", err)
		}
		a := <-other
		must(t, a.out, a.err)
		synctest.Wait()
		if rec := b.record("k"); len(rec.Holders) != 1 || len(rec.Waiters) != 0 {
			t.Errorf("left behind: %+v", rec)
		}
		if writes, commits, _ := b.counts(); writes != commits {
			t.Errorf("%d writes, %d commits", writes, commits)
		}
	})
}

// A hold may be released on several roads: each of them knows then how long it lasted, whichever was first.
func TestHoldTimeOfAReleaseThatComesSecond(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		other := newEngine(t, b, nil)
		defer other.Close()
		do := func(e *Engine, op record.Op) {
			t.Helper()
			if _, err := Do(t.Context(), e, "k", op, Options{}); err != nil {
				t.Fatal(err)
			}
		}
		do(e, acquireOp("A.1"))
		release := releaseOp("A.1")
		release.Hold = time.Second
		do(e, release)
		do(other, release)
		for i, e := range []*Engine{e, other} {
			do(e, acquireOp("B.1"))
			if hold := b.record("k").Hold; hold != time.Second {
				t.Errorf("engine %d knows of holds of %v", i, hold)
			}
			b.apply("k", releaseOp("B.1"))
		}
	})
}
