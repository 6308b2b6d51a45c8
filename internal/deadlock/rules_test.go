package deadlock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// scene runs fn in a world of its own; the detectors end with it.
func scene(t *testing.T, fn func(ctx context.Context, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		fn(ctx, newWorld(t, 1))
	})
}

// must acquires, at once.
func (u *simUnit) must(key string, mode record.Mode) {
	u.p.w.t.Helper()
	if _, sw, err := u.begin(key, mode, ""); err != nil || sw != nil {
		u.p.w.t.Fatalf("%s has to wait for %s, %v", u.name, key, err)
	}
}

// ask waits, and sends the error at the end; it releases what it got.
func (u *simUnit) ask(wg *sync.WaitGroup, key string, mode record.Mode) <-chan error {
	end := make(chan error, 1)
	wg.Go(func() {
		_, err := u.acquire(key, mode, "")
		end <- err
		u.release(0)
	})
	return end
}

// pair is two units of two processes that each hold a lock and ask for the other's.
func pair(ctx context.Context, w *world, delay time.Duration) (a, b *simUnit) {
	a, b = w.process(ctx, "pa", delay).unit("a"), w.process(ctx, "pb", delay).unit("b")
	a.must("k1", record.X)
	b.must("k2", record.X)
	return a, b
}

// The document is written before the look: of two that begin to wait at the same instant one sees the other.
func TestM25_WriteThenLook(t *testing.T) {
	for i := range 300 {
		scene(t, func(ctx context.Context, w *world) {
			w.lag = time.Duration(i%3) * 5 * time.Millisecond
			a, b := pair(ctx, w, time.Second)
			var wg sync.WaitGroup
			began := time.Now()
			a.ask(&wg, "k2", record.X)
			b.ask(&wg, "k1", record.X)
			wg.Wait()
			if n := w.counted(); n != 1 {
				t.Fatalf("%d victims", n)
			}
			if took := time.Since(began); took > time.Second+firstRelook/2 {
				t.Fatalf("resolved after %v: not by the first look", took)
			}
		})
	}
}

// A holder without a document is no edge: for example an entry that was released and is still in the record.
func TestM26_AStaleEntryIsNoEdge(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		a.release(5 * time.Second) // of k1: the record hears of it later
		a.must("k3", record.X)     // so that it has a document
		var wg sync.WaitGroup
		waits := b.ask(&wg, "k1", record.X)
		a.ask(&wg, "k2", record.X)
		if err := <-waits; err != nil {
			t.Error(err)
		}
		wg.Wait()
		if n := w.counted(); n != 0 {
			t.Errorf("%d victims: %s", n, w.latest)
		}
	})
}

// There is no victim if the second look misses an edge.
func TestM27_NoVictimWithoutASecondLook(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		reads := map[string]int{}
		w.missDoc = func(lease string) bool { reads[lease]++; return reads[lease]%2 == 0 }
		w.unchecked = true
		var wg sync.WaitGroup
		a.ask(&wg, "k2", record.X)
		b.ask(&wg, "k1", record.X)
		time.Sleep(20 * time.Second)
		n := w.counted()
		w.mu.Lock()
		if n != 0 || reads["pa"]+reads["pb"] < 4 {
			t.Errorf("%d victims after %v", n, reads)
		}
		w.missDoc = nil
		w.mu.Unlock()
		wg.Wait()
		if w.counted() != 1 {
			t.Errorf("%d victims", w.counted())
		}
	})
}

// If a record changes all the time, three probes whose looks agree are enough, and one is not.
func TestM27_RecordsThatNeverHoldStill(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		c := w.process(ctx, "pc", time.Hour).unit("c")
		proofs := 0
		w.onProve = func(key string) { // somebody queues and leaves again
			proofs++
			if id, sw, err := c.begin(key, record.S, ""); err == nil && sw != nil {
				w.mu.Lock()
				w.apply(key, record.Op{Verb: record.OpRelease, ID: id, Lease: "pc"})
				w.mu.Unlock()
			}
		}
		var wg sync.WaitGroup
		a.ask(&wg, "k2", record.X)
		b.ask(&wg, "k1", record.X)
		wg.Wait()
		if n := w.counted(); n != 1 || proofs < 9 {
			t.Errorf("%d victims after %d proofs", n, proofs)
		}
	})
}

// A grant between the proof and the abort counts: there is no victim.
func TestM28_AGrantThatComesFirstCounts(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		w.onAbort = func(wt *Waiter) { // the other one's hold is released
			if wt.Unit == Member(a) {
				b.release(0)
			} else {
				a.release(0)
			}
		}
		var wg sync.WaitGroup
		first, second := a.ask(&wg, "k2", record.X), b.ask(&wg, "k1", record.X)
		if e1, e2 := <-first, <-second; e1 != nil || e2 != nil || w.counted() != 0 {
			t.Errorf("%v, %v, %d victims", e1, e2, w.counted())
		}
		if n := a.p.d.Stats().Victims + b.p.d.Stats().Victims; n != 0 {
			t.Errorf("%d waits were counted as victims", n)
		}
		wg.Wait()
	})
}

