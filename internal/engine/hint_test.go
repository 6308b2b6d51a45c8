package engine

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// hintBoard carries hints between engines of one test.
type hintBoard struct {
	mu    sync.Mutex
	off   bool // hints get lost
	told  [][]string
	looks []func(key string, rev uint64)
}

func (h *hintBoard) Work() bool { return true }

func (h *hintBoard) Tell(leases []string, key string, rev uint64) {
	h.mu.Lock()
	h.told = append(h.told, slices.Clone(leases))
	looks, off := h.looks, h.off
	h.mu.Unlock()
	for _, look := range looks {
		if !off {
			look(key, rev)
		}
	}
}

// watchCount counts the calls of a bucket's watcher.
type watchCount struct {
	*bucket
	mu     sync.Mutex
	opened int
}

func (w *watchCount) Watch(key string, fn func(jskv.Entry)) func() {
	w.mu.Lock()
	w.opened++
	w.mu.Unlock()
	return w.bucket.Watch(key, fn)
}

func (w *watchCount) Follow(key string, fn func(jskv.Entry)) func() { return w.Watch(key, fn) }

func (w *watchCount) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opened
}

// hinted runs fn with two engines, processes of their own, whose hints arrive.
func hinted(t *testing.T, fn func(t *testing.T, a, b *Engine, store *watchCount, o *observer, hints *hintBoard)) {
	synctest.Test(t, func(t *testing.T) {
		store, o, hints := &watchCount{bucket: newBucket(t)}, &observer{}, &hintBoard{}
		var engines []*Engine
		for range 2 {
			e := New(Config{Store: store, Watcher: store, Observer: o, Hints: hints})
			hints.looks = append(hints.looks, e.Look)
			engines = append(engines, e)
		}
		defer func() {
			for _, e := range engines {
				e.Close()
			}
		}()
		fn(t, engines[0], engines[1], store, o, hints)
	})
}

// waitFor acquires in the background.
func waitFor(t *testing.T, e *Engine, id string) chan Outcome {
	granted := make(chan Outcome, 1)
	go func() {
		out, err := Do(t.Context(), e, "k", acquireOp(id), Options{})
		if err == nil {
			granted <- out
		}
	}()
	synctest.Wait()
	return granted
}

func TestHint_WaiterIsToldAndWatchesNothing(t *testing.T) {
	hinted(t, func(t *testing.T, a, b *Engine, store *watchCount, o *observer, hints *hintBoard) {
		out, err := Do(t.Context(), a, "k", acquireOp("A.1"), Options{})
		must(t, out, err)
		granted := waitFor(t, b, "B.1")
		_, _, reads := store.counts()
		out, err = Do(t.Context(), a, "k", releaseOp("A.1"), Options{})
		must(t, out, err)
		synctest.Wait()
		select {
		case <-granted:
		default:
			t.Fatal("not granted at once")
		}
		// One read by A, whose write conflicted with the entry of B, and one by B.
		if _, _, now := store.counts(); now != reads+2 || store.count() != 0 || o.observed() != 0 {
			t.Errorf("%d reads, %d watches, %d leases observed", now-reads, store.count(), o.observed())
		}
		if len(hints.told) != 1 || !slices.Equal(hints.told[0], []string{"B"}) {
			t.Errorf("%q", hints.told)
		}
	})
}

func TestHint_LostOneCostsALook(t *testing.T) {
	hinted(t, func(t *testing.T, a, b *Engine, _ *watchCount, _ *observer, hints *hintBoard) {
		hints.off = true
		out, err := Do(t.Context(), a, "k", acquireOp("A.1"), Options{})
		must(t, out, err)
		granted := waitFor(t, b, "B.1")
		out, err = Do(t.Context(), a, "k", releaseOp("A.1"), Options{})
		must(t, out, err)
		began := time.Now()
		<-granted
		if took := time.Since(began); took > 2*lookGap {
			t.Errorf("granted after %v", took)
		}
	})
}

// During a long wait, leases ahead are observed, and the first process watches the record.
func TestHint_StandstillIsLookedAfter(t *testing.T) {
	hinted(t, func(t *testing.T, a, b *Engine, store *watchCount, o *observer, _ *hintBoard) {
		out, err := Do(t.Context(), a, "k", acquireOp("A.1"), Options{})
		must(t, out, err)
		granted := waitFor(t, b, "B.1")
		if o.observed() != 0 || store.count() != 0 {
			t.Errorf("at once: %d leases, %d watches", o.observed(), store.count())
		}
		time.Sleep(2 * lookGap)
		synctest.Wait()
		if o.observed() != 1 || store.count() == 0 {
			t.Errorf("after a while: %d leases, %d watches", o.observed(), store.count())
		}
		o.kill("A")
		<-granted
	})
}

