package lease_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

func TestRule9_ManyDeadLeasesCostOneTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		start := time.Now()
		const n = 1000
		for range n {
			o.Observe(ghost(b, 10*sec), 10*sec, true, d.dead)
		}
		b.hooks(func(int, write) fault { return fault{delay: ms} }, nil)
		for d.count() < n {
			time.Sleep(100 * ms)
		}
		if took := time.Since(start); took > 10500*ms+sec {
			t.Errorf("%d dead leases cost %v", n, took)
		}
	})
}

func TestRule10_ObservationsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		id := ghost(b, 10*sec)
		// Three callers ask for four seconds each, none of them long enough.
		start := time.Now()
		for range 3 {
			stop := o.Observe(id, 10*sec, true, d.dead)
			time.Sleep(4 * sec)
			stop()
			if b.watching() != 0 {
				t.Fatal("watched after stop")
			}
		}
		if got := d.after(id, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
		// Also when the last asks after all is over, and about one only checked.
		id = ghost(b, 10*sec)
		if _, err := o.Check(t.Context(), id, 10*sec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * sec)
		start = time.Now()
		if dead, err := o.WaitDead(t.Context(), id, 10*sec); !dead || err != nil || time.Since(start) != 0 {
			t.Errorf("after %v: %v, %v", time.Since(start), dead, err)
		}
	})
}

func TestRule10_AMemoryOfAnotherRevisionIsWorthNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		d := newDeaths(t, b)
		b.lag = 100 * ms
		o := observe(t, b)
		id := ghost(b, 10*sec)
		stop := o.Observe(id, 10*sec, true, d.dead)
		time.Sleep(sec)
		stop()
		if _, err := o.Check(t.Context(), id, 10*sec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * sec)
		b.put(id, b.get(id).Value)
		n := len(b.committed())
		b.hooks(func(int, write) fault { t.Error("tried without a read"); return fault{} }, nil)
		start := time.Now().Add(100 * ms)
		o.Observe(id, 10*sec, true, d.dead)
		time.Sleep(10 * sec)
		b.hooks(nil, nil)
		time.Sleep(10 * sec)
		if got := d.after(id, start); got != 10500*ms || len(b.committed()) != n+1 {
			t.Errorf("dead after %v", got)
		}
	})
}

func TestRule10_TryWaitsOutOneObservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o := observe(t, b)
		id := ghost(b, 10*sec)
		check := func(want lease.State) {
			t.Helper()
			got, err := o.Check(t.Context(), id, 10*sec)
			if err != nil || got.Dead != want.Dead || got.Stale != want.Stale {
				t.Errorf("checked %+v, %v; want %+v", got, err, want)
			}
		}
		check(lease.State{})
		time.Sleep(5 * sec)
		check(lease.State{})
		if st, _ := observe(t, b).Check(t.Context(), id, 10*sec); st.Stale {
			t.Error("stale at 5 s")
		}
		time.Sleep(6 * sec)
		check(lease.State{Stale: true}) // by what this observer has seen
		if st, _ := observe(t, b).Check(t.Context(), id, 10*sec); st.Stale {
			t.Error("stale at 11 s for one that has seen nothing")
		}
		time.Sleep(11 * sec)
		other := observe(t, b)
		if st, _ := other.Check(t.Context(), id, 10*sec); !st.Stale {
			t.Error("not stale at 22 s by the server's time stamp")
		}
		start := time.Now()
		if dead, err := other.WaitDead(t.Context(), id, 10*sec); !dead || err != nil || time.Since(start) != 10500*ms {
			t.Errorf("waited %v: %v, %v", time.Since(start), dead, err)
		}
		check(lease.State{Dead: true})
		start = time.Now()
		if dead, err := o.WaitDead(t.Context(), id, 10*sec); !dead || err != nil || time.Since(start) != 0 {
			t.Errorf("waited %v for a known death: %v, %v", time.Since(start), dead, err)
		}
		id = testID
		check(lease.State{Stale: true}) // missing
	})
}

func TestWaitDeadOfALivingLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{TTL: 10 * sec})
		o := observe(t, b)
		if _, err := o.Check(t.Context(), l.ID(), 10*sec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * sec)
		if err := l.Renew(t.Context()); err != nil { // not under observation
			t.Fatal(err)
		}
		time.AfterFunc(5*sec, func() { _ = l.Renew(context.Background()) })
		start := time.Now()
		if dead, err := o.WaitDead(t.Context(), l.ID(), 10*sec); dead || err != nil || time.Since(start) != 5*sec {
			t.Errorf("waited %v: %v, %v", time.Since(start), dead, err)
		}
		if b.watching() != 0 {
			t.Error("still watched")
		}
	})
}

