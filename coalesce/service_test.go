package coalesce

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/record"
)

// The simplest path: one process is the owner, and another one acquires and releases over it.
func TestAcquireAndReleaseOverTheOwner(t *testing.T) {
	w := newPatientWorld(t)
	o, p := w.process(RouterConfig{}).serve(), w.process(RouterConfig{Always: true})
	p.meet()
	before := p.engine.Stats()
	for range 3 {
		id := p.mustAcquire("k")
		if rec := o.p.record("k"); len(rec.Holders) != 1 || rec.Holders[0].ID != id {
			t.Fatalf("the record says %+v", rec)
		}
		p.mustRelease("k", id)
	}
	if rec := o.p.record("k"); rec != nil {
		t.Errorf("left behind: %+v", rec)
	}
	if after := p.engine.Stats(); after.Operations != before.Operations {
		t.Errorf("%d operations went directly", after.Operations-before.Operations)
	}
	if st := o.Stats(); st.Grants != 3 || st.Operations != 6 || st.UnderWay+st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}

// The record contains at most perKey acquires of one process. The others follow in
// their order. An acquire that is withdrawn while it is held back was never sent.
func TestWindowOfAProcess(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, holder := w.process(always), w.process(RouterConfig{})
	p.meet()
	id := holder.mustAcquire("k")
	const n = 2*perKey + 5
	var ids []string
	var done []chan error
	for i := range n {
		ids = append(ids, p.lease.NextOp())
		q, d := p.start("k", p.op(record.OpAcquire, ids[i]))
		done = append(done, d)
		if i == perKey+1 {
			p.router.Withdraw(q, context.Canceled)
			w.wait("withdraw", d, context.Canceled)
		}
	}
	w.until("the window is full", func() bool { return o.Stats().Waiting == perKey })
	if rec := p.record("k"); len(rec.Waiters) != perKey {
		t.Errorf("%d wait in the record", len(rec.Waiters))
	}
	holder.mustRelease("k", id)
	for i, d := range done {
		if i != perKey+1 {
			w.wait("acquire", d, nil)
			p.mustRelease("k", ids[i])
		}
	}
	w.clean("k", p)
	if len(p.router.queues) > 0 {
		t.Error("a queue is left")
	}
}

// Operations on a key with an old route take the direct road, and its lock may be kept.
func TestAnOldRouteIsNone(t *testing.T) {
	w := newPatientWorld(t)
	w.process(RouterConfig{}).serve()
	p := w.process(RouterConfig{})
	p.meet()
	for _, age := range []func(rt *route){
		func(rt *route) { rt.used = rt.used.Add(-2 * maxIdle) },
		func(rt *route) { rt.alone = maxAlone },
	} {
		p.router.Contended("k")
		if !p.router.Routed("k") {
			t.Error("a contended key goes directly")
		}
		p.client.mu.Lock()
		age(p.router.routes["k"])
		p.client.mu.Unlock()
		if p.router.Routed("k") {
			t.Error("an old route counts")
		}
	}
}

// Acquires that are held back take the direct road when the owner is lost.
func TestWindowWithoutAnOwner(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	p.meet()
	var ids []string
	var done []chan error
	for i := range perKey + 3 {
		ids = append(ids, p.lease.NextOp())
		_, d := p.start("k", p.op(record.OpAcquire, ids[i]))
		done = append(done, d)
	}
	w.until("the window is full", func() bool { return o.Stats().Waiting == perKey })
	if err := o.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	if err := o.lease.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	for i, d := range done {
		w.wait("acquire", d, nil)
		p.mustRelease("k", ids[i])
	}
	w.clean("k", p)
}

// A process that stands by does not answer a hello. It becomes the owner, and then clients hear its beats.
func TestOwnerThatComesAfterASilentHello(t *testing.T) {
	w := newPatientWorld(t)
	p, next := w.process(RouterConfig{}), w.process(RouterConfig{})
	asked := make(chan struct{}, 10)
	sub, err := next.nc.QueueSubscribe("lf."+w.fabric+".0.hello", QueueGroup, func(*nats.Msg) { asked <- struct{}{} })
	if err != nil || next.nc.Flush() != nil {
		t.Fatal(err)
	}
	p.router.Contended("k")
	<-asked
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	p.client.mu.Lock()
	p.client.helloAt = time.Now().Add(helloRarest) // as after an unanswered hello
	p.client.mu.Unlock()
	o := next.serve()
	w.until("the owner is known", p.client.hasOwner.Load)
	p.router.cfg.Always = true
	p.mustRelease("k", p.mustAcquire("k"))
	if o.Stats().Grants != 1 {
		t.Error("it did not go over the owner")
	}
}

// The owner that was chosen to answer a hello may be stopped: the next hello is sent soon, and another owner may be chosen.
func TestSilentHelloIsRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, next := w.process(RouterConfig{}), w.process(RouterConfig{})
	asked := make(chan struct{}, 10)
	if _, err := next.nc.QueueSubscribe("lf."+w.fabric+".0.hello", QueueGroup, func(*nats.Msg) { asked <- struct{}{} }); err != nil || next.nc.Flush() != nil {
		t.Fatal(err)
	}
	w.until("a second hello", func() bool { p.router.Contended("k"); return len(asked) >= 2 })
}

// With Always, a client sends hellos again, also without contention: an owner may come later.
func TestAnOwnerIsLookedForAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.process(RouterConfig{Always: true})
	use := func() { p.mustRelease("k", p.mustAcquire("k")) }
	w.until("a hello that nobody hears", func() bool { use(); return p.router.Stats().Hellos > 0 })
	asked := make(chan struct{}, 10)
	if _, err := p.nc.QueueSubscribe(HelloSubject(w.fabric, 0), QueueGroup, func(*nats.Msg) { asked <- struct{}{} }); err != nil || p.nc.Flush() != nil {
		t.Fatal(err)
	}
	w.until("a hello that is heard", func() bool { use(); return len(asked) > 0 })
}

// A beat says how soon the next one comes. The owner keeps this promise also when it has nothing to do any more. Otherwise its clients would take
// it for lost, and the next operations would all go directly.
func TestBeatsComeAsPromised(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o, p := w.process(RouterConfig{}).serve(), w.process(always)
	beats := make(chan *nats.Msg, 100)
	if _, err := p.nc.ChanSubscribe(BeatSubject(w.fabric, 0), beats); err != nil {
		t.Fatal(err)
	}
	p.meet()
	next := func() beat {
		select {
		case m := <-beats:
			b, err := decodeBeat(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			return b
		case <-time.After(10 * beatBusy):
			t.Fatal("no beat")
		}
		return beat{}
	}
	id := p.mustAcquire("k")
	_, waits := p.start("k", p.op(record.OpAcquire, p.lease.NextOp()))
	w.until("an acquire waits", func() bool { return o.Stats().Waiting == 1 })
	for next().next == uint64(beatIdle.Milliseconds()) { // of before
	}
	p.mustRelease("k", id)
	w.wait("acquire", waits, nil)
	for next().next != uint64(beatIdle.Milliseconds()) {
	}
}
