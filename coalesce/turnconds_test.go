package coalesce

import (
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// ofHold returns an operation of a client's hold on a condition of its lock.
func (l *lineup) ofHold(verb record.Verb, i int) record.Op {
	p := l.all[i]
	token, _ := p.tokens.Load(l.ids[i])
	return record.Op{
		Kind: record.KindLock, Verb: verb, ID: p.lease.NextOp(), Lease: p.lease.ID(), TTL: p.lease.TTL(),
		Holder: l.ids[i], Token: token.(uint64), Queue: "q",
	}
}

// P24: a client that holds by a turn waits on a condition and signals, although no written record shows its hold.
func TestP24_AHolderByTurnWaitsAndSignals(t *testing.T) {
	l, rule := byTurn(t, 4)
	p, wait := l.all[1], l.ofHold(record.OpWait, 1)
	_, woken := p.start("k", wait)
	l.holds(2)
	if rec := p.record("k"); len(rec.Facts().Queues) != 1 || rec.Facts().Queues[0].Waiters[0].ID != wait.ID || rec.Holders[0].ID != l.ids[2] || rec.Has(l.ids[0]) {
		t.Errorf("the one who waits: %+v", rec)
	}
	l.until("the owner knows it", func() bool {
		rec, _, _ := l.o.p.engine.Known("k")
		return rec.Has(wait.ID)
	})
	l.release(2)
	l.holds(3)
	if _, err := engine.Do(l.context(), l.all[3].router, "k", l.ofHold(record.OpSignal, 3), engine.Options{}); err != nil {
		t.Fatalf("signal: %v", err)
	}
	rec := p.record("k")
	if len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[3] || len(rec.Waiters) != 1 || rec.Waiters[0].ID != wait.ID || rec.Waiters[0].Signalled != "q" {
		t.Errorf("after the signal: %+v", rec)
	}
	rule.Remove()
	l.release(3)
	l.wait("who was signalled", woken, nil)
	if st := l.o.Stats(); st.Turns != 2 {
		t.Errorf("turns: %+v", st)
	}
	p.mustRelease("k", wait.ID)
	l.clean("k", l.all...)
}

// P26: a client holds by a turn, and its wait on a condition is held back on its way and cancelled. The client holds again without a
// signal, and no late message changes that.
func TestP26_AHolderByTurnTakesItsWaitBack(t *testing.T) {
	l, rule := byTurn(t, 3)
	p, wait := l.all[1], l.ofHold(record.OpWait, 1)
	late := l.paths[1].HoldRequests(faultproxy.Times(1, l.records()))
	_, back := p.start("k", wait)
	if err := late.Wait(l.context(), 1); err != nil {
		t.Fatal(err)
	}
	p.router.UndoInBackground("k", wait, 0)
	l.holds(2)
	if err := late.Release(); err != nil {
		t.Fatal(err)
	}
	l.until("it waits for the lock", func() bool { return len(p.record("k").Waiters) == 1 })
	rec := p.record("k")
	if len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[2] || len(rec.Waiters) != 1 || rec.Waiters[0].ID != wait.ID || len(rec.Facts().Queues) > 0 {
		t.Errorf("after the wait: %+v", rec)
	}
	rule.Remove()
	l.release(2)
	l.wait("the wait", back, nil)
	p.mustRelease("k", wait.ID)
	l.clean("k", l.all...)
}
