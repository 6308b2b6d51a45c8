package coalesce

import (
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// H11: a hold by a turn is held while its entry is among the waiters of the record, or later among the holders. It is
// lost when its entry is in neither list.
func TestH11_AHoldByATurnIsThere(t *testing.T) {
	l := lineUp(t, 3)
	rule := l.holdWrites()
	l.release(0)
	out := l.holds(1)
	p, other := l.all[1], l.process(RouterConfig{})
	lost := make(chan error, 1)
	defer p.engine.WatchHold("k", l.ids[1], out.Entry.Token, out.Revision, func(err error) { lost <- err })()
	known := func(what string, is func(rec *record.Record) bool) {
		t.Helper()
		l.until(what, func() bool {
			rec, _, ok := p.engine.Known("k")
			return ok && rec != nil && is(rec)
		})
	}
	late := other.op(record.OpAcquire, other.lease.NextOp())
	_, last := other.start("k", late)
	known("a record in which it waits", func(rec *record.Record) bool { return rec.Has(late.ID) })
	rule.Remove()
	known("the record that follows", func(rec *record.Record) bool { return len(rec.Holders) == 1 && rec.Holders[0].ID == l.ids[1] })
	if len(lost) > 0 {
		t.Fatalf("lost while it holds: %v", <-lost)
	}
	if _, err := engine.Do(l.context(), other.router, "k", record.Op{Verb: record.OpRemove, ID: l.ids[1]}, engine.Options{}); err != nil {
		t.Fatal(err)
	}
	l.wait("it is gone", lost, engine.ErrRemoved)
	l.holds(2)
	l.release(2)
	l.wait("the last", last, nil)
	other.mustRelease("k", late.ID)
	if _, err := p.release("k", l.ids[1]); err != nil {
		t.Error(err)
	}
	l.clean("k", append(l.all, other)...)
}

// H12: a client that holds by a turn, and still waits in the record, is told when the shown holder is revoked. No other client is told: those
// behind it take no turn, are granted by the record, and keep the lock.
func TestH12_RevokeReachesWhoHoldsByATurn(t *testing.T) {
	l := lineUp(t, 4)
	operator := l.process(RouterConfig{})
	rule := l.holdWrites()
	l.release(0)
	out := l.holds(1)
	lost := make(chan error, 3)
	watch := func(i int, turn uint64, rev uint64) (stop func()) {
		return l.all[i].engine.WatchHold("k", l.ids[i], turn, rev, func(err error) { lost <- err })
	}
	defer watch(1, out.Entry.Token, out.Revision)()
	late := l.turnOf(2)
	if _, err := engine.Do(l.context(), operator.router, "k", record.Op{Verb: record.OpRevoke, UpTo: operator.record("k").NewestHold()}, engine.Options{}); err != nil {
		t.Fatal(err)
	}
	l.wait("who holds by a turn hears of it", lost, engine.ErrRevoked)
	l.look(2)
	l.tell(2, late)
	l.waiting(2)
	rule.Remove()
	l.all[1].router.ReleaseInBackground("k", record.LeaseOf(l.ids[1]), l.ids[1], 0)
	for i := 2; i < 4; i++ {
		out := l.holds(i)
		if out.Turn || out.Entry.Revoked {
			t.Errorf("client %d holds as %+v", i, out)
		}
		stop := watch(i, 0, out.Revision)
		l.look(i)
		stop()
		l.release(i)
	}
	if len(lost) > 0 {
		t.Errorf("lost: %v", <-lost)
	}
	l.clean("k", l.all...)
}

// H12: a removal removes the holder that the record shows, up to the token that the operator saw. A client that
// holds by a turn meanwhile keeps the lock, also when the record shows it as the holder.
func TestH12_RemovalSparesWhoHoldsByATurn(t *testing.T) {
	l := lineUp(t, 3)
	operator := l.process(RouterConfig{})
	seen := operator.record("k").NewestHold()
	rule := l.holdWrites()
	l.release(0)
	out := l.holds(1)
	lost := make(chan error, 1)
	defer l.all[1].engine.WatchHold("k", l.ids[1], out.Entry.Token, out.Revision, func(err error) { lost <- err })()
	for range 2 {
		if _, err := engine.Do(l.context(), operator.router, "k", record.Op{Verb: record.OpRemove, UpTo: seen}, engine.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	rec := operator.record("k")
	if rec == nil || len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[1] || rec.Holders[0].Token != out.Entry.Token || rec.Holders[0].Revoked || len(rec.Waiters) != 1 {
		t.Fatalf("record: %+v", rec)
	}
	l.until("who holds by a turn knows that record", func() bool {
		known, _, _ := l.all[1].engine.Known("k")
		return known != nil && known.Holders[0].ID == l.ids[1]
	})
	if len(lost) > 0 {
		t.Errorf("lost: %v", <-lost)
	}
	l.waiting(2)
	rule.Remove()
	l.release(1)
	l.holds(2)
	l.release(2)
	l.clean("k", l.all...)
}

// H14: a client that hears nothing from its owner reads the record itself: a lost turn, a lost grant and a lost hint keep no client waiting.
func TestH14_WhoHearsNothingLooks(t *testing.T) {
	l := lineUp(t, 2)
	p, path := l.all[1], l.paths[1]
	p.client.mu.Lock()
	p.client.minSilence = 0
	p.client.mu.Unlock()
	inbox, told := "lf."+l.fabric+".n."+p.manager+".r", "lf."+l.fabric+".p."+p.manager
	lost := []*faultproxy.Rule{path.DropReplies(faultproxy.Subject(inbox)), path.DropReplies(faultproxy.Subject(told))}
	l.release(0)
	if out := l.holds(1); out.Revision == 0 {
		t.Errorf("it holds as %+v", out)
	}
	if lost[0].Count() == 0 || p.client.Stats().Turns != 0 {
		t.Errorf("%d answers lost, %d turns", lost[0].Count(), p.client.Stats().Turns)
	}
	for _, r := range lost {
		r.Remove()
	}
	l.release(1)
	l.clean("k", l.all...)
}
