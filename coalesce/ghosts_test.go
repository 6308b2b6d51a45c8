package coalesce

import (
	"context"
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// C26: a condition's wait gives up a hold whose acquire the owner still has. The answer is late: the owner must not write the acquire after the wait.
func TestC26TheAnswerOfTheWaitIsLate(t *testing.T) {
	w := newPatientWorld(t)
	o, p, proxy, other, block := w.behindSilentOwner()
	id, out, err := p.acquire("k")
	if err != nil {
		t.Fatal(err)
	}
	answers := []*faultproxy.Rule{proxy.DropRepliesTo(w.records()), proxy.DropRequests(faultproxy.Subject("$JS.API.STREAM.MSG.GET.KV_" + w.fabric + "-locks"))}
	wait := p.op(record.OpWait, p.lease.NextOp())
	wait.Holder, wait.Token, wait.Queue = id, out.Entry.Token, "c"
	q, done := p.start("k", wait)
	w.until("it waits", func() bool { rec := other.record("k"); return rec != nil && len(rec.Holders) == 0 })
	close(block)
	w.until("the owner has done what it had", func() bool { st := o.Stats(); return st.Operations >= 1 && st.UnderWay == 0 })
	for _, r := range answers {
		r.Remove()
	}
	other.mustRelease("k", other.mustAcquire("k"))
	p.router.Withdraw(q, context.Canceled)
	<-done
	p.mustRelease("k", wait.ID)
	w.clean("k", p, other)
}

// C4: an owner was silent, and its client has made the acquire directly. Then the acquire was released, or
// another process removed it. The owner must not write it any more.
func TestC4AnAcquireThatIsOverDoesNotComeBack(t *testing.T) {
	for _, forced := range []bool{false, true} {
		w := newPatientWorld(t)
		o, p, proxy, other, block := w.behindSilentOwner()
		id := p.mustAcquire("k")
		w.until("the acquire came", func() bool { return o.Stats().Operations == 1 })
		undo := proxy.DropRequests(frames)
		p.client.mu.Lock()
		p.client.suspend(p.client.current)
		p.client.unlock()
		if forced {
			remove := record.Op{Verb: record.OpRemove, ID: id}
			if out, err := engine.Do(w.context(), other.engine, "k", remove, engine.Options{}); err != nil || !out.Existed {
				t.Fatalf("remove: %+v, %v", out, err)
			}
		} else {
			p.mustRelease("k", id)
		}
		_, before, _ := other.engine.Read(w.context(), "k")
		close(block)
		w.until("the owner has done what it had", func() bool { return o.Stats().UnderWay == 0 })
		if rec, rev, err := other.engine.Read(w.context(), "k"); rec != nil || err != nil {
			t.Fatalf("forced %v: the record says %+v at %d, after %d; %v", forced, rec, rev, before, err)
		}
		tried := other.op(record.OpTry, other.lease.NextOp())
		_, done := other.start("k", tried)
		w.wait("try", done, nil)
		other.mustRelease("k", tried.ID)
		undo.Remove()
		if forced {
			_, _ = p.release("k", id)
		}
		w.clean("k", p, other)
	}
}

// C4: others have written the key before the owner wrote an acquire. If the acquire took no other road, the client sends it again.
func TestC4OvertakenAcquiresAreAskedForAgain(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, other := w.process(always), w.process(RouterConfig{})
	block := o.blockLeaseReads()
	p.meet()
	id := p.lease.NextOp()
	_, done := p.start("k", p.op(record.OpAcquire, id))
	w.until("it came", func() bool { return o.Stats().Operations == 1 })
	other.mustRelease("k", other.mustAcquire("k"))
	close(block)
	w.wait("acquire", done, nil)
	if st, direct := o.Stats(), p.engine.Stats().Operations; st.Operations != 2 || st.Grants != 1 || direct != 0 {
		t.Errorf("%d operations and %d grants of the owner, %d of the process itself", st.Operations, st.Grants, direct)
	}
	p.mustRelease("k", id)
	w.clean("k", p)
}

// C4: an acquire that also took the direct road is not sent again: it may have been written and ended meanwhile.
func TestC4OvertakenAcquiresOfBothRoads(t *testing.T) {
	w := newPatientWorld(t)
	o, p, proxy, other, block := w.behindSilentOwner()
	held := proxy.HoldRequests(faultproxy.Times(1, w.keyOf("k")))
	id := p.lease.NextOp()
	_, done := p.start("k", p.op(record.OpAcquire, id))
	if err := held.Wait(w.context(), 1); err != nil {
		t.Fatal(err)
	}
	w.until("it came", func() bool { return o.Stats().Operations == 1 })
	other.mustRelease("k", other.mustAcquire("k"))
	close(block)
	w.until("the owner has refused it", func() bool { return o.Stats().UnderWay == 0 && !p.open(id) })
	if n := o.Stats().Operations; n != 1 {
		t.Errorf("%d operations at the owner", n)
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	w.wait("acquire", done, nil)
	p.mustRelease("k", id)
	w.clean("k", p)
}

// C26: a release that one road has done does not wait for ever for a silent owner, and leaves nothing to do: the owner drops
// the acquire. So the next try of this process does not find its own old hold.
func TestC26ReleaseEndsBesideASilentOwner(t *testing.T) {
	w := newWorld(t)
	o, p, block := w.besideSilentOwner()
	id := p.mustAcquire("k")
	p.mustRelease("k", id)
	w.until("nothing is left to do", func() bool { return !p.owes() })
	close(block)
	next := p.op(record.OpTry, p.lease.NextOp())
	_, tried := p.start("k", next)
	w.wait("try", tried, nil)
	p.mustRelease("k", next.ID)
	w.until("the owner has done what it had", func() bool { return o.Stats().UnderWay == 0 })
	w.clean("k", p)
}

// C26: an acquire that the direct road refuses is released for good, whatever the owner does with it later.
func TestC26ARefusedTryDoesNotComeBack(t *testing.T) {
	w := newPatientWorld(t)
	o, p, block := w.besideSilentOwner()
	here := o.p.op(record.OpAcquire, o.p.lease.NextOp())
	_, done := o.p.start("k", here)
	w.wait("the owner's own acquire", done, nil)
	p.record("k") // its revision is known
	try := p.op(record.OpTry, p.lease.NextOp())
	_, tried := p.start("k", try)
	w.wait("try", tried, engine.ErrRefused)
	w.until("nothing is left to do", func() bool { return !p.owes() && p.engine.Unresolved(p.lease.ID()) == 0 })
	o.p.mustRelease("k", here.ID)
	close(block)
	w.until("the owner has done what it had", func() bool { return o.Stats().UnderWay == 0 })
	w.clean("k", p)
}

// C26: a try that is refused because of its own process's hold, whose release is under way, carries the release out. Then the release counts as having found the hold.
func TestC26ATryTakesAReleaseOver(t *testing.T) {
	l := lineUp(t, 1)
	p := l.all[0]
	rule := l.paths[0].HoldRequests(faultproxy.Subject("lf." + l.fabric + ".*.*.op"))
	released := make(chan engine.Outcome, 1)
	go func() {
		out, err := p.release("k", l.ids[0])
		if err != nil {
			t.Error(err)
		}
		released <- out
	}()
	l.until("the release is on its way", func() bool { return rule.Count() > 0 })
	op := p.op(record.OpTry, p.lease.NextOp())
	op.Value = record.Value{Set: true} // so it goes directly
	_, tried := p.start("k", op)
	l.wait("try", tried, engine.ErrGone)
	l.until("the hold is gone", func() bool { return p.record("k") == nil })
	if err := rule.Release(); err != nil {
		t.Error(err)
	}
	if out := <-released; !out.Existed {
		t.Error("the release has found nothing")
	}
	l.clean("k", p)
}
