package coalesce

import (
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// H11: a hold by a turn is there while it stands among the waiters of a record, and when the record follows. It is
// lost when it is neither there nor among the holders.
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

// H12: who is taken out by force is who the record shows as holder, up to the token that the operator saw. The one that
// holds by a turn meanwhile keeps the lock, also when it stands in the record as its holder.
func TestH12_ForceSparesWhoHoldsByATurn(t *testing.T) {
	l := lineUp(t, 3)
	operator := l.process(RouterConfig{})
	seen := operator.record("k").NewestHold()
	rule := l.holdWrites()
	l.release(0)
	out := l.holds(1)
	lost := make(chan error, 1)
	defer l.all[1].engine.WatchHold("k", l.ids[1], out.Entry.Token, out.Revision, func(err error) { lost <- err })()
	for _, verb := range []record.Verb{record.OpRevoke, record.OpRemove, record.OpRevoke, record.OpRemove} {
		if _, err := engine.Do(l.context(), operator.router, "k", record.Op{Verb: verb, UpTo: seen}, engine.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	rec := operator.record("k")
	if rec == nil || len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[1] || rec.Holders[0].Token != out.Entry.Token || rec.Holders[0].Revoked || len(rec.Waiters) != 1 {
		t.Errorf("record: %+v", rec)
	}
	l.waiting(2)
	rule.Remove()
	l.release(1)
	l.holds(2)
	if len(lost) > 0 {
		t.Errorf("lost: %v", <-lost)
	}
	l.release(2)
	l.clean("k", l.all...)
}

// H14: who hears nothing of its owner looks for itself: a lost turn, a lost grant and a lost hint keep nobody waiting.
func TestH14_WhoHearsNothingLooks(t *testing.T) {
	l := lineUp(t, 2)
	p, path := l.all[1], l.paths[1]
	p.client.mu.Lock()
	p.client.least = 0
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
