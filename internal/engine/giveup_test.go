package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// gated is a bucket whose reads each wait for permission.
type gated struct {
	*bucket
	reading chan struct{}
}

func (g *gated) Get(ctx context.Context, key string) (jskv.Entry, error) {
	select {
	case <-g.reading:
		return g.bucket.Get(ctx, key)
	case <-ctx.Done():
		return jskv.Entry{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, ctx.Err())
	}
}

func inGated(t *testing.T, fn func(t *testing.T, e *Engine, g *gated)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		g := &gated{bucket: b, reading: make(chan struct{})}
		e := New(Config{Store: g, Watcher: b, Observer: &observer{}})
		defer e.Close()
		fn(t, e, g)
	})
}

// The bound applies to the call, not to the wait for the answer of its first request, which
// takes longer on a slow link.
func TestADetachedCallIsBoundedFromItsFirstRequestOn(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L1.1"))
		e.cfg.RTT.Observe(time.Minute)
		b.mu.Lock()
		b.fault = func(int) fault { return lose }
		b.mu.Unlock()
		const bound = time.Second
		began := time.Now()
		if _, err := Do(t.Context(), e, "k", releaseOp("L1.1"), Options{Bound: bound}); !errors.Is(err, ErrUnconfirmed) {
			t.Errorf("ended with %v", err)
		}
		if took := time.Since(began); took != bound {
			t.Errorf("it took %v, want %v", took, bound)
		}
		b.mu.Lock()
		b.fault = nil
		b.mu.Unlock()
		time.Sleep(time.Minute)
		if rec := b.record("k"); !rec.Idle() {
			t.Errorf("a ghost holds: %+v", rec)
		}
	})
}

// A release whose caller gives up while even reads fail has written
// nothing, but must go on: its entry is under a live lease.
func TestReleaseThatWasNotWrittenYetGoesOn(t *testing.T) {
	inGated(t, func(t *testing.T, e *Engine, g *gated) {
		g.apply("k", acquireOp("L1.1"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Do(ctx, e, "k", releaseOp("L1.1"), Options{}); !errors.Is(err, ErrUnconfirmed) {
			t.Fatalf("release without a leader: %v", err)
		}
		if e.Unresolved("L1") == 0 {
			t.Error("the release was forgotten")
		}
		close(g.reading) // a leader is back
		time.Sleep(time.Minute)
		if rec := g.record("k"); !rec.Idle() {
			t.Errorf("a ghost holds: %+v", rec)
		}
	})
}

// An acquire that is given up before anything was written has no
// undo, so the round that contains it must leave it out.
func TestAcquireThatWasNotWrittenYetIsNotWrittenLater(t *testing.T) {
	inGated(t, func(t *testing.T, e *Engine, g *gated) {
		g.apply("k", acquireOp("L9.1")) // somebody else holds
		// Another operation is on its way, so that the engine's own goroutine, and
		// not that of the caller, carries out the next one.
		go func() { _, _ = Do(t.Context(), e, "k", releaseOp("L2.1"), Options{}) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := Do(ctx, e, "k", tryOp("L1.1"), Options{})
			ended <- err
		}()
		synctest.Wait()
		g.reading <- struct{}{} // for the first operation
		synctest.Wait()         // the refusal of the try is being checked by another read
		if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		g.apply("k", record.Op{Kind: record.KindLock, Verb: record.OpRelease, ID: "L9.1"})
		close(g.reading) // and shows a lock that is free
		synctest.Wait()
		time.Sleep(time.Minute)
		if rec := g.record("k"); !rec.Idle() {
			t.Errorf("a ghost holds: %+v", rec)
		}
	})
}

// The engine evicts a dead lease for its waiters. If there are none at that
// moment, the next waiter behind it has it evicted all the same.
func TestDeadLeaseIsEvictedForTheNextWaiter(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
		b.apply("k", acquireOp("L9.1"), acquireOp("L8.1")) // one holds, one waits; both of other processes
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = Do(ctx, e, "k", acquireOp("L1.1"), Options{})
		}()
		synctest.Wait()
		o.kill("L9") // not our turn: the engine leaves it to the head of the queue for a moment
		synctest.Wait()
		cancel()
		<-ended
		time.Sleep(time.Second)

		go func() { _, _ = Do(t.Context(), e, "k", acquireOp("L1.2"), Options{}) }()
		synctest.Wait()
		o.kill("L9") // the observer says so at once to whoever asks again
		time.Sleep(time.Second)
		if rec := b.record("k"); len(rec.Holders) != 1 || rec.Holders[0].ID != "L8.1" {
			t.Errorf("the dead one is still there: %+v", rec)
		}
	})
}