// While the holders change nothing is watched or observed, also after a look.
func TestHint_AQueueThatMovesIsLeftAlone(t *testing.T) {
	hinted(t, func(t *testing.T, _, b *Engine, store *watchCount, o *observer, _ *hintBoard) {
		store.apply("k", acquireOp("H.1"), acquireOp("I.1"), acquireOp("J.1"))
		granted := waitFor(t, b, "B.1")
		_, _, reads := store.counts()
		time.Sleep(lookGap / 2)
		store.apply("k", releaseOp("H.1"))
		time.Sleep(lookGap) // the first look was at 1.25 of it at the latest, the next one is at 2.25 at the earliest
		synctest.Wait()
		if _, _, now := store.counts(); now != reads+1 || store.count() != 0 || o.observed() != 0 {
			t.Errorf("%d reads, %d watches, %d leases observed", now-reads, store.count(), o.observed())
		}
		store.apply("k", releaseOp("I.1"))
		store.apply("k", releaseOp("J.1"))
		<-granted
	})
}

// After a hint during a read the record is read again if that read was too early, and not otherwise.
func TestHint_DuringALook(t *testing.T) {
	t.Run("the read was too early", func(t *testing.T) { hintDuringALook(t, 7*time.Millisecond, 2) })
	t.Run("the read shows it", func(t *testing.T) { hintDuringALook(t, 2*time.Millisecond, 1) })
}

// hintDuringALook changes the record and hints so long after a look began, which takes 10 ms.
func hintDuringALook(t *testing.T, after time.Duration, want uint64) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{bucket: newBucket(t)}
		l.set(10*time.Millisecond, 10*time.Millisecond)
		e := New(Config{Store: l, Watcher: l.bucket, Observer: &observer{}, Hints: &hintBoard{}})
		defer e.Close()
		l.apply("k", acquireOp("H.1"), acquireOp("I.1")) // the first waiter would watch
		granted := waitFor(t, e, "B.1")
		w := e.lock("k")
		for len(w.waiting) == 0 {
			w.mu.Unlock()
			time.Sleep(time.Millisecond)
			w.mu.Lock()
		}
		rev := w.rev
		w.mu.Unlock()
		reads := e.Stats().Reads
		e.Look("k", rev+1)
		time.Sleep(after)
		l.apply("k", releaseOp("H.1"), releaseOp("I.1"))
		e.Look("k", rev+1)
		begun := time.Now()
		<-granted
		if took := time.Since(begun); took > 20*time.Millisecond { // the rest of a read, and a read
			t.Errorf("it took %v", took)
		}
		time.Sleep(20 * time.Millisecond)
		if n := e.Stats().Reads - reads; n != want {
			t.Errorf("%d reads, and not %d", n, want)
		}
	})
}

// If a request begins to wait while the watch for another one is still open, the leases ahead are
// observed, too: there are no looks at a watched record.
func TestHint_WaiterWhoFindsTheWatchOpen(t *testing.T) {
	hinted(t, func(t *testing.T, a, b *Engine, _ *watchCount, o *observer, _ *hintBoard) {
		out, err := Do(t.Context(), a, "k", acquireOp("A.1"), Options{})
		must(t, out, err)
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() {
			_, err := Do(t.Context(), b, "k", acquireOp("B.1"), Options{Stop: stop})
			stopped <- err
		}()
		time.Sleep(3 * lookGap / 2) // a look, and no round of the janitor
		close(stop)
		if err := <-stopped; !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		granted := waitFor(t, b, "C.1")
		o.kill("A")
		select {
		case <-granted:
		case <-time.After(time.Minute):
			t.Error("the dead holder is not replaced")
		}
	})
}

// A process that isn't first reads from time to time, and watches nothing; the leases ahead are observed once the
// queue has stopped.
func TestHint_DeepWaiterReadsNowAndThen(t *testing.T) {
	hinted(t, func(t *testing.T, a, b *Engine, store *watchCount, o *observer, _ *hintBoard) {
		for _, id := range []string{"A.1", "C.1", "D.1"} {
			store.apply("k", acquireOp(id))
		}
		waitFor(t, b, "B.1")
		time.Sleep(2 * lookGap)
		synctest.Wait()
		_, _, reads := store.counts()
		if o.observed() != 3 || store.count() != 0 {
			t.Errorf("%d leases, %d watches", o.observed(), store.count())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, _, now := store.counts(); now-reads < 10 || now-reads > 60 || store.count() != 0 {
			t.Errorf("%d reads in a minute, %d watches", now-reads, store.count())
		}
	})
}

// A hint that comes before the acknowledgement of the queueing write counts after it.
func TestHint_MayOvertakeTheAcknowledgement(t *testing.T) {
	hinted(t, func(t *testing.T, _, b *Engine, store *watchCount, _ *observer, _ *hintBoard) {
		store.apply("k", acquireOp("A.1"))
		block := make(chan struct{})
		store.bucket.mu.Lock()
		store.block = block
		store.bucket.mu.Unlock()
		waitFor(t, b, "B.1")
		_, _, reads := store.counts()
		b.Look("k", store.peek("k").Revision+2)
		close(block)
		synctest.Wait()
		// One read after the conflict with the entry of A, one for the hint.
		if _, _, now := store.counts(); now < reads+2 {
			t.Errorf("%d reads", now-reads)
		}
	})
}
