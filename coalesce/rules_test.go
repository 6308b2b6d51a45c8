package coalesce

import (
	"context"
	"math/rand"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

var always = RouterConfig{Always: true}

var (
	frames  = faultproxy.Subject("lf.*.*.*.op")
	replies = faultproxy.Subject("lf.*.n.*.r")
	beats   = faultproxy.Subject("lf.*.*.beat")
)

// records matches the writes of records.
func (w *world) records() faultproxy.Match { return faultproxy.Subject("$KV." + w.fabric + "-locks.>") }

// keyOf matches the writes of one key's record.
func (w *world) keyOf(key string) faultproxy.Match {
	return faultproxy.Subject("$KV." + w.fabric + "-locks." + key)
}

// C1: two owners of one shard at once, each with clients that know only that one.
func TestC1TwoOwners(t *testing.T) {
	w := newWorld(t)
	old, oldProxy := w.behind(always)
	one := w.process(RouterConfig{}).serve()
	old.meet()
	oldProxy.DropReplies(beats)
	two := w.process(RouterConfig{}).serve()
	young := w.process(always)
	young.meet()
	two.shout()
	w.until("the younger one is followed", func() bool { return young.client.Stats().Term == two.cfg.Term })
	direct := w.process(RouterConfig{})
	w.contest("k", 20, old, young, direct)
	if one.Stats().Grants == 0 || two.Stats().Grants == 0 {
		t.Errorf("grants: %d and %d", one.Stats().Grants, two.Stats().Grants)
	}
	w.clean("k", old, young, direct)
}

// C2: lost frames only cost time: their operations take the direct road with the same ids.
func TestC2LostFrames(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, proxy := w.behind(always)
	p.meet()
	lost := proxy.DropRequests(frames)
	id := p.mustAcquire("k")
	if lost.Count() == 0 || o.Stats().Grants != 0 {
		t.Fatal("it went over the owner")
	}
	w.until("the owner is not relied on", func() bool { return p.client.Stats().Suspended > 0 })
	lost.Remove()
	p.mustRelease("k", id)
	w.clean("k", p)
}

// C3: a frame that comes again after its acquires were released grants nothing.
func TestC3RepeatedFrames(t *testing.T) {
	w := newPatientWorld(t)
	o, p := w.process(RouterConfig{}).serve(), w.process(always)
	var mu sync.Mutex
	var seen []*nats.Msg
	sub, err := o.p.nc.Subscribe("lf."+w.fabric+".*.*.op", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, m)
	})
	if err != nil || o.p.nc.Flush() != nil {
		t.Fatal(err)
	}
	p.meet()
	p.mustRelease("k", p.mustAcquire("k"))
	w.until("both frames were seen", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) >= 2
	})
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	for _, m := range seen {
		if err := p.nc.PublishRequest(m.Subject, m.Reply, m.Data); err != nil {
			t.Fatal(err)
		}
	}
	w.until("they were dropped", func() bool { return o.Stats().Dropped == uint64(len(seen)) })
	p.mustRelease("other", p.mustAcquire("other")) // every effect of these frames came before this
	if st := o.Stats(); st.Writes < 4 || st.WritesPerOperation != float64(st.Writes)/float64(st.Operations) || st.Batched != st.Writes {
		t.Errorf("two pairs: %+v", st)
	}
	w.clean("k", p)
}

// C4: the owner was stopped with an acquire in its socket. The client took the direct road and has released.
// When the owner goes on, it drops the acquire.
func TestC4OwnerWokenWithinItsTTL(t *testing.T) {
	w := newWorld(t)
	op, proxy := w.behind(RouterConfig{})
	o := op.serve()
	p := w.process(always)
	p.meet()
	p.mustRelease("k", p.mustAcquire("k"))
	before := o.Stats().Operations
	proxy.Stall(true)
	id := p.mustAcquire("k")
	p.mustRelease("k", id)
	w.until("nothing is left to do", func() bool { return !p.owes() })
	proxy.Stall(false)
	w.until("the frame has come, and the owner has done what it had", func() bool { st := o.Stats(); return st.Operations > before && st.UnderWay == 0 })
	w.clean("k", p)
}

// C5: as C4, but the owner was stopped past its term, and the release got lost: it writes nothing.
func TestC5OwnerWokenPastItsTerm(t *testing.T) {
	w := newWorld(t)
	op, proxy := w.behind(RouterConfig{})
	o := op.serve()
	p, own := w.behind(always)
	p.meet()
	p.mustRelease("k", p.mustAcquire("k"))
	frames := o.Stats().Frames
	proxy.Stall(true)
	id := p.mustAcquire("k")
	own.DropRequests(faultproxy.Subject("lf.*.*.*.op"))
	p.mustRelease("k", id)
	o.valid.Store(false)
	proxy.Stall(false)
	w.until("the frame has come", func() bool { st := o.Stats(); return st.Frames > frames && st.Refused > 0 })
	if rec := p.record("k"); rec != nil {
		t.Errorf("left behind: %+v", rec)
	}
	if err := o.lease.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	w.clean("k", p)
}

