package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
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