// Checks of a lease at the same time share a read, which begins after they came; if
// the caller that sends it leaves, the others still get a result.
func TestChecksShareARead(t *testing.T) {
	for gaveUp, reads := range map[error]int{nil: 2, context.Canceled: 3} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket()
			o := observe(t, b)
			id := ghost(b, 10*sec)
			b.hooks(nil, func(int, string) fault { return fault{slow: 100 * ms} })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			check := func(ctx context.Context, want error) {
				wg.Go(func() {
					if _, err := o.Check(ctx, id, 10*sec); !errors.Is(err, want) {
						t.Errorf("%v, want %v", err, want)
					}
				})
				synctest.Wait()
			}
			check(t.Context(), nil)
			for range 63 {
				check(ctx, gaveUp)
			}
			check(t.Context(), nil)
			time.Sleep(150 * ms) // the second read is under way, sent by one of the 63
			if gaveUp != nil {
				cancel()
			}
			wg.Wait()
			if n := b.reads(); n > reads {
				t.Errorf("%d reads, want %d", n, reads)
			}
		})
	}
}

// A read that was under way may be older than the state that the subscriber knows.
func TestACheckIsNoOlderThanItsQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o := observe(t, b)
		l := create(t, b, lease.Config{TTL: 10 * sec})
		b.hooks(nil, func(int, string) fault { return fault{slow: 100 * ms} })
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = o.Check(t.Context(), l.ID(), 10*sec) })
		synctest.Wait() // it has read, and waits for the answer
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st, err := o.Check(t.Context(), l.ID(), 10*sec); !st.Dead || err != nil {
			t.Errorf("%+v, %v", st, err)
		}
		wg.Wait()
	})
}

func TestWaitDeadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o := observe(t, b)
		id := ghost(b, 10*sec)
		ctx, cancel := context.WithTimeout(t.Context(), sec)
		defer cancel()
		if _, err := o.WaitDead(ctx, id, 10*sec); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		b.hooks(nil, func(int, string) fault { return fault{err: kv.ErrUnavailable} })
		if _, err := o.Check(t.Context(), id, 10*sec); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("error %v", err)
		}
		time.AfterFunc(sec, o.Close)
		for range 2 { // the second finds it closed
			if _, err := o.WaitDead(t.Context(), id, 10*sec); !errors.Is(err, lease.ErrClosed) {
				t.Errorf("error %v", err)
			}
		}
	})
}

func TestStopAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o := observe(t, b)
		id, other := ghost(b, 10*sec), ghost(b, 10*sec)
		var mu sync.Mutex // the caller's, held in dead and around stop
		calls := 0
		var stop func()
		mu.Lock()
		stop = o.Observe(id, 10*sec, true, func(string) {
			mu.Lock()
			defer mu.Unlock()
			stop()
			calls++
		})
		stopOther := o.Observe(other, 10*sec, true, func(string) { t.Error("called after stop") })
		time.Sleep(5 * sec)
		stopOther()
		stopOther()
		mu.Unlock()
		time.Sleep(time.Minute)
		mu.Lock()
		stop()
		mu.Unlock()
		if calls != 1 || b.watching() != 0 || b.dead(other) {
			t.Errorf("%d calls, %d watches, other dead %v", calls, b.watching(), b.dead(other))
		}
	})
}

func TestObserverClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o := observe(t, b)
		never := func(id string) { t.Error("called") }
		stop := o.Observe(ghost(b, 10*sec), 10*sec, true, never)
		b.hooks(func(int, write) fault { return fault{lost: true} }, nil)
		time.Sleep(11 * sec) // a tombstone is under way
		start := time.Now()
		o.Close()
		o.Close()
		stop()
		if time.Since(start) != 0 || b.watching() != 0 {
			t.Errorf("closed after %v, %d watches", time.Since(start), b.watching())
		}
		o.Observe(ghost(b, 10*sec), 10*sec, true, never)()
		time.Sleep(time.Minute)
	})
}

// After observations of the same lease by many goroutines have ended,
// no watch and no subscriber is left.
func TestQuestionsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		id := ghost(b, 10*sec)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for range 50 {
					stop := o.Observe(id, 10*sec, i%2 == 0, func(string) {})
					time.Sleep(time.Duration(i) * ms)
					stop()
				}
			})
		}
		wg.Wait()
		if b.watching() != 0 {
			t.Fatalf("%d watches left", b.watching())
		}
		o.Observe(id, 10*sec, true, d.dead)
		time.Sleep(time.Minute)
		if d.count() != 1 {
			t.Error("not called")
		}
	})
}
