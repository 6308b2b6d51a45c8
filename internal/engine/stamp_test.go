package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

type proved struct {
	ok  bool
	err error
}

func proveAsync(ctx context.Context, e *Engine, rev uint64, opt ProveOptions) <-chan proved {
	done := make(chan proved, 1)
	go func() {
		ok, err := e.Prove(ctx, "k", rev, opt)
		done <- proved{ok, err}
	}()
	return done
}

// meet gives the next writes these faults.
func (b *bucket) meet(faults ...fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes = 0
	b.fault = func(n int) fault {
		if n > len(faults) {
			return pass
		}
		return faults[n-1]
	}
}

func stamp(t *testing.T, e *Engine) uint64 {
	t.Helper()
	_, rev, err := e.Stamp(t.Context(), "k", false)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func expectProof(t *testing.T, e *Engine, rev uint64, want bool) {
	t.Helper()
	if ok, err := e.Prove(t.Context(), "k", rev, ProveOptions{}); err != nil || ok != want {
		t.Errorf("at revision %d: %v, %v, want %v", rev, ok, err, want)
	}
}

// The cost of a stamp and its proof: a read for the first stamp, a marker if nothing is stored, and a write for each
// proof. A state that was proved, or is watched, counts as the newest until a proof fails.
func TestStampCosts(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		expect := func(what string, writes, reads int) {
			t.Helper()
			if w, _, r := b.counts(); w != writes || r != reads {
				t.Errorf("%s: %d writes and %d reads in all, want %d and %d", what, w, r, writes, reads)
			}
		}
		first := stamp(t, e)
		expect("never used", 1, 1)
		expectProof(t, e, first, true)
		expect("its proof", 2, 1)
		if again := stamp(t, e); again != first {
			t.Errorf("stamp at %d after %d was proved", again, first)
		}
		expect("once more", 2, 1)
		b.apply("k", acquireOp("L2.1"))
		b.apply("k", releaseOp("L2.1"))
		expectProof(t, e, first, false)
		expect("a proof that fails", 3, 1)
		second := stamp(t, e)
		expect("after that", 3, 2)
		expectProof(t, e, first, false)
		expect("known to be old", 3, 2)
		expectProof(t, e, second, true)
		expect("the second proof", 4, 2)

		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		held := must(t, out, err).Revision
		stop := e.WatchHold("k", "L1.1", 0, held, func(error) {})
		defer stop()
		synctest.Wait()
		rec, rev, err := e.Stamp(t.Context(), "k", false)
		if err != nil || rev != held || len(rec.Holders) != 1 {
			t.Errorf("a watched key: %v at %d, %v", rec, rev, err)
		}
		expect("a watched key", 5, 2)
	})
}

// M42: absence is no stamp, because it comes back: when all markers have expired, the key looks as if it
// was never held.
func TestM42_NoStampAtRevisionZero(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		rev := stamp(t, e)
		if is := b.peek("k"); rev == 0 || is.Revision != rev || !is.Deleted {
			t.Fatalf("stamp at %d over %+v", rev, is)
		}
		b.apply("k", acquireOp("L2.1"))
		b.apply("k", releaseOp("L2.1"))
		b.mu.Lock()
		delete(b.entries, "k") // the marker has expired
		b.mu.Unlock()
		expectProof(t, e, rev, false)
	})
}

// The first call of Stamp puts the marker, whether the key is used meanwhile or not.
func TestStampMeetsOthers(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 1)
		go func() {
			<-b.arrived // the marker
			b.apply("k", acquireOp("L2.1"))
			close(b.block)
		}()
		rec, rev, err := e.Stamp(t.Context(), "k", false)
		if err != nil || rec == nil || len(rec.Holders) != 1 || rev != b.peek("k").Revision {
			t.Errorf("%+v at %d, %v", rec, rev, err)
		}
	})
}

// M40: only a quorum proves. A deposed leader answers reads with an old state, but the answer to a
// check comes from the new leader or not at all.
func TestM40_NoValidityFromReads(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		was := b.put("k", nil)
		old := b.peek("k")
		b.apply("k", acquireOp("L2.1"))
		b.mu.Lock()
		b.stale = &old
		b.mu.Unlock()
		if rev := stamp(t, e); rev != was {
			t.Fatalf("stamp at %d", rev)
		}
		expectProof(t, e, was, false)
		expectProof(t, e, stamp(t, e), false)
	})
}

// M44: a check is repeated until an answer comes, and one that arrives late changes nothing. An answered
// repetition proves only its own time.
func TestM44_ARetryOnlyMakesFalseOfTrue(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		rev := stamp(t, e)
		b.meet(loseReply, late)
		expectProof(t, e, rev, true)
		if b.checks != 3 {
			t.Errorf("%d checks", b.checks)
		}
		b.deliverLate()
		if is := b.peek("k").Revision; is != rev {
			t.Errorf("the key was at %d and is at %d", rev, is)
		}
		expectProof(t, e, rev, true)

		b.meet(loseReply)
		lost := proveAsync(t.Context(), e, rev, ProveOptions{})
		synctest.Wait()
		b.put("k", nil) // after the check whose answer is lost
		if got := <-lost; got.ok || got.err != nil {
			t.Errorf("written before the repetition: %v", got)
		}
	})
}

