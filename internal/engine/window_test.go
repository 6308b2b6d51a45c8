package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// crowd makes n acquires wait, one after the other, and returns the answers in the order of the grants.
func crowd(ctx context.Context, e *Engine, from, n int) <-chan string {
	granted := make(chan string, n)
	for i := range n {
		id := record.ID("L1", uint64(from+i))
		go func() {
			if _, err := Do(ctx, e, "k", acquireOp(id), Options{}); err == nil {
				granted <- id
			}
		}()
		synctest.Wait() // so that the order is known
	}
	return granted
}

// queued counts the waiters in the record, and how many of them are under a lease.
func (b *bucket) queued(lease string) (all, mine int) {
	rec := b.record("k")
	for _, w := range rec.Waiters {
		if w.Lease() == lease {
			mine++
		}
	}
	return len(rec.Waiters), mine
}

// More goroutines than a record takes are served, in the order in which they came, and without
// filling it.
func TestACrowdIsServedInOrder(t *testing.T) {
	for _, n := range []int{1100, 10000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				b.apply("k", acquireOp("L9.1"))
				granted := crowd(t.Context(), e, 1, n)
				if st := e.Stats(); st.Waiting != n {
					t.Errorf("%d wait", st.Waiting)
				}
				_, commits, _ := b.counts()
				b.apply("k", releaseOp("L9.1"))
				for i := range n {
					id := <-granted
					if want := record.ID("L1", uint64(i+1)); id != want {
						t.Fatalf("grant %d went to %s", i, id)
					}
					if out, err := Do(t.Context(), e, "k", releaseOp(id), Options{}); !must(t, out, err).Existed {
						t.Fatal("found nothing")
					}
					if i%16 != 0 {
						continue
					}
					if _, mine := b.queued("L1"); mine > windowSize || i < n-windowSize-1 && mine < windowSize/2-1 {
						t.Fatalf("after grant %d: %d in the record", i, mine)
					}
				}
				if !b.record("k").Idle() {
					t.Errorf("left behind: %+v", b.record("k"))
				}
				if _, now, _ := b.counts(); now-commits > n+n/4 {
					t.Errorf("%d writes for %d turns", now-commits, n)
				}
			})
		})
	}
}

// Another process waits only for the window of a crowd, not for all of it.
func TestACrowdLeavesRoomForOthers(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
		b.apply("k", acquireOp("L9.1"))
		granted := crowd(t.Context(), e, 1, 500)
		other := newEngine(t, b, o)
		defer other.Close()
		theirs := doAsync(t.Context(), other, acquireOp("L2.1"))
		pending(t, theirs)
		b.apply("k", releaseOp("L9.1"))
		for i := 0; ; i++ {
			synctest.Wait()
			select {
			case got := <-theirs:
				must(t, got.out, got.err)
				if i != windowSize {
					t.Errorf("granted after %d of the crowd", i)
				}
				return
			case id := <-granted:
				out, err := Do(t.Context(), e, "k", releaseOp(id), Options{})
				must(t, out, err)
			}
		}
	})
}

// In a record that is nearly full each process has one entry.
func TestACrowdInAFullRecord(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		ops := make([]record.Op, 1601)
		for i := range ops {
			ops[i] = acquireOp(fmt.Sprintf("M%d.1", i))
		}
		b.apply("k", ops...)
		crowd(t.Context(), e, 1, 50)
		if all, mine := b.queued("L1"); all != 1601 || mine != 1 {
			t.Errorf("%d of %d waiters are ours", mine, all)
		}
	})
}

// Only requests that queue are held back, not those that are granted at once.
func TestTheWindowHoldsBackOnlyWhatQueues(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		reqs := make([]*Request, 500)
		for i := range reqs {
			reqs[i] = &ask("k", modeOp(record.ID("L1", uint64(i+1)), record.S)).Request
		}
		e.Submit(reqs...)
		synctest.Wait()
		if rec := b.record("k"); len(rec.Holders) != 500 {
			t.Fatalf("%d readers", len(rec.Holders))
		}
		if writes, _, _ := b.counts(); writes != 1 {
			t.Errorf("%d writes for readers of one moment", writes)
		}
		crowd(t.Context(), e, 501, 100)
		try, convert := ask("k", tryOp("L1.601")), ask("k", convertOp("L1.1", "L1.602", record.S, record.IS))
		e.Submit(&try.Request, &convert.Request)
		synctest.Wait()
		try.expect(t, ErrRefused)
		convert.expect(t, nil)
		if all, _ := b.queued("L1"); all != windowSize {
			t.Errorf("%d queue", all)
		}
	})
}

// Of acquires of one moment, the granted ones are written, and the window of the others.
func TestTheWindowOfOneMoment(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		var reqs []*Request
		for i := range 300 {
			mode := record.S
			if i >= 100 {
				mode = record.X
			}
			reqs = append(reqs, &ask("k", modeOp(record.ID("L1", uint64(i+1)), mode)).Request)
		}
		e.Submit(reqs...)
		synctest.Wait()
		rec := b.record("k")
		if len(rec.Holders) != 100 || len(rec.Waiters) != windowSize || rec.Waiters[0].ID != "L1.101" || rec.Waiters[15].ID != "L1.116" {
			t.Errorf("%d hold, %d wait: %+v", len(rec.Holders), len(rec.Waiters), rec.Waiters)
		}
		if writes, _, _ := b.counts(); writes != 1 || e.Stats().Waiting != 200 {
			t.Errorf("%d writes, %d wait", writes, e.Stats().Waiting)
		}
	})
}

