package lease_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// ghost makes a lease whose holder is gone.
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
		o.Observe(id, time.Second, true, d.dead) // nor does what the subscriber thinks
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
		// Within a TTL even if that is short, and at once when a subscriber becomes urgent.
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
		// And learns at once that it was closed.
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d.count() != 1 {
			t.Error("a closed lease is not called dead")
		}
	})
}

// A revision counts from its arrival, not from the request:
// it may have been written in between.
func TestSeenMeansReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		d := newDeaths(t, b)
		id := ghost(b, 10*sec)
		old := b.get(id)
		blind := func(key string, fn func(jskv.Entry)) func() { // delivers once, then nothing
			go fn(old)
			return func() {}
		}
		o := lease.NewObserver(b, blind, newClock(1), "", nil, nil)
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

// An observer that declares many leases dead must check each again before.
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

func TestMissingIsToBeSeenAllAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		o, d := observe(t, b), newDeaths(t, b)
		stop := o.Observe(testID, 10*sec, true, d.dead)
		time.Sleep(9 * sec)
		stop()
		if _, err := o.Check(t.Context(), testID, 10*sec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * sec)
		start := time.Now()
		o.Observe(testID, 10*sec, true, d.dead)
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
		"busy":         {write: func(n int) fault { return [2]fault{{}, {err: jskv.ErrBusy}}[min(n, 2)%2] }, most: 20 * ms},
		"disconnected": {write: func(n int) fault { return [2]fault{{}, {err: jskv.ErrNotSent}}[min(n, 2)%2] }, most: 50 * ms},
		"refused":      {write: func(n int) fault { return [2]fault{{}, {err: kv.ErrRejected}}[min(n, 2)%2] }, most: 50 * ms},
		"all silent, then answers": {
			write: func(n int) fault { return fault{mute: n == 1} },
			read:  func(n int) fault { return fault{lost: n <= 2} }, most: 10 * sec,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				// Without a watch: only the answers to the write and the read count.
				o := lease.NewObserver(b, func(key string, fn func(jskv.Entry)) func() {
					go fn(b.get(key))
					return func() {}
				}, newClock(1), "", nil, nil)
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
		o := lease.NewObserver(b, func(key string, fn func(jskv.Entry)) func() {
			fn(b.get(key)) // at once, from within Watch
			for range 9 {
				time.AfterFunc(5*sec, func() { fn(old) })
			}
			return func() {}
		}, newClock(1), "", nil, nil)
		defer o.Close()
		start := time.Now()
		o.Observe(id, 10*sec, true, d.dead)
		time.Sleep(time.Minute)
		if got := d.after(id, start); got != 10500*ms {
			t.Errorf("dead after %v", got)
		}
	})
}
