package coalesce

import (
	"context"
	"slices"
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// lineup is clients in one queue, at an owner whose writes can be held back.
type lineup struct {
	*world
	o       *owner
	proxy   *faultproxy.Proxy
	looker  *process // reads the record
	all     []*process
	paths   []*faultproxy.Proxy // of each
	ids     []string
	waits   []*engine.Request
	granted []chan engine.Outcome
	failed  []chan error
}

// lineUp makes n clients queue for the key "k", one after the other. The first holds it.
func lineUp(t *testing.T, n int) *lineup {
	l := begin(t)
	l.queue(n)
	l.holds(0)
	l.until("the owner is at rest", func() bool { return l.o.Stats().UnderWay == 0 })
	return l
}

// begin returns a lineup without clients.
func begin(t *testing.T) *lineup {
	w := newPatientWorld(t)
	op, proxy := w.behind(RouterConfig{})
	return &lineup{world: w, o: op.serve(), proxy: proxy, looker: w.process(RouterConfig{})}
}

// queue makes n more clients queue, one after the other.
func (l *lineup) queue(n int) {
	l.t.Helper()
	for range n {
		p, path := l.behind(always)
		p.meet()
		id := p.lease.NextOp()
		granted, failed := make(chan engine.Outcome, 1), make(chan error, 1)
		op := p.op(record.OpAcquire, id)
		op.Owner = p.manager
		q := &engine.Request{Key: "k", Op: op, Turns: true, Done: func(out engine.Outcome, err error) {
			if err != nil {
				failed <- err
				return
			}
			p.tokens.Store(id, out.Entry.Token)
			granted <- out
		}}
		p.router.Submit(q)
		l.all, l.paths, l.ids, l.waits = append(l.all, p), append(l.paths, path), append(l.ids, id), append(l.waits, q)
		l.granted, l.failed = append(l.granted, granted), append(l.failed, failed)
		l.until("it stands in the record", func() bool { return l.looker.record("k").Has(id) })
	}
}

// turns matches replies of an owner that pass a turn on.
func turns(_ string, _, payload []byte) bool {
	p, err := decodeReply(payload)
	return err == nil && slices.ContainsFunc(p.outcomes, func(o outcome) bool { return o.kind == turnCame })
}

// holdWrites holds back the owner's writes from now on.
func (l *lineup) holdWrites() *faultproxy.Rule { return l.proxy.HoldRequests(l.records()) }

// byTurn makes the second of n clients hold by a turn, while the owner's writes are held back.
func byTurn(t *testing.T, n int) (*lineup, *faultproxy.Rule) {
	l := lineUp(t, n)
	rule := l.holdWrites()
	l.release(0)
	l.holds(1)
	return l, rule
}

// holds waits until a client holds, and returns its grant.
func (l *lineup) holds(i int) engine.Outcome {
	l.t.Helper()
	select {
	case out := <-l.granted[i]:
		return out
	case err := <-l.failed[i]:
		l.t.Fatalf("client %d: %v", i, err)
	case <-l.context().Done():
		l.t.Fatalf("client %d does not hold", i)
	}
	return engine.Outcome{}
}

// waiting fails if a client holds, or has ended.
func (l *lineup) waiting(i int) {
	l.t.Helper()
	if len(l.granted[i])+len(l.failed[i]) > 0 {
		l.t.Errorf("client %d waits no more", i)
	}
}

func (l *lineup) release(i int) {
	l.t.Helper()
	l.all[i].mustRelease("k", l.ids[i])
}

// tell delivers a turn to a client, as an owner would send it.
func (l *lineup) tell(i int, o outcome) {
	c := l.all[i].client
	c.mu.Lock()
	defer c.unlock()
	o.kind, o.lease, o.seq = turnCame, record.LeaseOf(l.ids[i]), sequenceOf(l.ids[i])
	p := reply{term: c.current.id, upto: c.current.seq, outcomes: []outcome{o}}
	c.takeReply(p.append(nil))
}

// look makes a client read the record.
func (l *lineup) look(i int) {
	if _, _, err := l.all[i].engine.Read(l.context(), "k"); err != nil {
		l.t.Fatal(err)
	}
}

// turnOf returns the client's turn by the present record.
func (l *lineup) turnOf(i int) outcome {
	rec, rev, err := l.all[i].engine.Read(l.context(), "k")
	if err != nil {
		l.t.Fatal(err)
	}
	e, before, _ := rec.Waiter(l.ids[i])
	from := rec.Holders[0]
	if before > 0 {
		from = rec.Waiters[before-1]
	}
	return outcome{rev: rev, token: e.Token, mode: e.Mode, blocker: from.ID, endedToken: from.Token}
}

// H8: the lock is passed from one client to the next before anything is written. The record follows.
func TestH8_TheRecordFollows(t *testing.T) {
	l := lineUp(t, 4)
	l.all = append(l.all, l.process(RouterConfig{}))
	rec := l.all[4].record("k")
	rule := l.holdWrites()
	for i := range 3 {
		l.release(i)
		if out := l.holds(i + 1); out.Entry.Token != rec.Waiters[i].Token || out.Revision == 0 || out.Entry.Mode != record.X {
			t.Errorf("%d holds as %+v", i+1, out)
		}
	}
	if now := l.all[4].record("k"); now.Holders[0].ID != l.ids[0] || len(now.Waiters) != 3 {
		t.Errorf("the record follows too soon: %+v", now)
	}
	if st := l.o.Stats(); st.Turns != 3 {
		t.Errorf("turns: %+v", st)
	}
	rule.Remove()
	l.release(3)
	l.clean("k", l.all...)
	for i, p := range l.all {
		if turns := p.client.Stats().Turns; turns != uint64(min(i, 1)) && i < 4 {
			t.Errorf("turns of %d: %d", i, turns)
		}
	}
}

// H3: an acquire that has not held, or a hold that was asked to convert, passes no turn on.
func TestH3_OnlyAHoldPassesItsTurnOn(t *testing.T) {
	l := lineUp(t, 3)
	rule := l.holdWrites()
	before := l.o.Stats().Operations
	l.all[1].router.Withdraw(l.waits[1], context.Canceled)
	op := l.all[0].op(record.OpRelease, l.ids[0])
	token, _ := l.all[0].tokens.Load(l.ids[0])
	op.Token = token.(uint64) // but the release does not say that the turn can be passed on
	_, done := l.all[0].start("k", op)
	l.until("both came", func() bool { return l.o.Stats().Operations >= before+2 })
	l.waiting(2)
	if st := l.o.Stats(); st.Turns != 0 {
		t.Errorf("turns: %+v", st)
	}
	rule.Remove()
	l.wait("release", done, nil)
	l.holds(2)
	l.release(2)
	l.clean("k", l.all...)
}

// H4, H5: a turn counts only for the entry that it names, and only if no known record contradicts that this entry is directly behind the named hold.
func TestH4_WhatIsKnownContradictsATurn(t *testing.T) {
	l := lineUp(t, 3)
	right := l.turnOf(1)
	for what, change := range map[string]func(o *outcome){
		"another entry before it": func(o *outcome) { o.blocker = l.ids[2] },
		"another ticket before":   func(o *outcome) { o.endedToken++ },
		"another ticket":          func(o *outcome) { o.token++ },
	} {
		o := right
		o.rev-- // the client knows a newer record
		change(&o)
		if l.tell(1, o); len(l.granted[1]) > 0 {
			t.Fatalf("a turn with %s", what)
		}
	}
	l.waiting(1)
	l.waiting(2)
	l.tell(1, right)
	if out := l.holds(1); out.Entry.Token != right.token || out.Revision != right.rev {
		t.Errorf("it holds as %+v", out)
	}
	l.tell(1, right) // again
	l.release(0)
	l.release(1)
	l.holds(2)
	l.release(2)
	l.tell(1, right) // late
	l.clean("k", l.all...)
}

// H5: the owner passes a turn on only for exactly the entry that it knows.
func TestH5_TheOwnerKnowsTheEntry(t *testing.T) {
	l := lineUp(t, 2)
	l.o.mu.Lock()
	c := l.o.sessions[l.all[0].manager]
	it := &item{key: "k", passesTurn: true, op: l.all[0].op(record.OpRelease, l.ids[0])}
	token, _ := l.all[0].tokens.Load(l.ids[0])
	for _, other := range []uint64{0, token.(uint64) + 1} {
		it.op.Token = other
		if on, _ := l.o.passTurn(c, it, 1); on {
			t.Errorf("passed on for %d instead of %d", other, token)
		}
	}
	l.o.mu.Unlock()
	l.waiting(1)
	l.release(0)
	l.holds(1)
	l.release(1)
	l.clean("k", l.all...)
}

// H6, C12: a withdrawn wait is over before its undo is written: a later turn is dropped. An earlier turn makes it a
// hold that its caller gets.
func TestH6_WithdrawnBeforeTheTurn(t *testing.T) {
	l := lineUp(t, 3)
	rule := l.holdWrites()
	one, two := l.turnOf(1), l.turnOf(2)
	l.all[1].router.Withdraw(l.waits[1], context.Canceled)
	l.tell(1, one)
	l.waiting(1)
	l.release(0) // and so does the owner
	l.waiting(1)
	rule.Remove()
	l.wait("the withdrawn one", l.failed[1], context.Canceled)
	l.holds(2)
	l.tell(2, two)
	l.all[2].router.Withdraw(l.waits[2], context.Canceled)
	l.release(2)
	l.clean("k", l.all...)
}

// H6: the same for a wait that is stopped because of a deadlock. If its turn came before, it holds.
func TestH6_StoppedBeforeTheTurn(t *testing.T) {
	l := lineUp(t, 3)
	stop := func(i int) chan error {
		_, done := l.all[i].start("k", record.Op{Kind: record.KindLock, Verb: record.OpStopWaiting, ID: l.ids[i], Lease: record.LeaseOf(l.ids[i])})
		return done
	}
	late := l.turnOf(2)
	late.rev += 100 // newer than the known record
	stopped := stop(2)
	l.tell(2, late)
	l.wait("the stop", stopped, nil)
	l.wait("the stopped one", l.failed[2], engine.ErrGone)
	rule := l.holdWrites()
	l.release(0)
	l.holds(1)
	l.wait("the stop", stop(1), nil)
	if rec := l.all[1].record("k"); rec == nil || len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[1] {
		t.Errorf("it holds no more: %+v", rec)
	}
	rule.Remove()
	l.release(1)
	l.clean("k", l.all...)
}

// H9: the record shows a hold by a turn before that hold converts.
func TestH9_AdvanceBeforeAConversion(t *testing.T) {
	l, rule := byTurn(t, 3)
	p := l.all[1]
	op := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: p.lease.NextOp(), Lease: p.lease.ID(), Holder: l.ids[1], From: record.X, Mode: record.S}
	if _, err := engine.Do(l.context(), p.router, "k", op, engine.Options{}); err != nil {
		t.Fatalf("convert: %v", err)
	}
	if rec := p.record("k"); rec == nil || len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[1] || rec.Holders[0].Mode != record.S {
		t.Errorf("record: %+v", rec)
	}
	rule.Remove()
	l.release(1)
	l.holds(2)
	l.release(2)
	l.clean("k", l.all...)
}