// C6: the owner's write was under way when its term ended. The client keeps its operation open until a
// write of its own rules that write out.
func TestC6WriteOnItsWayWhenTheTermEnds(t *testing.T) {
	w := newWorld(t)
	op, proxy := w.behind(RouterConfig{})
	o := op.serve()
	p := w.process(always)
	p.meet()
	p.mustRelease("x", p.mustAcquire("x"))
	held := proxy.HoldRequests(faultproxy.Times(1, w.records()))
	q, done := p.start("k", p.op(record.OpAcquire, p.lease.NextOp()))
	if err := held.Wait(w.context(), 1); err != nil {
		t.Fatal(err)
	}
	p.router.Withdraw(q, context.Canceled)
	o.valid.Store(false)
	if err := o.lease.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	w.wait("withdraw", done, context.Canceled)
	w.until("the ledger is empty", func() bool { return !p.owes() })
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	if err := op.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	op.record("other") // the server has taken what was sent before
	if rec := p.record("k"); rec != nil {
		t.Errorf("left behind: %+v", rec)
	}
}

// C7: a frame that a later one has overtaken is dropped, and the client sends its operations again.
func TestC7OvertakenFrames(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, proxy := w.behind(always)
	p.meet()
	held := proxy.HoldRequests(faultproxy.Times(1, frames))
	first, second := p.lease.NextOp(), p.lease.NextOp()
	_, done := p.start("a", p.op(record.OpAcquire, first))
	if err := held.Wait(w.context(), 1); err != nil {
		t.Fatal(err)
	}
	_, done2 := p.start("b", p.op(record.OpAcquire, second))
	w.wait("the second", done2, nil)
	w.wait("the first, sent again", done, nil)
	p.mustRelease("a", first)
	p.mustRelease("b", second)
	dropped := o.Stats().Dropped
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	w.until("the late frame is dropped", func() bool { return o.Stats().Dropped > dropped })
	w.clean("a", p)
	w.clean("b", p)
}

// C8: replies that get lost or come twice keep no client waiting and leave no entry behind.
func TestC8LostAndRepeatedReplies(t *testing.T) {
	w := newWorld(t)
	w.process(RouterConfig{}).serve()
	var all []*process
	for i := range 3 {
		p, proxy := w.behind(always)
		rnd := rand.New(rand.NewSource(int64(i)))
		some := func(subject string, header, payload []byte) bool {
			return replies(subject, header, payload) && rnd.Intn(10) < 3
		}
		proxy.DropReplies(some)
		proxy.DuplicateReplies(some)
		p.meet()
		all = append(all, p)
	}
	w.contest("k", 10, all...)
	w.clean("k", all...)
}

// C14: an owner refuses an operation only by a state after the operation came, also if direct
// clients write at the same time.
func TestC14RefusalsAreFresh(t *testing.T) {
	w := newWorld(t)
	w.process(RouterConfig{}).serve()
	p, direct := w.process(always), w.process(RouterConfig{})
	p.meet()
	for range 10 {
		id := direct.mustAcquire("k")
		try := p.lease.NextOp()
		_, done := p.start("k", p.op(record.OpTry, try))
		w.wait("try of a held key", done, engine.ErrRefused)
		direct.mustRelease("k", id)
		try = p.lease.NextOp()
		_, done = p.start("k", p.op(record.OpTry, try))
		w.wait("try of a free key", done, nil)
		p.mustRelease("k", try)
	}
	w.clean("k", p, direct)
}

// C15: the owner finds out about writes whose acknowledgement got lost, and does nothing twice.
func TestC15UnknownOutcomesAtTheOwner(t *testing.T) {
	w := newWorld(t)
	op, proxy := w.behind(RouterConfig{})
	op.serve()
	rnd, records := rand.New(rand.NewSource(1)), w.records()
	lost := proxy.DropRepliesTo(func(subject string, header, payload []byte) bool {
		return records(subject, header, payload) && rnd.Intn(10) == 0
	})
	all := []*process{w.process(always), w.process(always), w.process(RouterConfig{})}
	all[0].meet()
	all[1].meet()
	w.contest("k", 10, all...)
	w.clean("k", all...)
	if lost.Count() == 0 {
		t.Error("no acknowledgement got lost")
	}
}

