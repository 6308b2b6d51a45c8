package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// in runs a test in a synctest bubble with an engine on a bucket in memory.
func in(t *testing.T, fn func(t *testing.T, e *Engine, b *bucket, o *observer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b, o := newBucket(t), &observer{}
		e := newEngine(t, b, o)
		defer e.Close()
		fn(t, e, b, o)
	})
}

func must(t *testing.T, out Outcome, err error) Outcome {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFreeResourceCostsOneWriteAndNoRead(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		for i := range 10 {
			id := record.ID("L1", uint64(i+1))
			out, err := Do(t.Context(), e, "k", acquireOp(id), Options{})
			if must(t, out, err).Entry.Token != record.Ticket(b.peek("k").Revision, 0) {
				t.Fatalf("token %d, revision %d", out.Entry.Token, b.peek("k").Revision)
			}
			out, err = Do(t.Context(), e, "k", releaseOp(id), Options{})
			if !must(t, out, err).Existed {
				t.Fatal("release found nothing")
			}
		}
		if w, c, r := b.counts(); w != 20 || c != 20 || r != 0 {
			t.Fatalf("%d writes, %d commits, %d reads", w, c, r)
		}
	})
}

func TestOperationsThatMeetAreCombined(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 100)
		var wg sync.WaitGroup
		order := make(chan string, 50)
		do := func(id string) {
			wg.Go(func() {
				if _, err := Do(t.Context(), e, "k", acquireOp(id), Options{}); err != nil {
					t.Error(err)
				}
				order <- id
				if _, err := Do(t.Context(), e, "k", releaseOp(id), Options{}); err != nil {
					t.Error(err)
				}
			})
		}
		do("L1.1")
		<-b.arrived
		for i := range 49 {
			do(record.ID("L1", uint64(i+2)))
			synctest.Wait() // one after the other, so that the order is known
		}
		b.mu.Lock()
		b.arrived = nil
		b.mu.Unlock()
		close(b.block)
		wg.Wait()
		// One write each for the first grant and for every release, which grants
		// the next; the other 49 acquires share one, or join a release.
		if _, commits, _ := b.counts(); commits > 52 {
			t.Errorf("%d commits for 50 acquires and releases", commits)
		}
		for i := range 50 {
			if id := <-order; id != record.ID("L1", uint64(i+1)) {
				t.Fatalf("grant %d went to %s", i, id)
			}
		}
		if e := b.peek("k"); !e.Deleted {
			t.Errorf("left behind: %s", e.Value)
		}
	})
}

func TestUnknownOutcomeIsOneGrant(t *testing.T) {
	for name, f := range map[string]fault{"committed": loseReply, "lost": lose, "late": late} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				b.fault = func(n int) fault {
					if n == 1 {
						return f
					}
					return pass
				}
				out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
				must(t, out, err)
				b.deliverLate()
				rec := b.record("k")
				if len(rec.Holders) != 1 || len(rec.Waiters) != 0 || rec.Holders[0].Token != out.Entry.Token {
					t.Fatalf("token %d, record %+v", out.Entry.Token, rec)
				}
			})
		})
	}
}

// Rule 13.2: a request that was given up may be committed at any later time.
func TestRule2_LateAcquireLeavesNothing(t *testing.T) {
	for name, f := range map[string]fault{"late": late, "lost": lose, "reply lost": loseReply} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				b.fault = func(n int) fault {
					if n == 1 {
						return f
					}
					return pass
				}
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				if _, err := Do(ctx, e, "k", acquireOp("L1.1"), Options{}); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second) // the engine waits for the unanswered write even after callers gave up
				if d := e.Unresolved("L1"); d != 0 {
					t.Fatalf("unresolved for %v", d)
				}
				b.deliverLate()
				if rec := b.record("k"); !rec.Idle() {
					t.Fatalf("a ghost holds: %+v", rec)
				}
			})
		})
	}
}