// M39: one process has one check of a key under way at a time; calls that come meanwhile share the next one.
func TestM39_ChecksOfOneKeyAreShared(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		rev := stamp(t, e)
		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 100)
		all := []<-chan proved{proveAsync(t.Context(), e, rev, ProveOptions{})}
		<-b.arrived
		for range 20 {
			all = append(all, proveAsync(t.Context(), e, rev, ProveOptions{}))
		}
		synctest.Wait()
		close(b.block)
		for _, c := range all {
			if got := <-c; !got.ok || got.err != nil {
				t.Error(got)
			}
		}
		if b.checks != 2 || b.mostChecking != 1 {
			t.Errorf("%d checks, %d at a time", b.checks, b.mostChecking)
		}
	})
}

// A proof is never older than its call: a call during a check does not get that check's answer.
func TestAProofIsYoungerThanItsQuestion(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		rev := stamp(t, e)
		b.replies = make(chan struct{})
		first := proveAsync(t.Context(), e, rev, ProveOptions{})
		synctest.Wait() // it is right, and the answer on its way
		b.put("k", nil)
		second := proveAsync(t.Context(), e, rev, ProveOptions{})
		synctest.Wait()
		close(b.replies)
		if got := <-first; !got.ok || got.err != nil {
			t.Errorf("first: %v", got)
		}
		if got := <-second; got.ok || got.err != nil {
			t.Errorf("second: %v", got)
		}
	})
}

// M39: checks leave room for writes: from 2 ms up to 50 ms after each busy answer. After Patience
// busy answers a check gives up.
func TestM39_ChecksYield(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		rev := stamp(t, e)
		b.fault = func(int) fault { return busy }
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if ok, err := e.Prove(ctx, "k", rev, ProveOptions{}); ok || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, %v", ok, err)
		}
		if b.checks < 20 || b.checks > 90 {
			t.Errorf("%d checks in two seconds", b.checks)
		}
		synctest.Wait()
		b.checks = 0
		ok, err := e.Prove(t.Context(), "k", rev, ProveOptions{Patience: 5})
		if ok || !errors.Is(err, ErrUnavailable) || !errors.Is(err, jskv.ErrBusy) || b.checks != 5 {
			t.Errorf("%v, %v after %d checks", ok, err, b.checks)
		}
		// After answered checks there are pauses, too, shorter and shorter.
		b.fault = nil
		for n := range 20 {
			begun := time.Now()
			expectProof(t, e, rev, true)
			if took := time.Since(begun); n < 2 && took < 10*time.Millisecond || n > maxBusy && took > leastProofPause {
				t.Errorf("check %d took %v", n, took)
			}
		}
	})
}

// A bucket that acknowledges a write at a revision that was seen before is not the one that was opened.
func TestAProofOfABucketThatWasSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, suspected := newBucket(t), 0
		e := New(Config{Store: b, Watcher: b, Observer: &observer{}, Suspect: func() { suspected++ }})
		defer e.Close()
		rev := stamp(t, e)
		out, err := Do(t.Context(), e, "other", acquireOp("L1.1"), Options{})
		must(t, out, err)
		b.mu.Lock()
		b.seq = rev // the record is as it was
		b.mu.Unlock()
		expectProof(t, e, rev, false)
		if suspected == 0 {
			t.Error("nobody is told")
		}
	})
}

func TestProofsEndWithTheirCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		e := New(Config{Store: b, Watcher: b, Observer: &observer{}})
		rev := stamp(t, e)
		b.fault = func(int) fault { return lose }
		ctx, cancel := context.WithCancel(t.Context())
		given := proveAsync(ctx, e, rev, ProveOptions{})
		kept := proveAsync(t.Context(), e, rev, ProveOptions{})
		fast := proveAsync(t.Context(), e, rev, ProveOptions{FailFast: true})
		synctest.Wait()
		cancel()
		if got := <-given; got.ok || !errors.Is(got.err, context.Canceled) {
			t.Error(got)
		}
		if got := <-fast; got.ok || !errors.Is(got.err, ErrUnavailable) {
			t.Error(got)
		}
		e.Close()
		if got := <-kept; got.ok || !errors.Is(got.err, ErrClosed) {
			t.Error(got)
		}
		if _, err := e.Prove(t.Context(), "k", rev, ProveOptions{}); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, _, err := e.Stamp(t.Context(), "j", false); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// M45: a try with Base is granted only over that revision, even if a newer state is equal.
func TestM45_ATryOverARevisionNeverMovesOn(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		over := func(id string, rev uint64) error {
			op := tryOp(id)
			op.Base = rev
			_, err := Do(t.Context(), e, "k", op, Options{AtLeast: rev})
			return err
		}
		changed := func(err error) bool {
			var refused *RefusedError
			return errors.As(err, &refused) && refused.Verdict == record.Stale
		}
		first := stamp(t, e)
		b.apply("k", acquireOp("L2.1"))
		b.apply("k", releaseOp("L2.1"))
		if err := over("L1.1", first); !changed(err) {
			t.Errorf("changed and changed back: %v", err)
		}
		second := b.peek("k").Revision
		writes, _, _ := b.counts()
		if err := over("L1.2", second); err != nil {
			t.Errorf("unchanged: %v", err)
		}
		if after, _, _ := b.counts(); after != writes+1 {
			t.Errorf("%d writes", after-writes)
		}
		if err := over("L1.3", second); !changed(err) {
			t.Errorf("changed by this process: %v", err)
		}
		out, err := Do(t.Context(), e, "k", releaseOp("L1.2"), Options{})
		must(t, out, err)

		// The answer is lost: the record shows the outcome.
		third := stamp(t, e)
		b.meet(loseReply)
		if err := over("L1.4", third); err != nil {
			t.Errorf("committed, without an answer: %v", err)
		}
	})
}