// H9, C13: the owner dies before it has written the turns that it passed, and the earlier holders can't report that they
// have released. The present holder's release removes them, too, and the others go on.
func TestC13OwnerDiesBeforeItWrites(t *testing.T) {
	l, rule := byTurn(t, 4)
	l.release(1)
	l.holds(2)
	l.o.valid.Store(false)
	for _, gone := range []*faultproxy.Proxy{l.proxy, l.paths[0], l.paths[1]} {
		gone.Cut()
		defer gone.Heal()
	}
	defer rule.Remove()
	for _, p := range l.all {
		p.client.mu.Lock()
		p.client.suspend(p.client.current)
		p.client.unlock()
	}
	l.release(2)
	l.holds(3)
	if !l.all[0].lease.Valid() || !l.all[1].lease.Valid() {
		t.Error("it was granted when the leases of those before had ended")
	}
	l.release(3)
	l.until("nothing stands in the record", func() bool { return l.looker.record("k") == nil })
}

// H10: a process's releases are sent before its next direct request. Otherwise the request would meet its own old hold.
func TestH10_ItsReleasesGoFirst(t *testing.T) {
	l, rule := byTurn(t, 2)
	p := l.all[0]
	again := p.op(record.OpAcquire, p.lease.NextOp())
	again.Owner, again.Value = p.manager, record.Value{Set: true} // this takes the direct road
	_, done := p.start("k", again)
	l.until("it waits", func() bool {
		if len(done) > 0 {
			t.Fatalf("it has ended: %v", <-done)
		}
		rec := p.record("k")
		return rec.Has(again.ID) && !rec.Has(l.ids[0])
	})
	rule.Remove()
	l.release(1)
	l.wait("the next", done, nil)
	p.mustRelease("k", again.ID)
	l.clean("k", l.all...)
}

