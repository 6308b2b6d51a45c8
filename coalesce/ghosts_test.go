package coalesce

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// C26: a wait gives a hold up, and the owner's grant of that is known before the wait's answer: it was written after the wait
// all the same, and is taken back.
func TestC26GrantBeforeTheWaitsAnswer(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, proxy := w.behind(RouterConfig{Belt: true})
	other := w.process(RouterConfig{})
	block := o.blockLeaseReads()
	p.meet()
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
	w.until("the grant is known", func() bool {
		p.client.mu.Lock()
		defer p.client.mu.Unlock()
		return len(p.client.now.calls) == 0
	})
	for _, r := range answers {
		r.Remove()
	}
	other.mustRelease("k", other.mustAcquire("k"))
	p.router.Withdraw(q, context.Canceled)
	<-done
	p.mustRelease("k", wait.ID)
	w.clean("k", p, other)
}

// C4: a release does not wait for an owner that is silent, which may write the acquire once more. A try that meets that is
// not refused, but to be repeated.
func TestC4TryAfterASilentOwner(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, proxy := w.behind(RouterConfig{Belt: true})
	other := w.process(RouterConfig{})
	block := o.blockLeaseReads()
	p.meet()
	id := p.mustAcquire("k")
	w.until("the acquire came", func() bool { return o.Stats().Operations == 1 })
	undo := proxy.DropRequests(faultproxy.Subject("lf." + w.fabric + ".*.*.op"))
	p.client.mu.Lock()
	p.client.suspend(p.client.now)
	p.client.unlock()
	p.mustRelease("k", id)
	close(block)
	w.until("it was written once more", func() bool { rec := other.record("k"); return rec != nil && rec.Holders[0].ID == id })
	for err := engine.ErrGone; err != nil; {
		id = p.lease.NextOp()
		_, tried := p.start("k", p.op(record.OpTry, id))
		if err = <-tried; err != nil && !errors.Is(err, engine.ErrGone) {
			t.Fatal(err)
		}
	}
	undo.Remove()
	p.mustRelease("k", id)
	w.clean("k", p)
}

// C26: a release that one road has done does not wait for ever for an owner that is there and says nothing of it. What that
// may still write is the ledger's, which asks it again ever more rarely.
func TestC26ReleaseEndsBesideASilentOwner(t *testing.T) {
	w := newWorld(t)
	_, p, block := w.besideSilentOwner()
	id := p.mustAcquire("k")
	_, released := p.start("k", p.op(record.OpRelease, id))
	w.wait("release", released, nil)
	c := p.client
	c.mu.Lock()
	if cl := p.router.claims[id]; cl == nil || cl.wanted {
		t.Error("nothing takes back what the owner may still write")
	} else {
		cl.since = time.Now().Add(-3 * undoAgain)
		sends := func() (n int) { // and those that wait for the window
			for _, k := range cl.calls {
				if u := k.term.calls[callKey{id, true}]; u != nil {
					n += u.sends + len(k.term.out)
				}
			}
			return n
		}
		before := sends()
		for range 6 {
			c.mu.Unlock()
			p.router.onTick()
			c.mu.Lock()
		}
		if n := sends() - before; n > 2 {
			t.Errorf("asked %d times again in three seconds", n)
		}
	}
	c.mu.Unlock()
	close(block)
	w.clean("k", p)
	p.mustRelease("k", p.mustAcquire("k"))
	w.clean("k", p)
}

// C26: a try has the release of its own process carried out that is under way. The release has found the hold, then.
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
