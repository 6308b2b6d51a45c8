package engine

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// C4: a guest's acquire is not written if another process may have written it before.
func TestC4GuestsThatOthersWereAheadOf(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		var term entitlement
		submit := func(id string, since uint64) *asked {
			a := guest(&term, acquireOp(id))
			a.Since = since
			e.Submit(&a.Request)
			synctest.Wait()
			return a
		}
		b.apply("k", acquireOp("L9.1"))
		start := b.peek("k").Revision
		b.apply("k", acquireOp("L1.1"))
		b.apply("k", releaseOp("L1.1"))
		writes := b.commits
		if a := submit("L1.1", start); !errors.Is(a.err, ErrOvertaken) || b.commits != writes || a.out.Revision != b.peek("k").Revision {
			t.Errorf("the others' writes were not known: %v, %+v, %d writes", a.err, a.out, b.commits-writes)
		}
		if a := submit("L1.1", start); !errors.Is(a.err, ErrOvertaken) {
			t.Errorf("the others' writes were known: %v", a.err)
		}
		seen := e.Seen()
		a, later := submit("L1.2", seen), submit("L1.3", seen) // the second after a write of this engine
		if rec := b.record("k"); !rec.Has("L1.2") || !rec.Has("L1.3") || a.err != nil || later.err != nil {
			t.Errorf("nobody else was ahead: %+v, %v, %v", rec, a.err, later.err)
		}
		b.apply("k", acquireOp("L1.4"))
		if _, _, err := e.Read(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if a := submit("L1.4", start); a.err != nil || !b.record("k").Has("L1.4") {
			t.Errorf("it stands in the record: %v", a.err)
		}
	})
}

// C4: a guest's acquire that is in the record is not added again after an operation of the same write has removed it.
func TestC4GuestsBesideTheirRemoval(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L1.1"))
		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 10)
		busy := ask("k", acquireOp("L9.1"))
		e.Submit(&busy.Request)
		<-b.arrived
		var term entitlement
		remove, late := ask("k", record.Op{Verb: record.OpRemove, ID: "L1.1"}), guest(&term, acquireOp("L1.1"))
		late.Since = 1 << 40
		e.Submit(&remove.Request, &late.Request)
		close(b.block)
		synctest.Wait()
		remove.expect(t, nil)
		late.expect(t, ErrGone)
		if b.record("k").Has("L1.1") {
			t.Errorf("it is there again: %+v", b.record("k"))
		}
	})
}

// C4: a key without a delete marker was not written for MarkerTTL. A guest that is older than that is not written.
func TestC4OldGuestsOfAnAbsentKey(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.fault = func(n int) fault { return busy }
		var term entitlement
		a := guest(&term, acquireOp("L1.1"))
		e.Submit(&a.Request)
		time.Sleep(jskv.MarkerTTL)
		b.mu.Lock()
		b.fault = nil
		b.mu.Unlock()
		time.Sleep(time.Minute)
		a.expect(t, ErrOvertaken)
		if rec := b.record("k"); rec.Has("L1.1") {
			t.Errorf("the record says %+v", rec)
		}
	})
}
