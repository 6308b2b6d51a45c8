package coalesce

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// idleService returns a service without its loop. The test does what the loop does.
func idleService() *Service {
	return &Service{
		cfg: ServiceConfig{Valid: func() bool { return true }}, wake: make(chan struct{}, 1), sessions: map[string]*session{},
	}
}

// sends delivers a frame of a client that asks for n keys of its own, under a known lease.
func (s *Service) sends(manager string, seq uint64, n int) bool {
	f := frame{seq: seq}
	lease := manager + "-1"
	for i := range n {
		op := record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: record.ID(lease, seq<<16+uint64(i)), Lease: lease, Mode: record.X, TTL: time.Second}
		f.items = append(f.items, item{key: fmt.Sprintf("%s.%d.%d", manager, seq, i), op: op})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	came := s.enqueueFrame(manager, f)
	if came {
		c := s.sessions[manager]
		c.leases[lease] = &leaseCheck{session: c, alive: true}
	}
	return came
}

// C24: a client that sends much at once is served together with the others, not before them, and in its own order.
func TestC24SessionsTakeTurns(t *testing.T) {
	s := idleService()
	s.sends("large", 1, maxOps)
	s.sends("large", 2, maxOps)
	const others = 63
	for i := range others {
		s.sends(fmt.Sprintf("small%d", i), 1, 1)
	}
	var large []*engine.Request
	for pass := 1; len(s.ready) > 0; pass++ {
		small := 0
		reqs, _ := s.processSessions(time.Now(), nil)
		for _, r := range reqs {
			if strings.HasPrefix(r.Key, "large.") {
				large = append(large, r)
			} else {
				small++
			}
		}
		if len(large) != pass*maxPass {
			t.Fatalf("after pass %d: %d of the large one", pass, len(large))
		}
		if pass == 1 && small != others {
			t.Errorf("%d of %d others in the first pass", small, others)
		}
		if top := s.sessions["large"].lastTaken; top != uint64(len(large)/maxOps) {
			t.Errorf("after pass %d frame %d is acknowledged", pass, top)
		}
		select {
		case <-s.wake:
		default:
			if len(s.ready) > 0 {
				t.Fatal("nothing has the loop go on")
			}
		}
	}
	if !slices.IsSortedFunc(large, func(a, b *engine.Request) int {
		return int(sequenceOf(a.Op.ID)) - int(sequenceOf(b.Op.ID))
	}) || len(large) != 2*maxOps || s.unread != 0 {
		t.Errorf("%d taken, %d left, or out of order", len(large), s.unread)
	}
}

// C24: the number of waiting frames is bounded. A further one is missed, and the client is told.
func TestC24FramesAreBounded(t *testing.T) {
	s := idleService()
	for seq := uint64(1); seq <= maxFrames; seq++ {
		if !s.sends("large", seq, 1) {
			t.Fatalf("frame %d finds no room", seq)
		}
	}
	if s.sends("large", maxFrames+1, 1) {
		t.Error("one too many has come")
	}
	if !s.sends("small", 1, 1) {
		t.Error("another client finds no room")
	}
	s.processSessions(time.Now(), nil)
	s.sends("large", maxFrames+2, 1)
	s.processSessions(time.Now(), nil)
	if c := s.sessions["large"]; c.missed != (span{maxFrames + 1, maxFrames + 1}) || c.lastTaken != maxFrames+2 {
		t.Errorf("missed %+v, taken up to %d", c.missed, c.lastTaken)
	}
	s.unread = maxOperations
	if s.sends("small", 2, 1) {
		t.Error("there is no bound of all")
	}
}