// A request that is held back knows its place, can be withdrawn at once and without a trace, and is
// refused as the record would refuse it.
func TestHeldBack(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		gone := releaseOp("L9.1")
		gone.Hold = 10 * time.Second
		b.apply("k", acquireOp("L9.1"), acquireOp("L9.2"))
		b.apply("k", gone)
		ctx, cancel := context.WithCancel(t.Context())
		crowd(ctx, e, 1, 40)
		before, _, _ := b.counts()

		var place record.Place
		a := ask("k", acquireOp("L1.41"))
		a.Queued = func(p record.Place) { place = p }
		e.Submit(&a.Request)
		if place.Position != 41 || place.Blocker.ID != "L9.2" {
			t.Errorf("place %d, blocked by %q", place.Position, place.Blocker.ID)
		}
		e.Withdraw(&a.Request, ErrStopped)
		a.expect(t, ErrStopped)

		owned := ask("k", acquireOp("L1.42"))
		owned.Op.Owner = "me"
		again := ask("k", acquireOp("L1.43"))
		again.Op.Owner = "me"
		e.Submit(&owned.Request, &again.Request)
		again.expect(t, ErrRefused)
		var refused *RefusedError
		if errors.As(again.err, &refused); refused.Verdict != record.AlreadyHeld || refused.Blocker.ID != "L1.42" {
			t.Errorf("%+v", refused)
		}

		hasty := ask("k", acquireOp("L1.44")) // 42 turns of 10 s
		hasty.Op.Patience = 5 * time.Minute
		patient := ask("k", acquireOp("L1.45"))
		patient.Op.Patience = 10 * time.Minute
		e.Submit(&hasty.Request, &patient.Request)
		if hasty.expect(t, ErrRefused); errors.As(hasty.err, &refused) && (refused.Verdict != record.WaitTooLong || refused.Wait != 420*time.Second) {
			t.Errorf("%+v", refused)
		}
		if writes, _, _ := b.counts(); writes != before {
			t.Errorf("%d writes for those that are held back", writes-before)
		}

		cancel() // the first 40
		synctest.Wait()
		time.Sleep(time.Second)
		if all, _ := b.queued("L1"); all != 2 || b.record("k").Waiters[0].ID != "L1.42" {
			t.Errorf("%d wait in the record: %+v", all, b.record("k"))
		}
		b.apply("k", releaseOp("L9.2"))
		synctest.Wait()
		owned.expect(t, nil)
		if patient.answers.Load() != 0 {
			t.Error(patient.err)
		}
		e.Close()
		patient.expect(t, ErrClosed)
	})
}

// An owner that already holds is refused at once, however many wait.
func TestAnOwnerIsNotHeldBackBehindItself(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		first := ask("k", acquireOp("L1.1"))
		first.Op.Owner = "me"
		e.Submit(&first.Request)
		synctest.Wait()
		crowd(t.Context(), e, 2, 40)
		again := ask("k", acquireOp("L1.42"))
		again.Op.Owner = "me"
		e.Submit(&again.Request)
		synctest.Wait()
		again.expect(t, ErrRefused)
	})
}

// Waits for a condition take no place in the window, since the signalling request has to get through it.
func TestTheWindowIsNotForConditions(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		var waits []*asked
		for i := range 2 * windowSize {
			hold := acquireOp(record.ID("L1", uint64(2*i+1)))
			out, err := Do(t.Context(), e, "k", hold, Options{})
			wait := hold
			wait.Verb, wait.ID, wait.Holder, wait.Token, wait.Queue = record.OpWait, record.ID("L1", uint64(2*i+2)), hold.ID, must(t, out, err).Entry.Token, "c"
			a := ask("k", wait)
			e.Submit(&a.Request)
			waits = append(waits, a)
			synctest.Wait()
		}
		out, err := Do(t.Context(), e, "k", acquireOp("L1.99"), Options{})
		must(t, out, err)
		for _, a := range waits {
			if a.answers.Load() > 0 {
				t.Fatal(a.err)
			}
		}
	})
}

// Requests that are held back follow also if another process has removed those before them.
func TestHeldBackFollowsWhoWasRemoved(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1"))
		crowd(t.Context(), e, 1, 40)
		var gone []record.Op
		for _, w := range b.record("k").Waiters {
			gone = append(gone, releaseOp(w.ID))
		}
		b.apply("k", gone...)
		time.Sleep(time.Second)
		if rec := b.record("k"); len(rec.Waiters) != windowSize || rec.Waiters[0].ID != "L1.17" {
			t.Errorf("%+v", rec)
		}
	})
}

// Requests that are held back follow also if those before them are granted elsewhere, though this process learns nothing more of the key.
func TestHeldBackFollowsWhoIsServedElsewhere(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1"))
		var all []*asked
		for i := range windowSize + 2 {
			a := ask("k", acquireOp(record.ID("L1", uint64(i+1))))
			e.Submit(&a.Request)
			synctest.Wait()
			all = append(all, a)
		}
		for _, a := range all[:windowSize] {
			e.Withdraw(&a.Request, ErrElsewhere)
		}
		synctest.Wait()
		if n, _ := b.queued("L1"); n != windowSize+2 {
			t.Errorf("%d wait in the record", n)
		}
	})
}
