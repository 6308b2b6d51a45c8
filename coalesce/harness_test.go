package coalesce

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

var fabrics atomic.Uint64

// world is the fabric of one test, with its processes.
type world struct {
	t      testing.TB
	fabric string
	url    string
	terms  uint64
	// patient makes clients wait for their owner however slow it is. Tests that count what an owner did
	// need it.
	patient bool
	noTurns bool
}

func newWorld(t testing.TB) *world {
	return &world{t: t, fabric: fmt.Sprintf("co%d", fabrics.Add(1)), url: startSite(t).ClientURL()}
}

func newPatientWorld(t testing.TB) *world {
	w := newWorld(t)
	w.patient = true
	return w
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// process is one process of the fabric: a connection, an engine, a lease, and a router.
type process struct {
	w        *world
	nc       *nats.Conn
	buckets  *jskv.Buckets
	hub      *jskv.Hub
	leaseHub *jskv.Hub
	observer *lease.Observer
	engine   *engine.Engine
	lease    *lease.Lease
	manager  string
	leases   atomic.Uint64
	tokens   sync.Map // of holds, by id
	client   *Client
	router   *Router
	inbox    int // bound of the frames in its subscription as an owner; 0: the usual one
}

// process starts a process that connects to url, or to the world's server.
func (w *world) process(cfg RouterConfig, url ...string) *process {
	t := w.t
	t.Helper()
	ctx := w.context()
	p := &process{w: w, manager: nuid.Next()}
	var err error
	if p.nc, err = nats.Connect(append(url, w.url)[0], nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.nc.Close)
	if p.buckets, err = jskv.Open(ctx, p.nc, jskv.Config{Fabric: w.fabric}); err != nil {
		t.Fatal(err)
	}
	p.hub, p.leaseHub = jskv.NewHub(p.buckets.Locks[0]), jskv.NewHub(p.buckets.Leases)
	t.Cleanup(p.hub.Close)
	t.Cleanup(p.leaseHub.Close)
	p.observer = lease.NewObserver(p.buckets.Leases, p.leaseHub.Watch, clock.Observer(), "", nil, nil)
	t.Cleanup(p.observer.Close)
	hints := &hints{p: p}
	if _, err := p.nc.Subscribe(hints.subject(p.manager), hints.take); err != nil {
		t.Fatal(err)
	}
	p.engine = engine.New(engine.Config{
		Hints: hints,
		Store: p.buckets.Locks[0], Watcher: p.hub, Observer: p.observer,
		Contended: func(key string) { p.router.Contended(key) },
	})
	t.Cleanup(p.engine.Close)
	p.client, err = NewClient(ClientConfig{Conn: p.nc, Fabric: w.fabric, Manager: p.manager, Stamp: p.stamp()})
	if err != nil {
		t.Fatal(err)
	}
	if w.patient {
		p.client.minSilence = patience
	}
	p.router = NewRouter(p.engine, p.client, cfg)
	t.Cleanup(p.router.Close)
	p.lease = p.newLease(30 * time.Second)
	return p
}

// hints work as those of package fabric.
type hints struct{ p *process }

func (h *hints) subject(manager string) string { return "lf." + h.p.w.fabric + ".p." + manager }

func (h *hints) Work() bool { return true }

func (h *hints) Tell(leases []string, key string, rev uint64) {
	told := map[string]bool{h.p.manager: true}
	for _, id := range leases {
		if m, _, ok := strings.Cut(id, "-"); ok && !told[m] {
			told[m] = true
			_ = h.p.nc.Publish(h.subject(m), []byte(key+" "+strconv.FormatUint(rev, 10)))
		}
	}
}

func (h *hints) take(m *nats.Msg) {
	key, text, _ := strings.Cut(string(m.Data), " ")
	if rev, err := strconv.ParseUint(text, 10, 64); err == nil {
		h.p.router.Look(key, rev)
	}
}

func (p *process) stamp() Stamp { return NewStamp(p.buckets.Locks[0].Incarnation(), 0, 1) }

func (p *process) newLease(ttl time.Duration) *lease.Lease {
	p.w.t.Helper()
	l, err := lease.Create(p.w.context(), p.buckets.Leases, lease.Config{TTL: ttl, AutoRenew: true, ID: func() string {
		return fmt.Sprintf("%s-%d", p.manager, p.leases.Add(1))
	}})
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.w.t.Cleanup(func() { _ = l.Close(p.w.context()) })
	return l
}

func (p *process) leaseAlive(ctx context.Context, id string) (bool, error) {
	st, err := p.observer.Check(ctx, id, time.Hour)
	return !st.Dead && st.Revision > 0, err
}

// owner owns the shard for one term.
type owner struct {
	*Service
	p     *process
	lease *lease.Lease
	valid atomic.Bool
}

// serve makes the process the owner of the shard for a new term.
func (p *process) serve(ttl ...time.Duration) *owner {
	p.w.t.Helper()
	p.w.terms++
	o := &owner{p: p, lease: p.newLease(append(ttl, 30*time.Second)[0])}
	o.valid.Store(true)
	var err error
	o.Service, err = Serve(ServiceConfig{
		Conn: p.nc, Fabric: p.w.fabric, Stamp: p.stamp(), inbox: p.inbox, Term: p.w.terms, Lease: o.lease.ID(), Version: "1.2.3",
		Doer: p.engine, Known: p.engine.Known, Writes: func() uint64 { return p.engine.Stats().Writes }, Batched: func() uint64 { return 100 + p.engine.Stats().Writes }, Valid: func() bool { return o.valid.Load() && o.lease.Valid() }, LeaseAlive: p.leaseAlive,
	})
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.w.t.Cleanup(func() { _ = o.Close(p.w.context()) })
	p.router.SetHere(true)
	return o
}

// blockLeaseReads delays the owner's reads of client leases until the channel is closed.
func (o *owner) blockLeaseReads() (block chan struct{}) {
	block = make(chan struct{})
	o.mu.Lock()
	defer o.mu.Unlock()
	read := o.cfg.LeaseAlive
	o.cfg.LeaseAlive = func(ctx context.Context, id string) (bool, error) {
		<-block
		return read(ctx, id)
	}
	return block
}

// besideSilentOwner starts an owner and a process that sends everything on both roads and knows that owner. The owner does
// nothing until block is closed, since it can't read whether the client's lease is alive.
func (w *world) besideSilentOwner() (o *owner, p *process, block chan struct{}) {
	o, p = w.process(RouterConfig{}).serve(), w.process(RouterConfig{Belt: true})
	block = o.blockLeaseReads()
	p.meet()
	return o, p, block
}

// behindSilentOwner is besideSilentOwner with a proxy between the process and the server, and a second process that does not know the owner.
func (w *world) behindSilentOwner() (o *owner, p *process, proxy *faultproxy.Proxy, other *process, block chan struct{}) {
	o = w.process(RouterConfig{}).serve()
	p, proxy = w.behind(RouterConfig{Belt: true})
	other = w.process(RouterConfig{})
	block = o.blockLeaseReads()
	p.meet()
	return o, p, proxy, other, block
}

// shout sends a beat of the owner.
func (o *owner) shout() {
	b := o.beat()
	_ = o.p.nc.Publish(BeatSubject(o.cfg.Fabric, o.cfg.Shard), b.append(nil))
}

// meet makes the client find the owner.
func (p *process) meet() {
	p.w.t.Helper()
	p.router.Contended("meet")
	p.w.until("an owner is known", p.client.hasOwner.Load)
}

// until waits until a condition holds, and fails if it never does.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

func (p *process) op(verb record.Verb, id string) record.Op {
	op := record.Op{Kind: record.KindLock, Verb: verb, ID: id, Lease: record.LeaseOf(id)}
	if verb != record.OpRelease {
		op.Mode, op.TTL = record.X, p.lease.TTL()
	}
	return op
}

// acquire acquires the key, and returns the hold's id and its grant.
func (p *process) acquire(key string) (string, engine.Outcome, error) {
	id := p.lease.NextOp()
	out, err := engine.Do(p.w.context(), p.router, key, p.op(record.OpAcquire, id), engine.Options{Turns: !p.w.noTurns})
	if err == nil {
		p.tokens.Store(id, out.Entry.Token)
	}
	return id, out, err
}

func (p *process) mustAcquire(key string) string {
	p.w.t.Helper()
	id, out, err := p.acquire(key)
	if err != nil || out.Entry.ID != id || out.Entry.Token == 0 || out.Entry.Mode != record.X {
		p.w.t.Fatalf("acquire: %+v, %v", out, err)
	}
	return id
}

func (p *process) release(key, id string) (engine.Outcome, error) {
	op := p.op(record.OpRelease, id)
	if token, ok := p.tokens.LoadAndDelete(id); ok {
		op.Token = token.(uint64)
	}
	return engine.Do(context.Background(), p.router, key, op, engine.Options{Bound: patience, Held: op.Token != 0 && !p.w.noTurns})
}

func (p *process) mustRelease(key, id string) {
	p.w.t.Helper()
	if out, err := p.release(key, id); err != nil || !out.Existed {
		p.w.t.Fatalf("release: %+v, %v", out, err)
	}
}

// record reads the record of a key.
func (p *process) record(key string) *record.Record {
	p.w.t.Helper()
	rec, _, err := p.engine.Read(p.w.context(), key)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return rec
}

// behind starts a process behind a proxy.
func (w *world) behind(cfg RouterConfig) (*process, *faultproxy.Proxy) {
	w.t.Helper()
	proxy := faultproxy.New(w.t, strings.TrimPrefix(w.url, "nats://"))
	return w.process(cfg, proxy.URL()), proxy
}

// start submits an operation, and returns the channel for its answer.
func (p *process) start(key string, op record.Op) (*engine.Request, chan error) {
	done := make(chan error, 1)
	q := &engine.Request{Key: key, Op: op, Done: func(_ engine.Outcome, err error) { done <- err }}
	p.router.Submit(q)
	return q, done
}

func (w *world) wait(what string, done <-chan error, want error) {
	w.t.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, want) {
			w.t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(patience):
		w.t.Fatalf("%s: no answer in %v", what, patience)
	}
}