// All who see a circle pick the same victim: five processes with different delays, and reads in any order.
func TestM29_OneVictim(t *testing.T) {
	for seed := range 60 {
		scene(t, func(ctx context.Context, w *world) {
			w.lag = 30 * time.Millisecond
			units := make([]*simUnit, 5)
			for i := range units {
				units[i] = w.process(ctx, fmt.Sprintf("p%d", i), time.Duration(50+(seed*7+i*13)%200)*time.Millisecond).unit(fmt.Sprint("u", i))
				units[i].must(fmt.Sprint("k", i), record.X)
			}
			var wg sync.WaitGroup
			for i, u := range units {
				u.ask(&wg, fmt.Sprint("k", (i+1)%5), record.X)
			}
			wg.Wait()
			if n := w.counted(); n != 1 {
				t.Fatalf("%d victims", n)
			}
		})
	}
}

// Only the victim aborts itself: while its process is stopped no other wait is aborted.
// One unit of the circle only has to be granted, so no edge leads over its holds. All the same, the others and it
// itself know that it is the victim.
func TestM29_TheVictimIsInNobodysWay(t *testing.T) {
	for i := range 20 {
		scene(t, func(ctx context.Context, w *world) {
			w.lag = time.Duration(i%3) * 5 * time.Millisecond
			a, b, c := w.process(ctx, "pa", 100*time.Millisecond).unit("a"), w.process(ctx, "pb", 100*time.Millisecond).unit("b"), w.process(ctx, "pc", 100*time.Millisecond).unit("c")
			b.deaths, c.deaths = 1, 1
			a.must("k9", record.X)
			b.must("k1", record.IX)
			c.must("k2", record.X)
			var wg sync.WaitGroup
			ends := a.ask(&wg, "k1", record.S) // for b
			time.Sleep(time.Millisecond)
			c.ask(&wg, "k1", record.IS) // for a to be granted, whatever a holds
			b.ask(&wg, "k2", record.X)  // for c
			select {
			case err := <-ends:
				if !errors.Is(err, errVictim) {
					t.Errorf("a got %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("the deadlock stays")
			}
			wg.Wait()
			if w.counted() != 1 {
				t.Errorf("%d victims", w.counted())
			}
		})
	}
}

func TestM30_OnlyTheVictimAbortsItself(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		w.frozen["pb"] = true
		var wg sync.WaitGroup
		a.ask(&wg, "k2", record.X)
		time.Sleep(time.Millisecond)
		b.ask(&wg, "k1", record.X) // the younger one
		time.Sleep(30 * time.Second)
		w.mu.Lock()
		if len(w.victims) != 0 || w.poked["pb"] == 0 {
			t.Errorf("%d victims, poked %v", len(w.victims), w.poked)
		}
		w.frozen["pb"] = false
		w.mu.Unlock()
		wg.Wait()
		if w.counted() != 1 || w.victims[0] != b {
			t.Errorf("%d victims", w.counted())
		}
	})
}

// A unit that was a victim before is picked after one that was not: two units that retry at once, without a release, take
// turns.
func TestM31_VictimsTakeTurns(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		for _, c := range []struct {
			u   *simUnit
			key string
		}{{a, "k2"}, {b, "k1"}} {
			go func() {
				for w.counted() < 40 {
					_, _ = c.u.acquire(c.key, record.X, "")
				}
			}()
		}
		for w.counted() < 40 {
			time.Sleep(time.Second)
		}
		synctest.Wait() // the last victim has left
		w.mu.Lock()
		defer w.mu.Unlock()
		if a.deaths < 15 || b.deaths < 15 {
			t.Errorf("%d and %d times", a.deaths, b.deaths)
		}
		for _, sw := range w.waiters { // let the other one end
			sw.done <- false
		}
	})
}

// Looks are repeated: the document of the other one was lost with its bucket, or comes later.
func TestM32_LooksAreRepeated(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := w.process(ctx, "pa", 100*time.Millisecond).unit("a"), w.process(ctx, "pb", 8*time.Second).unit("b")
		a.must("k1", record.X)
		b.must("k2", record.X)
		var wg sync.WaitGroup
		b.ask(&wg, "k1", record.X)
		time.Sleep(time.Millisecond)
		a.ask(&wg, "k2", record.X)
		time.Sleep(7 * time.Second)
		w.mu.Lock()
		if len(w.victims) != 0 || w.docs["pa"].value == nil {
			t.Errorf("%d victims before the other one has a document", len(w.victims))
		}
		w.docs = map[string]stored{} // the bucket is made again
		w.mu.Unlock()
		wg.Wait()
		if w.counted() != 1 {
			t.Errorf("%d victims", w.counted())
		}
	})
}

