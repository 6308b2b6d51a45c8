package coalesce

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// raw is a client that can send any bytes.
type raw struct {
	w       *world
	nc      *nats.Conn
	o       *owner
	manager string
	replies *nats.Subscription
	seq     uint64
}

func (w *world) raw(o *owner, manager string) *raw {
	w.t.Helper()
	nc, err := nats.Connect(w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	r := &raw{w: w, nc: nc, o: o, manager: manager}
	if r.replies, err = nc.SubscribeSync(inbox(w.fabric, 0, manager) + "r"); err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (r *raw) publish(reply string, data []byte) {
	r.w.t.Helper()
	if err := r.nc.PublishRequest(opSubject(r.w.fabric, 0, r.o.cfg.Term), reply, data); err != nil {
		r.w.t.Fatal(err)
	}
}

// send sends a frame that asks for these operations, and returns the outcome of the first.
func (r *raw) send(stamp Stamp, items ...item) outcome {
	r.w.t.Helper()
	r.seq++
	f := frame{stamp: stamp, ack: true, seq: r.seq, items: items}
	r.publish(inbox(r.w.fabric, 0, r.manager)+"f.1.1", f.append(nil))
	for {
		m, err := r.replies.NextMsg(patience)
		if err != nil {
			r.w.t.Fatal(err)
		}
		p, err := decodeReply(m.Data)
		if err != nil {
			r.w.t.Fatal(err)
		}
		if len(p.outcomes) > 0 {
			return p.outcomes[0]
		}
	}
}

func (r *raw) acquire(lease string, seq uint64) item {
	op := record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: record.ID(lease, seq), Lease: lease, Mode: record.X, TTL: time.Second}
	return item{key: "k", op: op}
}

// C17: an owner never publishes to a subject that a client has made up.
func TestC17RepliesGoNowhereElse(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(RouterConfig{})
	r := w.raw(o, "victim")
	f := frame{stamp: p.stamp(), ack: true, seq: 1, items: []item{r.acquire("victim-1", 1)}}
	bad := []string{
		"$KV." + w.fabric + "-locks.k", "lf." + w.fabric + ".p.victim", "lf.other.n.victim.f.1.1", "lf." + w.fabric + ".n.victim",
		"lf." + w.fabric + ".n.a-b.f", "lf." + w.fabric + ".n." + strings.Repeat("x", maxManager+1) + ".f", "_INBOX.x",
	}
	for _, subject := range bad {
		sub, err := r.nc.SubscribeSync(subject)
		if err != nil {
			t.Fatal(err)
		}
		r.publish(subject, f.append(nil))
		if err := r.nc.PublishRequest(HelloSubject(w.fabric, 0), subject, nil); err != nil {
			t.Fatal(err)
		}
		w.until("it came", func() bool { return o.Stats().Dropped == o.Stats().Frames })
		if n, _, _ := sub.Pending(); n > 0 && !strings.HasPrefix(subject, "$KV") {
			t.Errorf("something came on %s", subject)
		}
	}
	w.until("all were dropped", func() bool { return o.Stats().Dropped == uint64(len(bad)) })
	if rec := p.record("k"); rec != nil || o.Stats().Sessions != 0 {
		t.Errorf("the record says %+v; %d sessions", rec, o.Stats().Sessions)
	}
}

// C17: garbage, messages that are too large, and leases of other clients.
func TestC17HostileFrames(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	p.meet()
	r := w.raw(o, "stranger")
	reply := inbox(w.fabric, 0, "stranger") + "f.1.1"
	for _, data := range [][]byte{nil, {frameMagic}, []byte("hello"), bytes.Repeat([]byte{0xff}, 100), make([]byte, maxFrame+1), make([]byte, 900<<10)} {
		r.publish(reply, data)
	}
	w.until("all were dropped", func() bool { return o.Stats().Dropped == 6 })
	for _, lease := range []string{p.lease.ID(), "strange-1", "stranger2-1", "stranger"} {
		if out := r.send(p.stamp(), r.acquire(lease, 1)); out.kind != notDone || out.code != codeLeaseUnknown {
			t.Errorf("under the lease %s: %+v", lease, out)
		}
	}
	unknown := r.acquire("stranger-1", 1)
	unknown.op.Verb = 0
	if out := r.send(p.stamp(), unknown); out.code != codeUnsupported {
		t.Errorf("an unknown operation: %+v", out)
	}
	if rec := p.record("k"); rec != nil {
		t.Errorf("the record says %+v", rec)
	}
	p.mustRelease("k", p.mustAcquire("k")) // other clients notice nothing
	if o.Stats().Grants != 1 {
		t.Error("it did not go over the owner")
	}
}

// C17: the number of sessions is bounded. Further clients take the direct road.
func TestC17TooManySessions(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	p.meet()
	o.mu.Lock()
	for i := range maxSessions {
		o.sessions[record.ID("x", uint64(i))] = &session{}
	}
	o.mu.Unlock()
	p.mustRelease("k", p.mustAcquire("k"))
	if o.Stats().Grants != 0 {
		t.Error("it went over the owner")
	}
}

// C17: the number of a session's operations is bounded, too.
func TestC17TooManyOperations(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	p.meet()
	p.mustRelease("k", p.mustAcquire("k"))
	o.mu.Lock()
	o.sessions[p.manager].underWay += maxCredit
	o.mu.Unlock()
	id := p.mustAcquire("k")
	if st := o.Stats(); st.Grants != 1 || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
	p.mustRelease("k", id)
	o.mu.Lock()
	o.sessions[p.manager].underWay -= maxCredit
	o.mu.Unlock()
	w.clean("k", p)
}

// C18: operations under a missing or dead lease are refused.
func TestC18DeadLeases(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(RouterConfig{})
	r := w.raw(o, p.manager)
	never := p.manager + "-99"
	if out := r.send(p.stamp(), r.acquire(never, 1)); out.kind != notDone || out.code != codeLeaseDead {
		t.Errorf("a lease that never was: %+v", out)
	}
	dead := p.newLease(time.Second)
	if err := dead.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(2) {
		if out := r.send(p.stamp(), r.acquire(dead.ID(), seq+1)); out.kind != notDone || out.code != codeLeaseDead {
			t.Errorf("a dead lease: %+v", out)
		}
	}
	if rec := p.record("k"); rec != nil {
		t.Errorf("the record says %+v", rec)
	}
	if out := r.send(p.stamp(), r.acquire(p.lease.ID(), 1)); out.kind != granted {
		t.Errorf("a lease that lives: %+v", out)
	}
}

// C18: operations that arrive while their lease is read keep their order.
func TestC18OrderWhileALeaseIsRead(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	block := o.blockLeaseReads()
	p.meet()
	q, done := p.start("k", p.op(record.OpAcquire, p.lease.NextOp()))
	p.router.Withdraw(q, context.Canceled)
	w.until("both came", func() bool { return o.Stats().Operations == 2 })
	close(block)
	w.wait("withdraw", done, context.Canceled)
	w.clean("k", p)
}

// C19: a client that lost its lease while it queued asks again under a new id. The old one is released.
func TestC19AnotherLease(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, holder := w.process(always), w.process(RouterConfig{})
	p.meet()
	id := holder.mustAcquire("k")
	q, done := p.start("k", p.op(record.OpAcquire, p.lease.NextOp()))
	w.until("it waits", func() bool { return o.Stats().Waiting == 1 })
	p.router.Withdraw(q, engine.ErrStopped)
	w.wait("withdraw", done, engine.ErrStopped)
	w.until("it waits no more", func() bool { return o.Stats().Waiting == 0 })
	old := p.lease.ID()
	p.lease = p.newLease(30 * time.Second)
	again := p.lease.NextOp()
	_, done = p.start("k", p.op(record.OpAcquire, again))
	w.until("it waits", func() bool { return o.Stats().Waiting == 1 })
	if rec := p.record("k"); rec.HasLease(old) || !rec.Has(again) {
		t.Errorf("the record says %+v", rec)
	}
	holder.mustRelease("k", id)
	w.wait("acquire", done, nil)
	p.mustRelease("k", again)
	w.clean("k", p)
}

// C20, C21: owners ignore clients of another bucket or with other shards, and clients ignore such owners.
func TestC20OtherStamp(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(RouterConfig{})
	other := NewStamp(p.buckets.Locks[0].Incarnation(), 1, 2)
	r := w.raw(o, p.manager)
	if out := r.send(other, r.acquire(p.lease.ID(), 1)); out.kind != notDone || out.code != codeStamp {
		t.Errorf("a frame with another stamp: %+v", out)
	}
	p.client.mu.Lock()
	p.client.cfg.Stamp = other
	p.client.mu.Unlock()
	p.router.Contended("k")
	w.until("the owner's answer is dropped", func() bool { return p.client.Stats().Dropped > 1 }) // one is raw's
	p.mustRelease("k", p.mustAcquire("k"))
	if o.Stats().Grants != 0 || p.client.hasOwner.Load() {
		t.Error("it went over the owner")
	}
}

// C23: the owner reports a frame as missed for which its subscription had no room, and the client sends it again.
func TestC23LostFrameIsAskedForAgain(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p, proxy := w.behind(always)
	p.meet()
	lost := proxy.DropRequests(faultproxy.Times(1, frames))
	first, second := p.lease.NextOp(), p.lease.NextOp()
	_, done := p.start("a", p.op(record.OpTry, first))
	if err := lost.Wait(w.context(), 1); err != nil {
		t.Fatal(err)
	}
	_, done2 := p.start("b", p.op(record.OpTry, second))
	w.wait("the second", done2, nil)
	w.wait("the first", done, nil)
	if st := o.Stats(); st.Frames < 2 || st.Grants != 2 {
		t.Errorf("%+v", st)
	}
	p.mustRelease("a", first)
	p.mustRelease("b", second)
	w.clean("a", p)
}

// C23: the owner is blocked, and its subscription has no room for further frames. They are reported as missed, too.
func TestC23SlowConsumer(t *testing.T) {
	w := newPatientWorld(t)
	server := w.process(RouterConfig{})
	server.inbox = 10
	o := server.serve()
	p := w.process(always)
	p.meet()
	slow := make(chan struct{}, 1)
	server.nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrSlowConsumer) {
			slow <- struct{}{}
		}
	})
	r := w.raw(o, "stranger")
	o.mu.Lock()
	for range server.inbox + 2 { // the first is with its handler
		r.publish(inbox(w.fabric, 0, "stranger")+"f.1.1", []byte("garbage"))
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	<-slow
	first, second := p.lease.NextOp(), p.lease.NextOp()
	_, done := p.start("a", p.op(record.OpTry, first))
	if err := errors.Join(p.nc.Flush(), server.nc.Flush()); err != nil { // it has arrived at the subscription and is lost
		t.Fatal(err)
	}
	o.mu.Unlock()
	// Until then there may be no room for the second either, and nothing would follow it.
	w.until("there is room again", func() bool { return o.Stats().Dropped == uint64(server.inbox) })
	_, done2 := p.start("b", p.op(record.OpTry, second))
	w.wait("the second", done2, nil)
	w.wait("the first", done, nil)
	if st := o.Stats(); st.Grants != 2 {
		t.Errorf("%+v", st)
	}
	p.mustRelease("a", first)
	p.mustRelease("b", second)
	w.clean("a", p)
}

