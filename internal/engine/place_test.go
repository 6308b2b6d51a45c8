package engine

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// told collects the calls of the callbacks, and each time asks the engine for the
// record: a callback under a lock of the engine would wait for ever.
type told struct {
	t     *testing.T
	e     *Engine
	mu    sync.Mutex
	lines []string
	place record.Place
}

func (o *told) say(line string) {
	o.mu.Lock()
	o.lines = append(o.lines, line)
	o.mu.Unlock()
	// Afterwards, since its result may lead to another call.
	if _, _, err := o.e.Read(context.Background(), "k"); err != nil {
		o.t.Errorf("read within the callback: %v", err)
	}
}

func (o *told) queued(id string) func(record.Place) {
	return func(p record.Place) {
		o.say("queued " + id)
		o.place = p
	}
}

func (o *told) expect(want ...string) {
	o.t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(o.lines, want) {
		o.t.Errorf("told %q, want %q", o.lines, want)
	}
}

func TestWhoQueuesIsToldBeforeTheGrant(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, _ *bucket, _ *observer) {
		o := &told{t: t, e: e}
		acquire := func(ctx context.Context, id string) {
			if _, err := Do(ctx, e, "k", acquireOp(id), Options{Queued: o.queued(id)}); err != nil {
				o.say("given up " + id)
			} else {
				o.say("granted " + id)
			}
		}
		release := func(id string) {
			out, err := Do(t.Context(), e, "k", releaseOp(id), Options{})
			must(t, out, err)
			synctest.Wait()
		}
		acquire(t.Context(), "L1.1")
		o.expect("granted L1.1")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, id := range []string{"L2.1", "L3.1", "L4.1"} {
			wg.Go(func() {
				if i == 1 {
					acquire(ctx, id)
				} else {
					acquire(t.Context(), id)
				}
			})
			synctest.Wait()
			if o.place.Position != i+1 || o.place.Blocker.ID != "L1.1" {
				t.Errorf("%s: place %d, blocked by %s", id, o.place.Position, o.place.Blocker.ID)
			}
		}
		o.expect("granted L1.1", "queued L2.1", "queued L3.1", "queued L4.1")
		cancel()
		synctest.Wait()
		release("L1.1")
		release("L2.1")
		release("L4.1")
		wg.Wait()
		o.expect("granted L1.1", "queued L2.1", "queued L3.1", "queued L4.1", "given up L3.1", "granted L2.1", "granted L4.1")
	})
}

// The grant can be there before the caller has looked at its place.
func TestAPlaceIsToldHoweverShortTheWait(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		o := &told{t: t, e: e}
		b.apply("k", acquireOp("L1.1"))
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 50 {
				out, err := Do(t.Context(), e, "k", acquireOp("L2.1"), Options{Queued: o.queued("L2.1")})
				must(t, out, err)
				o.say("granted L2.1")
				out, err = Do(t.Context(), e, "k", releaseOp("L2.1"), Options{})
				must(t, out, err)
				b.apply("k", acquireOp("L1.1"))
			}
		}()
		for range 50 {
			for {
				if _, _, ok := b.record("k").Waiter("L2.1"); ok {
					break
				}
				time.Sleep(time.Millisecond) // the one that reported its place may be in a pause of Read
			}
			b.apply("k", releaseOp("L1.1"))
			synctest.Wait()
		}
		<-done
		for i, line := range o.lines {
			if want := []string{"queued L2.1", "granted L2.1"}[i%2]; line != want {
				t.Fatalf("line %d is %q", i, line)
			}
		}
	})
}

func TestAConversionThatWaitsIsTold(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		o := &told{t: t, e: e}
		for _, id := range []string{"L1.1", "L2.1"} {
			op := acquireOp(id)
			op.Mode = record.S
			b.apply("k", op)
		}
		go func() {
			op := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: "L1.2", Lease: "L1", Holder: "L1.1", From: record.S, Mode: record.X}
			_, err := Do(t.Context(), e, "k", op, Options{Queued: o.queued("L1.2")})
			if err == nil {
				o.say("granted L1.2")
			}
		}()
		synctest.Wait()
		if o.place.Position != 0 || o.place.Blocker.ID != "L2.1" {
			t.Errorf("place %d, blocked by %s", o.place.Position, o.place.Blocker.ID)
		}
		b.apply("k", releaseOp("L2.1"))
		synctest.Wait()
		o.expect("queued L1.2", "granted L1.2")
	})
}

func TestAnEvictionIsToldBeforeItsGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, obs := newBucket(t), &observer{}
		o := &told{t: t}
		e := New(Config{Store: b, Watcher: b, Observer: obs, Evicted: func(key string, leases []string, entries int) {
			if key != "k" || !slices.Equal(leases, []string{"L1"}) || entries != 2 {
				t.Errorf("evicted %v with %d entries from %q", leases, entries, key)
			}
			o.say("evicted L1")
		}})
		defer e.Close()
		o.e = e
		b.apply("k", acquireOp("L1.1"), acquireOp("L1.2"))
		go func() {
			_, err := Do(t.Context(), e, "k", acquireOp("L2.1"), Options{})
			if err == nil {
				o.say("granted L2.1")
			}
		}()
		synctest.Wait()
		obs.kill("L1")
		time.Sleep(time.Second) // not the next in the queue: the next is dead, too
		synctest.Wait()
		o.expect("evicted L1", "granted L2.1")
		// Again, with nothing left to remove.
		out, err := Do(t.Context(), e, "k", record.Op{Verb: record.OpEvict, Leases: []string{"L1"}}, Options{})
		must(t, out, err)
		o.expect("evicted L1", "granted L2.1")
	})
}

// A waiter that becomes the next one is less patient about the leases ahead than it was before.
func TestANewHeadIsUrgent(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
		b.apply("k", acquireOp("L8.1"), acquireOp("L9.1"))
		waitFor(t, e, "L1.1")
		time.Sleep(time.Second)
		if n, urgent := o.observed(), o.urgent("L8"); n != 2 || urgent {
			t.Errorf("behind another one: %d observed, urgent %v", n, urgent)
		}
		b.apply("k", releaseOp("L9.1"))
		time.Sleep(time.Second)
		if n, urgent := o.observed(), o.urgent("L8"); n != 1 || !urgent {
			t.Errorf("as the next one: %d observed, urgent %v", n, urgent)
		}
	})
}