// C25: a contended key with a slow write delays no other key.
func TestC25AHotKeyDelaysNoOther(t *testing.T) {
	w := newPatientWorld(t)
	server, proxy := w.behind(RouterConfig{})
	o := server.serve()
	p, quiet := w.process(always), w.process(always)
	p.meet()
	quiet.meet()
	slow := proxy.HoldRequests(w.keyOf("hot"))
	var hot []chan error
	var ids []string
	for range perKey {
		id := p.lease.NextOp()
		_, done := p.start("hot", p.op(record.OpAcquire, id))
		ids, hot = append(ids, id), append(hot, done)
	}
	if err := slow.Wait(w.context(), 1); err != nil {
		t.Fatal(err)
	}
	const others = 64
	for i := range others {
		key := fmt.Sprintf("quiet%d", i)
		quiet.mustRelease(key, quiet.mustAcquire(key))
	}
	for _, done := range hot {
		select {
		case err := <-done:
			t.Fatalf("the hot key was served: %v", err)
		default:
		}
	}
	if g := o.Stats().Grants; g != others {
		t.Errorf("%d grants over the owner, want %d", g, others)
	}
	slow.Remove()
	for i, done := range hot {
		w.wait("acquire", done, nil)
		p.mustRelease("hot", ids[i])
	}
	w.clean("hot", p)
}

// An acquire that is overtaken is asked for again before the later ones of its process: one that was sent when more was
// known, and those that come while the answers are on their way.
func TestOvertakenAcquiresKeepTheirOrder(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, other := w.process(always), w.process(RouterConfig{})
	block := o.blockLeaseReads()
	p.meet()
	l := line{process: p, key: "k"}
	l.add(5)
	w.until("they came", func() bool { return o.Stats().Operations == 5 })
	id := other.mustAcquire("k")
	p.record("k") // so the others are not overtaken
	l.add(5)
	w.until("they came, too", func() bool { return o.Stats().Operations == 10 })
	close(block)
	for range 3 {
		l.add(1)
		time.Sleep(time.Millisecond)
	}
	w.until("all wait", func() bool { return o.Stats().Waiting == 13 })
	l.check()
	other.mustRelease("k", id)
	l.end()
}

// An acquire that is overtaken too often goes directly. Once it waits in the record, it is sent to the owner, too, and the later ones with it.
func TestAcquiresThatAreOvertakenOftenKeepTheirOrder(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, other := w.process(always), w.process(RouterConfig{})
	block := o.blockLeaseReads()
	p.meet()
	l := line{process: p, key: "k"}
	l.add(perKey + 4)
	w.until("they came", func() bool { return o.Stats().Operations == perKey })
	id := other.mustAcquire("k")
	p.client.mu.Lock()
	for trip := range p.router.trips {
		if trip.req.Op.ID == l.ids[0] {
			trip.overtaken = maxOvertaken
		}
	}
	p.client.mu.Unlock()
	close(block)
	w.until("one has gone directly, and the owner has one window", func() bool { return p.engine.Stats().Waiting == 1 && o.Stats().Waiting == perKey })
	other.mustRelease("k", id)
	var last uint64
	for i, d := range l.done {
		w.wait("acquire", d, nil)
		if token := p.record("k").Holders[0].Token; token <= last || p.record("k").Holders[0].ID != l.ids[i] {
			t.Fatalf("%+v holds, not %s", p.record("k").Holders, l.ids[i])
		}
		p.mustRelease("k", l.ids[i])
	}
	w.clean("k", p)
}

// Those that are with an owner that is lost, and not in the record, go directly in their order.
func TestFallBackKeepsTheOrder(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, other := w.process(always), w.process(RouterConfig{})
	block := o.blockLeaseReads()
	defer close(block)
	p.meet()
	id := other.mustAcquire("k")
	l := line{process: p, key: "k"}
	l.add(12)
	w.until("they came", func() bool { return o.Stats().Operations == 12 })
	p.client.mu.Lock()
	p.client.suspend(p.client.current)
	p.client.unlock()
	w.until("all wait", func() bool { return len(p.record("k").Waiters) == 12 })
	l.check()
	other.mustRelease("k", id)
	l.end()
}

