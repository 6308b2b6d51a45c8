package lease_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// ghost leaves a lease behind whose holder is gone.
func ghost(b *bucket, ttl time.Duration) string {
	id := nuid.Next()
	b.put(id, fmt.Appendf(nil, `{"v":1,"id":"%s","state":"live","ttl":%d,"margin":%d,"host":"gone","pid":1,"nonce":"n"}`,
		id, ttl.Milliseconds(), ttl.Milliseconds()/20))
	return id
}

// deaths collects calls of dead, and checks each.
type deaths struct {
	t    *testing.T
	b    *bucket
	mu   sync.Mutex
	when map[string]time.Time
}

func newDeaths(t *testing.T, b *bucket) *deaths {
	return &deaths{t: t, b: b, when: map[string]time.Time{}}
}

func (d *deaths) dead(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.b.dead(id) {
		d.t.Errorf("%s called dead without a committed tombstone", id)
	}
	if _, twice := d.when[id]; twice {
		d.t.Errorf("%s called dead twice", id)
	}
	d.when[id] = time.Now()
}

func (d *deaths) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.when)
}

func (d *deaths) after(id string, start time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w, ok := d.when[id]; ok {
		return w.Sub(start)
	}
	return -1
}

func TestDeadAfterTTLAndMarginSinceFirstSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		id := ghost(b, 10*sec)
		time.Sleep(time.Hour) // its age on the server does not matter
		start := time.Now()
		o.Observe(id, time.Second, true, d.dead) // nor does what the asker thinks
		time.Sleep(time.Minute)
		if got := d.after(id, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
		i := b.info(t, id)
		if i.Reason != lease.ReasonExpired || i.By != "other:7" || i.Host != "gone" || i.PID != 1 || i.TTL != 10*sec {
			t.Errorf("tombstone %+v", i)
		}
		if b.watching() != 0 {
			t.Error("still watched")
		}
	})
}

func TestWhoIsNotUrgentLetsOthersGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var least, most time.Duration = time.Hour, 0
		for range 50 {
			b := newBucket()
			o, d := observe(t, b), newDeaths(t, b)
			id := ghost(b, 10*sec)
			start := time.Now()
			o.Observe(id, 10*sec, false, d.dead)
			time.Sleep(time.Minute)
			got := d.after(id, start)
			if got < 10750*ms || got > 11500*ms {
				t.Fatalf("dead after %v", got)
			}
			least, most = min(least, got), max(most, got)
		}
		if most-least < 300*ms {
			t.Errorf("delays from %v to %v are hardly random", least, most)
		}
		// Within a TTL also when that is short, and at once when one becomes urgent.
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		id := ghost(b, 100*ms)
		start := time.Now()
		o.Observe(id, 100*ms, false, d.dead)
		time.Sleep(sec)
		if got := d.after(id, start); got > 205*ms {
			t.Errorf("dead after %v", got)
		}
		id = ghost(b, 10*sec)
		start = time.Now()
		o.Observe(id, 10*sec, false, d.dead)
		time.Sleep(5 * sec)
		o.Observe(id, 10*sec, true, func(string) {})
		time.Sleep(sec * 6)
		if got := d.after(id, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
	})
}

func TestALivingLeaseIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{TTL: 10 * sec, AutoRenew: true})
		o, d := observe(t, b), newDeaths(t, b)
		o.Observe(l.ID(), l.TTL(), true, d.dead)
		time.Sleep(time.Hour)
		if d.count() != 0 || !l.Valid() {
			t.Fatalf("declared dead while valid %v", l.Valid())
		}
		// And is told at once that it was closed.
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d.count() != 1 {
			t.Error("a closed lease is not called dead")
		}
	})
}

// A revision counts from when it has arrived, not from when it was asked for:
// in between it may have been written.
func TestSeenMeansReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		d := newDeaths(t, b)
		id := ghost(b, 10*sec)
		old := b.get(id)
		blind := func(key string, fn func(kv.Entry)) func() { // delivers once, then nothing
			go fn(old)
			return func() {}
		}
		o := lease.NewObserver(b, blind, newClock(1), "", nil)
		defer o.Close()
		o.Observe(id, 10*sec, true, d.dead)
		time.Sleep(5 * sec)
		b.put(id, old.Value)
		b.hooks(nil, func(int, string) fault { return fault{delay: 900 * ms} })
		start := time.Now().Add(5500*ms + 900*ms) // due, conflict, read
		time.Sleep(time.Minute)
		if got := d.after(id, start); got != 10500*ms {
			t.Errorf("dead %v after the read arrived", got)
		}
	})
}

// An observer that is about to declare many leases dead must look again at each.
func TestRenewalWhileQueuedCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		ids := make([]string, 40)
		for i := range ids {
			ids[i] = ghost(b, 10*sec)
			o.Observe(ids[i], 10*sec, true, d.dead)
		}
		b.hooks(func(int, write) fault { return fault{slow: sec} }, nil)
		time.Sleep(10600 * ms) // the first sixteen are being written
		renewed := time.Now()
		for _, id := range ids {
			if !b.dead(id) {
				b.put(id, b.get(id).Value)
			}
		}
		time.Sleep(time.Minute)
		early := 0
		for _, w := range b.committed() {
			if after := w.At.Sub(renewed); after > 0 && after < 10500*ms {
				early++
			}
		}
		if early > 0 || d.count() != 40 {
			t.Errorf("%d tombstones too early, %d in all", early, d.count())
		}
	})
}