// C26: every operation on both roads at once.
func TestC26Belt(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	var all []*process
	for range 4 {
		p := w.process(RouterConfig{Belt: true})
		p.meet()
		all = append(all, p)
	}
	w.contest("k", 20, all...)
	w.clean("k", all...)
	var direct uint64
	for _, p := range all {
		direct += p.engine.Stats().Operations
	}
	if st := o.Stats(); st.Operations == 0 || direct == 0 {
		t.Errorf("%d over the owner, %d directly", st.Operations, direct)
	}
}

// C26: a wait on a condition gives up a hold whose acquire the owner has not written yet. The owner never writes it.
func TestC26WaitEndsTheHold(t *testing.T) {
	w := newPatientWorld(t)
	o, p, block := w.besideSilentOwner()
	other := w.process(RouterConfig{})
	id, out, err := p.acquire("k")
	if err != nil {
		t.Fatal(err)
	}
	wait := p.op(record.OpWait, p.lease.NextOp())
	wait.Holder, wait.Token, wait.Queue = id, out.Entry.Token, "c"
	q, done := p.start("k", wait)
	w.until("it waits", func() bool { rec := p.record("k"); return rec != nil && len(rec.Holders) == 0 })
	w.until("the acquire is at the owner", func() bool { return o.Stats().Operations == 1 })
	close(block)
	w.until("the owner has done what it had", func() bool { return o.Stats().UnderWay == 0 })
	other.mustRelease("k", other.mustAcquire("k"))
	p.router.Withdraw(q, context.Canceled)
	<-done
	p.mustRelease("k", wait.ID)
	w.clean("k", p, other)
}

// C27: an owner that closes refuses the release of an acquire that it is about to write. The release on the direct road
// rules that write out.
func TestC27ReleaseRefusedAtTheEnd(t *testing.T) {
	w := newWorld(t)
	op, proxy := w.behind(RouterConfig{})
	o := op.serve()
	p := w.process(RouterConfig{Belt: true})
	p.meet()
	p.mustRelease("x", p.mustAcquire("x")) // the owner has read the lease
	held := proxy.HoldRequests(faultproxy.Times(1, w.records()))
	id := p.mustAcquire("k")
	if err := held.Wait(w.context(), 1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = o.Close(w.context()) })
	w.until("it takes nothing more", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.closing })
	p.mustRelease("k", id)
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	w.clean("k", p)
}

// C27: an owner that closes tells all clients. Waiting clients go on, and none of them waits for a lease to end.
func TestC27Handover(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, q := w.process(always), w.process(always)
	p.meet()
	q.meet()
	id := p.mustAcquire("k")
	waits := q.lease.NextOp()
	_, done := q.start("k", q.op(record.OpAcquire, waits))
	w.until("it waits", func() bool { return o.Stats().Waiting == 1 })
	if err := o.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	w.until("both know", func() bool { return !p.client.hasOwner.Load() && !q.client.hasOwner.Load() })
	next := w.process(RouterConfig{}).serve()
	w.until("both know the next one", func() bool { return p.client.hasOwner.Load() && q.client.hasOwner.Load() })
	p.mustRelease("k", id)
	w.wait("the waiter", done, nil)
	q.mustRelease("k", waits)
	if err := o.lease.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	w.clean("k", p, q)
	if p.client.Stats().Suspended+q.client.Stats().Suspended > 0 {
		t.Error("nobody was told; they found out by silence")
	}
	if next.Stats().Operations == 0 {
		t.Error("nothing went over the next owner")
	}
}

// C28: the owner crashes while many clients wait. Their places are in the record.
func TestC28OwnerGone(t *testing.T) {
	w := newPatientWorld(t) // otherwise, on a busy machine, they would wait on the direct road
	o := w.process(RouterConfig{}).serve(2 * time.Second)
	all := []*process{w.process(always), w.process(always), w.process(always)}
	holder := w.process(RouterConfig{})
	id := holder.mustAcquire("k")
	var done []chan error
	var ids []string
	for i := range 3 * len(all) {
		p := all[i%3]
		p.meet()
		ids = append(ids, p.lease.NextOp())
		_, d := p.start("k", p.op(record.OpAcquire, ids[i]))
		done = append(done, d)
		w.until("it waits", func() bool { return o.Stats().Waiting == i+1 })
	}
	for _, p := range all {
		p.client.mu.Lock()
		p.client.minSilence = 0
		p.client.mu.Unlock()
	}
	o.p.nc.Close()
	holder.mustRelease("k", id)
	for i, d := range done { // in their order
		w.wait("a waiter", d, nil)
		all[i%3].mustRelease("k", ids[i])
	}
	if dead, err := holder.observer.WaitDead(w.context(), o.lease.ID(), o.lease.TTL()); err != nil || !dead {
		t.Fatal(dead, err)
	}
	w.clean("k", all...)
}