// Without an owner only the acquires of one window go directly. The others wait in the process, and so do new ones. The next owner is sent
// all of them in their order, and first those that wait in the record already, so that it can pass turns to them.
func TestAfterAFallBackTheNextOwnerServesAll(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, other := w.process(always), w.process(RouterConfig{})
	p.meet()
	id := other.mustAcquire("k")
	l := line{process: p, key: "k"}
	l.add(perKey + 4)
	w.until("the owner has one window", func() bool { return o.Stats().Waiting == perKey })
	if err := o.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	w.until("they go directly", func() bool { return p.engine.Stats().Waiting == perKey })
	l.add(1)
	if st := p.client.Stats(); st.Held != 5 || p.engine.Stats().Waiting != perKey {
		t.Errorf("%d are held back, and %d wait on the direct road", st.Held, p.engine.Stats().Waiting)
	}
	next := w.process(RouterConfig{}).serve()
	p.meet()
	w.until("the next owner has the window", func() bool { return next.Stats().Waiting == perKey })
	other.mustRelease("k", id)
	l.end()
	if n := next.Stats().Operations; n < perKey+5 {
		t.Errorf("the next owner was sent %d operations", n)
	}
}

// A late acknowledgement is measured, so that a client which is busy does not take the owner for lost again and again.
func TestLateAcknowledgementsAreMeasured(t *testing.T) {
	w := newWorld(t)
	w.process(RouterConfig{}).serve()
	p, proxy := w.behind(always)
	p.meet()
	p.mustRelease("k", p.mustAcquire("k"))
	before := p.client.silenceLimit()
	slow := proxy.HoldRequests(frames)
	_, done := p.start("k", p.op(record.OpAcquire, p.lease.NextOp()))
	w.until("the owner is taken to be lost", func() bool { return p.client.Stats().Suspended == 1 })
	if err := slow.Release(); err != nil {
		t.Fatal(err)
	}
	w.wait("acquire", done, nil)
	w.until("more time is given", func() bool { return p.client.silenceLimit() > before })
}

// What was in a frame that is missed is sent again in its order.
func TestMissedFramesKeepTheirOrder(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, proxy := w.behind(always)
	p.meet()
	id := p.mustAcquire("k")
	lost := proxy.DropRequests(faultproxy.Times(1, frames))
	l := line{process: p, key: "k"}
	p.client.mu.Lock() // so they are in one frame
	for range 12 {
		op := p.op(record.OpAcquire, p.lease.NextOp())
		d := make(chan error, 1)
		p.router.submit(&engine.Request{Key: l.key, Op: op, Done: func(_ engine.Outcome, err error) { d <- err }})
		l.ids, l.done = append(l.ids, op.ID), append(l.done, d)
	}
	p.client.unlock()
	w.until("they are lost", func() bool { return lost.Count() == 1 })
	p.mustRelease("other", p.mustAcquire("other"))
	w.until("all wait", func() bool { return o.Stats().Waiting == 12 })
	l.check()
	p.mustRelease("k", id)
	l.end()
}

// line is what a process asks for of one key.
type line struct {
	*process
	key  string
	ids  []string
	done []chan error
}

func (l *line) add(n int) {
	for range n {
		id := l.lease.NextOp()
		_, d := l.start(l.key, l.op(record.OpAcquire, id))
		l.ids, l.done = append(l.ids, id), append(l.done, d)
	}
}

// check fails the test if the record's queue is another one.
func (l *line) check() {
	l.w.t.Helper()
	var in []string
	for _, e := range l.record(l.key).Waiters {
		in = append(in, e.ID)
	}
	if !slices.Equal(in, l.ids) {
		l.w.t.Fatalf("the queue is %v, not %v", in, l.ids)
	}
}

// end lets all hold, in their order.
func (l *line) end() {
	l.w.t.Helper()
	for i, d := range l.done {
		l.w.wait("acquire", d, nil)
		l.mustRelease(l.key, l.ids[i])
	}
	l.w.clean(l.key, l.process)
	if len(l.router.queues) > 0 {
		l.w.t.Error("a queue is left")
	}
}