func TestMissingAndUnreadableLeases(t *testing.T) {
	for name, prepare := range map[string]func(b *bucket, id string){
		"never written": func(*bucket, string) {},
		"marker":        func(b *bucket, id string) { b.purge(id) },
		"malformed":     func(b *bucket, id string) { b.put(id, []byte("?")) },
		"newer":         func(b *bucket, id string) { b.put(id, []byte(`{"v":2}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				o, d := observe(t, b), newDeaths(t, b)
				prepare(b, testID)
				start := time.Now()
				o.Observe(testID, 10*sec, true, d.dead)
				time.Sleep(time.Minute)
				if got := d.after(testID, start); got != 10500*ms {
					t.Errorf("dead after %v", got)
				}
			})
		})
	}
}

func TestMissingStartsAnewWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		o.Observe(testID, 10*sec, true, d.dead)
		time.Sleep(9 * sec)
		b.purge(testID)
		time.Sleep(9 * sec)
		b.put(testID, []byte("?"))
		time.Sleep(9 * sec)
		start := time.Now()
		b.forget(testID)
		time.Sleep(time.Minute)
		if got := d.after(testID, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
	})
}

func TestNonsenseTTLKillsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		o.Observe(testID, 0, true, d.dead)
		o.Observe(testID, -1, true, d.dead)
		time.Sleep(24 * time.Hour)
		if d.count() != 0 {
			t.Error("declared dead")
		}
	})
}

func TestTombstoneOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		write func(n int) fault
		read  func(n int) fault
		most  time.Duration
	}{
		"answer lost":  {write: func(n int) fault { return fault{mute: n == 1} }, most: 3 * sec},
		"request lost": {write: func(n int) fault { return fault{lost: n <= 2} }, most: 5 * sec},
		"late":         {write: func(n int) fault { return fault{late: [2]time.Duration{0, 5 * sec}[min(n, 2)%2]} }, most: 3 * sec},
		"busy":         {write: func(n int) fault { return [2]fault{{}, {err: kv.ErrBusy}}[min(n, 2)%2] }, most: 20 * ms},
		"disconnected": {write: func(n int) fault { return [2]fault{{}, {err: kv.ErrNotSent}}[min(n, 2)%2] }, most: 50 * ms},
		"refused":      {write: func(n int) fault { return [2]fault{{}, {err: kv.ErrRejected}}[min(n, 2)%2] }, most: 50 * ms},
		"all silent, then answers": {
			write: func(n int) fault { return fault{mute: n == 1} },
			read:  func(n int) fault { return fault{lost: n <= 2} }, most: 10 * sec,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				// Without a watch's help: what counts is what the write and the read tell.
				o := lease.NewObserver(b, func(key string, fn func(kv.Entry)) func() {
					go fn(b.get(key))
					return func() {}
				}, newClock(1), "", nil)
				defer o.Close()
				d := newDeaths(t, b)
				id := ghost(b, 10*sec)
				b.hooks(func(n int, _ write) fault { return c.write(n) }, func(n int, _ string) fault {
					if c.read == nil {
						return fault{}
					}
					return c.read(n)
				})
				start := time.Now()
				o.Observe(id, 10*sec, true, d.dead)
				time.Sleep(time.Minute)
				if got := d.after(id, start); got < 10500*ms || got > 10500*ms+c.most {
					t.Errorf("dead after %v", got)
				}
				time.Sleep(time.Minute)
				if n := len(b.committed()); n != 1 {
					t.Errorf("%d tombstones", n)
				}
			})
		})
	}
}

// Of several observers one writes, and all learn of it.
func TestManyObservers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		id := ghost(b, 10*sec)
		var all []*deaths
		start := time.Now()
		for range 8 {
			d := newDeaths(t, b)
			observe(t, b).Observe(id, 10*sec, true, d.dead)
			all = append(all, d)
		}
		time.Sleep(10501 * ms)
		synctest.Wait()
		for _, d := range all {
			if got := d.after(id, start); got < 10500*ms {
				t.Errorf("dead after %v", got)
			}
		}
		if n := len(b.committed()); n != 1 {
			t.Errorf("%d tombstones", n)
		}
	})
}

func TestOlderEntriesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		d := newDeaths(t, b)
		id := ghost(b, 10*sec)
		old := b.get(id)
		b.put(id, old.Value)
		o := lease.NewObserver(b, func(key string, fn func(kv.Entry)) func() {
			fn(b.get(key)) // at once, from within Watch
			for range 9 {
				time.AfterFunc(5*sec, func() { fn(old) })
			}
			return func() {}
		}, newClock(1), "", nil)
		defer o.Close()
		start := time.Now()
		o.Observe(id, 10*sec, true, d.dead)
		time.Sleep(time.Minute)
		if got := d.after(id, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
	})
}

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
		o := lease.NewObserver(b, func(key string, fn func(kv.Entry)) func() {
			stop := func() {}
			timer := time.AfterFunc(100*ms, func() { stop = b.Watch(key, fn) })
			return func() { timer.Stop(); stop() }
		}, newClock(1), "", nil)
		defer o.Close()
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
		time.Sleep(11 * sec) // a tombstone is on its way
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

// One that opens and closes questions about the same lease from many goroutines
// is left with no watch and no question.
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
