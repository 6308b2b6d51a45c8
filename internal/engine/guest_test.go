package engine

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// entitlement is the Guest function of a request.
type entitlement struct {
	no    atomic.Bool
	asked atomic.Int32
}

func (e *entitlement) valid() bool {
	e.asked.Add(1)
	return !e.no.Load()
}

func guest(e *entitlement, op record.Op) *asked {
	a := ask("k", op)
	a.Guest = e.valid
	return a
}

// C5: the engine checks whether this process may write for others right before the write, after the round was
// planned. If not, guests end, and this process's own requests go on.
func TestC5GuestsAreAskedForRightBeforeTheWrite(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		var term entitlement
		first := guest(&term, acquireOp("L1.1"))
		e.Submit(&first.Request)
		synctest.Wait()
		first.expect(t, nil)

		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 10)
		under := guest(&term, acquireOp("L1.2")) // a write that is under way
		e.Submit(&under.Request)
		<-b.arrived
		next, own := guest(&term, acquireOp("L1.3")), ask("k", acquireOp("L2.1"))
		e.Submit(&next.Request, &own.Request)
		term.no.Store(true)
		close(b.block)
		synctest.Wait()
		next.expect(t, ErrNotEntitled)
		rec := b.record("k")
		if rec.Has("L1.3") || !rec.Has("L1.2") || !rec.Has("L2.1") {
			t.Errorf("the record says %+v", rec)
		}
		if term.asked.Load() < 3 {
			t.Errorf("asked %d times", term.asked.Load())
		}
	})
}

// This engine never undoes a guest, whatever its outcome: its id may hold
// by another process.
func TestGuestsAreNotTakenBack(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.fault = func(n int) fault {
			if n == 1 {
				return loseReply
			}
			return pass
		}
		var term entitlement
		a := guest(&term, acquireOp("L1.1"))
		a.FailFast = true
		e.Submit(&a.Request)
		time.Sleep(time.Minute)
		a.expect(t, ErrUnavailable)
		if !b.record("k").Has("L1.1") || e.Unresolved("L1") != 0 {
			t.Errorf("it was taken back: %+v", b.record("k"))
		}
	})
}

// A request that is withdrawn because another process has done it stays in the record, and is not written again.
func TestElsewhereLeavesTheEntry(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1"))
		a := ask("k", acquireOp("L1.1"))
		e.Submit(&a.Request)
		synctest.Wait()
		e.Withdraw(&a.Request, ErrElsewhere)
		synctest.Wait()
		a.expect(t, ErrElsewhere)
		if !b.record("k").Has("L1.1") || e.Unresolved("L1") != 0 {
			t.Errorf("the record says %+v", b.record("k"))
		}
	})
}

// Guests don't fill this process's window.
func TestGuestsAreNotHeldBack(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		var term entitlement
		for i := range 3 * windowSize {
			a := guest(&term, acquireOp(record.ID("L1", uint64(i+1))))
			e.Submit(&a.Request)
		}
		synctest.Wait()
		if n := len(b.record("k").Waiters); n != 3*windowSize-1 {
			t.Errorf("%d wait in the record", n)
		}
	})
}

// C6: a release with Prove writes even if there is no entry: then an earlier owner's writes
// can't be committed any more.
func TestC6ProofShutsOutWhatIsOnItsWay(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		base := b.peek("k").Revision
		r := ask("k", releaseOp("L1.1"))
		r.Prove = true
		e.Submit(&r.Request)
		synctest.Wait()
		r.expect(t, nil)
		if r.out.Existed {
			t.Error("there was nothing")
		}
		if rev := b.peek("k").Revision; rev == base {
			t.Error("no write: one that expects what was there before can still be committed")
		}
	})
}