// Entries of a dead lease are no edges: they are about to be evicted.
func TestM33_ADeadLeaseIsInNobodysWay(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		w.dead["pb"], w.frozen["pb"] = true, true
		var wg sync.WaitGroup
		b.ask(&wg, "k1", record.X)
		time.Sleep(time.Millisecond)
		waits := a.ask(&wg, "k2", record.X) // the younger one
		time.Sleep(10 * time.Second)
		if n := w.counted(); n != 0 {
			t.Errorf("%d victims", n)
		}
		w.mu.Lock()
		w.apply("k1", record.Op{Verb: record.OpEvict, Leases: []string{"pb"}})
		w.apply("k2", record.Op{Verb: record.OpEvict, Leases: []string{"pb"}})
		w.mu.Unlock()
		if err := <-waits; err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// A unit needs all its waits: a circle over the second of two waits counts, and is broken there.
func TestM34_AllWaitsOfAUnit(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		a, b := pair(ctx, w, 100*time.Millisecond)
		c := w.process(ctx, "pc", time.Hour).unit("c")
		c.must("k3", record.X)
		var wg sync.WaitGroup
		third, second := a.ask(&wg, "k3", record.X), a.ask(&wg, "k2", record.X)
		b.ask(&wg, "k1", record.X)
		time.Sleep(5 * time.Second)
		if w.counted() != 1 {
			t.Errorf("%d victims", w.counted())
		}
		c.release(0)
		if e := <-third; e != nil {
			t.Error(e)
		}
		<-second
		wg.Wait()
	})
}

// An entry that several units use is in the way until all of them are done: a circle over any of them is found, whichever
// of them waits first.
func TestM35_AnEntryOfSeveralUnits(t *testing.T) {
	for _, inCircleFirst := range []bool{false, true} {
		scene(t, func(ctx context.Context, w *world) {
			p := w.process(ctx, "pa", 100*time.Millisecond)
			a, other, idle := p.unit("a"), p.unit("other"), p.unit("idle")
			b := w.process(ctx, "pb", 100*time.Millisecond).unit("b")
			c := w.process(ctx, "pc", time.Hour).unit("c")
			a.must("k1", record.IX)
			maps.Copy(other.holds, a.holds)
			maps.Copy(idle.holds, a.holds) // it works, and waits for nothing
			b.must("k2", record.X)
			c.must("k3", record.X) // works
			var wg sync.WaitGroup
			if !inCircleFirst {
				other.ask(&wg, "k3", record.X)
			}
			time.Sleep(time.Millisecond)
			a.ask(&wg, "k2", record.X)
			time.Sleep(time.Millisecond)
			if inCircleFirst {
				other.ask(&wg, "k3", record.X)
			}
			time.Sleep(5 * time.Second) // both are told of
			b.ask(&wg, "k1", record.X)
			time.Sleep(10 * time.Second)
			if w.counted() != 1 {
				t.Errorf("%d victims while the others work", w.counted())
			}
			c.release(0)
			wg.Wait()
		})
	}
}

// A look is bounded, and after one that was cut short the next reads others: a circle of five is found among
// thousands of waiting leases, in many records.
func TestM37_ALookIsBounded(t *testing.T) {
	scene(t, func(ctx context.Context, w *world) {
		w.unchecked = true // the ground truth would take long
		const crowd = 150
		units := make([]*simUnit, 5)
		for i := range units {
			units[i] = w.process(ctx, fmt.Sprintf("p%d", i), 100*time.Millisecond).unit(fmt.Sprint("u", i))
			units[i].must(fmt.Sprint("k", i), record.X)
		}
		var wg sync.WaitGroup
		for i := range units {
			key := fmt.Sprint("k", (i+1)%5)
			for n := range crowd { // each has a document, and holds something
				u := (&simProc{w: w, lease: fmt.Sprintf("c%d-%d", i, n)}).unit("c")
				u.p.d = New(u.p, time.Hour)
				u.must(fmt.Sprintf("own-%d-%d", i, n), record.X)
				id, _, err := u.begin(key, record.X, "")
				if err != nil {
					t.Fatal(err)
				}
				d := u.Describe()
				w.mu.Lock()
				rw, _ := w.recs[key].rec.Waiting(id)
				d.Waits = []Wait{{Key: key, ID: id, Mode: record.X, Queued: rw.Queued}}
				_, value := encode([]Unit{d})
				w.docs[u.p.lease] = stored{value, 1}
				w.mu.Unlock()
			}
			units[i].ask(&wg, key, record.X)
		}
		for w.counted() == 0 {
			time.Sleep(time.Second)
		}
		var st Stats
		for _, u := range units {
			one := u.p.d.Stats()
			st.Probes, st.Reads, st.Cuts = st.Probes+one.Probes, st.Reads+one.Reads, st.Cuts+one.Cuts
		}
		t.Logf("%+v", st)
		if st.Cuts == 0 || st.Reads > st.Probes*MaxReads {
			t.Errorf("%+v", st)
		}
		w.mu.Lock()
		for _, sw := range w.waiters {
			sw.done <- false
		}
		clear(w.waiters)
		w.mu.Unlock()
		wg.Wait()
	})
}