// Rule 13.2: an id that can't be resolved stays in the ledger until its lease is
// tombstoned.
func TestRule2_LedgerKeepsWhatIsUnresolved(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		reachable := false
		b.fault = func(int) fault {
			if reachable {
				return pass
			}
			return late
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Do(ctx, e, "k", acquireOp("L1.1"), Options{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if d := e.Unresolved("L1"); d < time.Minute {
			t.Fatalf("unresolved for %v, a minute after", d)
		}
		b.mu.Lock()
		reachable = true
		b.mu.Unlock()
		time.Sleep(rtt.Ceiling + 3*time.Second) // a request that is out, and two pauses of at most 1.5 s
		if d := e.Unresolved("L1"); d != 0 {
			t.Fatalf("unresolved for %v", d)
		}
		b.deliverLate()
		if rec := b.record("k"); !rec.Idle() {
			t.Fatalf("a ghost holds: %+v", rec)
		}

		reachable = false
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = Do(ctx, e, "k2", acquireOp("L2.1"), Options{})
		time.Sleep(time.Second)
		e.DropLease("L2")
		if d := e.Unresolved("L2"); d != 0 {
			t.Fatalf("unresolved for %v after the lease's end", d)
		}
	})
}

// Rule 13.2: without a write of its own, a cancel that reads the id as absent
// proves nothing.
func TestRule2_CancelWritesWhenAbsenceIsNotProved(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1")) // somebody else holds
		b.fault = func(n int) fault {
			if n == 1 {
				return pass // expects absence: a conflict
			}
			if n == 2 {
				return late // the enqueueing write
			}
			return pass
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := Do(ctx, e, "k", acquireOp("L1.1"), Options{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // as above
		b.deliverLate()
		rec := b.record("k")
		if len(rec.Waiters) != 0 || len(rec.Holders) != 1 {
			t.Fatalf("a ghost waits: %+v", rec)
		}
		if rec.Holders[0].Token != record.Ticket(1001, 0) {
			t.Fatalf("writing the same record again changed the holder's token to %d", rec.Holders[0].Token)
		}
	})
}

// Rule 13.4: a state older than one that was seen is ignored.
func TestRule4_StaleReadsAreIgnored(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		old := b.peek("k")
		b.apply("k", record.Op{Kind: record.KindLock, Verb: record.OpRelease, ID: "L1.1"}, acquireOp("L9.1"))
		if _, _, err := e.Read(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		b.stale = &old
		b.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if rec, rev, err := e.Read(ctx, "k"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a stale read was believed: %+v at %d, %v", rec, rev, err)
		}
	})
}

// Rule 13.5.
func TestRule5_BusyIsRetried(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.fault = func(n int) fault {
			if n <= 50 {
				return busy
			}
			return pass
		}
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		if w, c, _ := b.counts(); w != 51 || c != 1 {
			t.Fatalf("%d writes, %d commits", w, c)
		}
	})
}

func TestConflictReadsAndAppliesAgain(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		out, err = Do(t.Context(), e, "k", releaseOp("L1.1"), Options{})
		must(t, out, err)
		b.apply("k", acquireOp("L9.1")) // behind the engine's back
		done := make(chan Outcome, 1)
		go func() {
			out, err := Do(t.Context(), e, "k", acquireOp("L1.2"), Options{})
			if err != nil {
				t.Error(err)
			}
			done <- out
		}()
		synctest.Wait()
		if rec := b.record("k"); len(rec.Waiters) != 1 || rec.Waiters[0].ID != "L1.2" {
			t.Fatalf("%+v", rec)
		}
		b.apply("k", releaseOp("L9.1"))
		if out := <-done; out.Revision != b.peek("k").Revision {
			t.Fatalf("%+v", out)
		}
	})
}

func TestRefusalOfATryIsDecidedOnAFreshRead(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1"))
		_, err := Do(t.Context(), e, "k", tryOp("L1.1"), Options{})
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Verdict != record.Held || refused.Blocker.ID != "L9.1" {
			t.Fatal(err)
		}
		b.apply("k", releaseOp("L9.1")) // the cached record still says held
		out, err := Do(t.Context(), e, "k", tryOp("L1.2"), Options{})
		must(t, out, err)
	})
}

func TestUnreadableRecordIsLeftAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		want  error
	}{
		"garbage":      {"not json", record.ErrMalformed},
		"newer schema": {`{"v":99,"kind":"lock"}`, record.ErrNewerSchema},
		"other kind":   {`{"v":3,"kind":"orchard","trees":3}`, record.ErrNewerSchema},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				rev := b.put("k", []byte(tc.value))
				for _, op := range []record.Op{acquireOp("L1.1"), tryOp("L1.2"), {Verb: record.OpRemove}} {
					if _, err := Do(t.Context(), e, "k", op, Options{}); !errors.Is(err, tc.want) {
						t.Errorf("%v: %v", op.Verb, err)
					}
				}
				if e := b.peek("k"); e.Revision != rev || string(e.Value) != tc.value {
					t.Errorf("now %q at %d", e.Value, e.Revision)
				}
			})
		})
	}
}

func TestDeadLeasesAreEvictedTogether(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
		b.apply("k", acquireOp("D0.1"))
		for i := range 20 {
			b.apply("k", acquireOp(fmt.Sprintf("D%d.1", i+1)))
		}
		done := make(chan error, 1)
		go func() {
			_, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
			done <- err
		}()
		synctest.Wait()
		if n := o.observed(); n != 21 {
			t.Fatalf("%d leases are observed, want all 21 ahead", n)
		}
		_, before, _ := b.counts()
		for i := range 21 {
			o.kill(fmt.Sprintf("D%d", i))
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, commits, _ := b.counts(); commits-before > 2 {
			t.Errorf("%d writes to evict 21 dead entries", commits-before)
		}
	})
}

func TestWatchedHoldIsReportedWhenItGoes(t *testing.T) {
	for name, tc := range map[string]struct {
		op   *record.Op
		want error
	}{
		"revoked": {&record.Op{Verb: record.OpRevoke}, ErrRevoked},
		"removed": {&record.Op{Verb: record.OpRemove}, ErrRemoved},
		"deleted": {nil, ErrRemoved},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
				must(t, out, err)
				lost := make(chan error, 1)
				stop := e.WatchHold("k", "L1.1", 0, out.Revision, func(err error) { lost <- err })
				defer stop()
				synctest.Wait()
				select {
				case err := <-lost:
					t.Fatalf("reported early: %v", err)
				default:
				}
				if tc.op != nil {
					b.apply("k", *tc.op)
				} else {
					b.put("k", nil)
				}
				if err := <-lost; !errors.Is(err, tc.want) {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestFailFast(t *testing.T) {
	for name, f := range map[string]fault{"not sent": notSent, "no answer": late} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				b.fault = func(int) fault { return f }
				_, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{FailFast: true})
				if !errors.Is(err, ErrUnavailable) {
					t.Fatal(err)
				}
				b.mu.Lock()
				b.fault = nil
				b.mu.Unlock()
				time.Sleep(5 * time.Second)
				b.deliverLate()
				if rec := b.record("k"); !rec.Idle() {
					t.Fatalf("%+v", rec)
				}
			})
		})
	}
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		e := newEngine(t, b, nil)
		b.apply("k", acquireOp("L9.1"))
		done := make(chan error, 2)
		for _, key := range []string{"k", "unreachable"} {
			go func() {
				_, err := Do(t.Context(), e, key, acquireOp("L1.1"), Options{})
				done <- err
			}()
		}
		b.mu.Lock()
		b.fault = func(int) fault { return pass }
		b.mu.Unlock()
		synctest.Wait()
		out, err := Do(t.Context(), e, "unreachable", releaseOp("L1.1"), Options{})
		must(t, out, err)
		e.Close()
		var closed int
		for range 2 {
			if err := <-done; errors.Is(err, ErrClosed) {
				closed++
			} else if err != nil {
				t.Error(err)
			}
		}
		if closed != 1 {
			t.Errorf("%d calls ended with ErrClosed, want the waiting one", closed)
		}
		if _, err := Do(t.Context(), e, "k", acquireOp("L1.2"), Options{}); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

var _ Store = (*jskv.Bucket)(nil)