// owes reports whether the router has acquires or trips.
func (p *process) owes() bool {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	return len(p.router.acquires)+len(p.router.trips) > 0
}

// open reports whether an owner may still write an acquire without an answer.
func (p *process) open(id string) bool {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	t := p.router.acquires[id]
	return t != nil && len(t.openCalls) > 0
}

// clean waits until a key's record is empty and nothing can be written into it any more.
func (w *world) clean(key string, all ...*process) {
	w.t.Helper()
	for _, p := range all {
		w.until("the ledger is empty", func() bool { return !p.owes() })
	}
	w.until("the record is gone", func() bool { return all[0].record(key) == nil })
}

// contest makes every process acquire the key n times. It fails if two hold it at once, or if a token
// is not above the one before.
func (w *world) contest(key string, n int, all ...*process) {
	w.t.Helper()
	var inside atomic.Int32
	var last atomic.Uint64
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			for range n {
				id, out, err := p.acquire(key)
				if err != nil {
					w.t.Errorf("acquire: %v", err)
					return
				}
				if inside.Add(1) != 1 {
					w.t.Error("two hold it")
				}
				if token := out.Entry.Token; last.Swap(token) >= token {
					w.t.Errorf("token %d is not above the one before", token)
				}
				inside.Add(-1)
				if out, err := p.release(key, id); err != nil || !out.Existed {
					w.t.Errorf("release: %+v, %v", out, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