// Owners and clients without a common frame version ignore each other.
func TestForeignFrameVersion(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	r := w.raw(o, "newer")
	f := frame{stamp: p.stamp(), ack: true, seq: 1, items: []item{r.acquire("newer-1", 1)}}
	data := f.append(nil)
	data[1] = frameVersion + 1
	r.publish(inbox(w.fabric, 0, "newer")+"f.1.1", data)
	w.until("it is dropped", func() bool { return o.Stats().Dropped == 1 })
	b := o.beat()
	b.term, b.min, b.max = o.cfg.Term+1, frameVersion+1, frameVersion+2
	if err := r.nc.Publish(inbox(w.fabric, 0, p.manager)+"h", b.append(nil)); err != nil {
		t.Fatal(err)
	}
	w.until("the answer is dropped", func() bool { return p.client.Stats().Dropped == 1 })
	p.meet() // the older one's
	p.mustRelease("k", p.mustAcquire("k"))
	if term := p.client.Stats().Term; term != o.cfg.Term || o.Stats().Grants != 1 {
		t.Errorf("term %d is used", term)
	}
}

// C29: an owner that is lost again and again is not used for a while, and for longer each time.
func TestC29Flapping(t *testing.T) {
	w := newWorld(t)
	w.process(RouterConfig{}).serve()
	p := w.process(always)
	p.meet()
	c := p.client
	c.mu.Lock()
	defer c.mu.Unlock()
	for round, want := range []time.Duration{flapping, 2 * flapping, 4 * flapping, flappingMost, flappingMost} {
		for range 3 {
			if time.Now().Before(c.avoidUntil) {
				t.Fatal("it rests too early")
			}
			c.suspend(&term{calls: map[callKey]*call{}})
		}
		if c.avoidFor != want || time.Until(c.avoidUntil) <= 0 {
			t.Errorf("round %d: it rests for %v, want %v", round, c.avoidFor, want)
		}
		c.avoidUntil = time.Time{}
	}
}

// There is no owner: the server says so, and Unserved is called, so that the process can volunteer.
func TestUnserved(t *testing.T) {
	w := newWorld(t)
	p := w.process(RouterConfig{})
	told := make(chan struct{}, 1)
	p.client.cfg.Unserved = func() { told <- struct{}{} }
	p.router.Contended("k")
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
	p.mustRelease("k", p.mustAcquire("k"))
}

// A session is forgotten when all of its leases are dead, and not before: a late operation must be refused, either
// by its frame's number or because its lease is dead.
func TestSessionsAreForgotten(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	p := w.process(always)
	p.meet()
	p.mustRelease("k", p.mustAcquire("k"))
	o.forgetIdle(time.Now())
	later := time.Now().Add(2 * forgetAfter)
	o.forgetIdle(later)
	if n := o.Stats().Sessions; n != 1 {
		t.Fatalf("%d sessions, and the lease lives", n)
	}
	if err := p.lease.Close(w.context()); err != nil {
		t.Fatal(err)
	}
	o.forgetIdle(later)
	if n := o.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
}
