package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// poked runs fn with a process that keeps an unused key and whose watch delivers nothing, and another process.
func poked(t *testing.T, fn func(t *testing.T, p *keeper, other *Engine, b *bucket, hints *hintBoard)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b, hints := newBucket(t), &hintBoard{}
		var engines []*Engine
		for range 2 {
			e := New(Config{Store: b, Watcher: b, Observer: &observer{}, Hints: hints})
			t.Cleanup(e.Close)
			hints.looks = append(hints.looks, e.Look)
			engines = append(engines, e)
		}
		p := &keeper{t: t, e: engines[0], lease: "L1", linger: time.Hour}
		p.keep()
		b.mute = true
		fn(t, p, engines[1], b, hints)
	})
}

// A waiter for a kept entry is noticed even if the keeper's watch delivers nothing, and a poke gets lost.
func TestK5_AWaiterPokes(t *testing.T) {
	for name, lost := range map[string]time.Duration{"heard": 0, "lost at first": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			poked(t, func(t *testing.T, _ *keeper, other *Engine, _ *bucket, hints *hintBoard) {
				hints.off = lost > 0
				begun := time.Now()
				granted := waitFor(t, other, "B.1")
				time.Sleep(lost)
				hints.mu.Lock()
				hints.off = false
				hints.mu.Unlock()
				out := <-granted
				took := time.Since(begun)
				if out.Entry == nil || took < lost || lost == 0 && took > firstPoke/2 || took > 400*time.Millisecond {
					t.Errorf("%+v after %v", out.Entry, took)
				}
			})
		})
	}
}

// After a poke a used entry is released when its use ends, and each poke costs at most one read.
func TestK5_AWaiterPokesAUsedOne(t *testing.T) {
	poked(t, func(t *testing.T, p *keeper, other *Engine, b *bucket, hints *hintBoard) {
		e, joined := p.hold()
		hints.off = true // what comes is counted
		granted := waitFor(t, other, "B.1")
		_, _, reads := b.counts()
		for range 5 {
			p.e.Look("k", b.peek("k").Revision)
		}
		synctest.Wait()
		if _, _, r := b.counts(); !joined || r != reads+1 {
			t.Fatalf("%d reads", r-reads)
		}
		if p.leave(e) {
			t.Fatal("it is kept beside the one who waits")
		}
		<-granted
	})
}

// replies counts the answers of a process that is asked for an entry.
type replies struct{ used, released int }

func (a *replies) ask(e *Engine, id string) bool {
	return e.GiveUp("k", id, func(used bool) {
		if used {
			a.used++
		} else {
			a.released++
		}
	})
}

// An unused entry is released once, however often it is asked for; a used one stays, and no other id counts.
func TestK5_ATryIsAnswered(t *testing.T) {
	poked(t, func(t *testing.T, p *keeper, _ *Engine, b *bucket, _ *hintBoard) {
		var got replies
		e, _ := p.hold()
		if known := got.ask(p.e, e.ID); !known || got != (replies{used: 1}) || !p.leave(e) {
			t.Errorf("used: known %v, %+v", known, got)
		}
		for _, id := range []string{"", "L1.99", "L9.1", e.ID + "0"} {
			if got.ask(p.e, id) {
				t.Errorf("%q is known", id)
			}
		}
		synctest.Wait()
		if again, joined := p.hold(); !joined || again.ID != e.ID || !p.leave(again) {
			t.Error("not joined any more")
		}
		writes, _, _ := b.counts()
		block := make(chan struct{})
		b.mu.Lock()
		b.block = block
		b.mu.Unlock()
		for range 2 {
			if !got.ask(p.e, e.ID) {
				t.Error("not known")
			}
			synctest.Wait()
		}
		close(block)
		synctest.Wait()
		if w, _, _ := b.counts(); got != (replies{1, 2}) || w != writes+1 || !b.record("k").Idle() {
			t.Errorf("%+v with %d writes", got, w-writes)
		}
		if got.ask(p.e, e.ID) {
			t.Error("known though it is gone")
		}
		w := p.e.lock("k")
		defer w.mu.Unlock()
		if w.quietNeeded != 4 {
			t.Errorf("kept after %d acquires again, want 4: it was called back", w.quietNeeded)
		}
	})
}

// After a process has given an entry up, its acquires wait until the try had time to come.
func TestK5_LocalAcquiresWaitForTheTry(t *testing.T) {
	poked(t, func(t *testing.T, p *keeper, _ *Engine, b *bucket, _ *hintBoard) {
		e, _ := p.hold()
		p.leave(e)
		synctest.Wait()
		var got replies
		got.ask(p.e, e.ID)
		begun := time.Now()
		order := make(chan string, 1)
		go func() {
			e, _ := p.hold()
			time.Sleep(10 * time.Millisecond)
			p.leave(e)
			order <- e.ID
		}()
		synctest.Wait()
		took, _ := p.e.cfg.RTT.RTT()
		time.Sleep(max(2*took, time.Millisecond/2))
		if rec := b.apply("k", tryOp("L9.1")); len(rec.Holders) != 1 || rec.Holders[0].ID != "L9.1" {
			t.Fatalf("held by %+v", rec.Holders)
		}
		b.mute = false
		b.apply("k", releaseOp("L9.1"))
		if id := <-order; record.LeaseOf(id) != "L1" || time.Since(begun) > time.Second {
			t.Errorf("%s after %v", id, time.Since(begun))
		}
	})
}