// H13: a release whose turn was passed is written by its own process if the owner can't write it any more, also
// while the next client holds.
func TestH13_AReleaseIsWrittenSomeTime(t *testing.T) {
	l, rule := byTurn(t, 3)
	l.o.valid.Store(false)
	l.proxy.Cut()
	defer l.proxy.Heal()
	defer rule.Remove()
	for _, p := range l.all {
		p.client.mu.Lock()
		p.client.suspend(p.client.current)
		p.client.unlock()
	}
	l.until("the record shows who holds", func() bool {
		rec := l.looker.record("k")
		return rec != nil && len(rec.Holders) == 1 && rec.Holders[0].ID == l.ids[1] && !rec.Has(l.ids[0])
	})
	l.release(1)
	l.holds(2)
	l.release(2)
	l.until("nothing stands in the record", func() bool { return l.looker.record("k") == nil })
}

// H13: if all turns are lost, the record says which client is next, and no client waits for ever.
func TestH13_AllTurnsLost(t *testing.T) {
	w := newWorld(t)
	op, proxy := w.behind(RouterConfig{})
	o := op.serve()
	lost := proxy.DropRequests(turns)
	all := []*process{w.process(always), w.process(always), w.process(always)}
	for _, p := range all {
		p.meet()
	}
	w.contest("k", 5, all...)
	if lost.Count() == 0 || o.Stats().Turns == 0 {
		t.Errorf("%d lost of %d", lost.Count(), o.Stats().Turns)
	}
	for _, p := range all {
		if p.client.Stats().Turns > 0 {
			t.Error("a turn has come")
		}
	}
	w.clean("k", all...)
}
