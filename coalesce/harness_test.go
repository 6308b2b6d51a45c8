package coalesce

import (
	"context"
	"fmt"
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
)

var fabrics atomic.Uint64

// world is a fabric of one test, and the processes in it.
type world struct {
	t      testing.TB
	fabric string
	url    string
	terms  uint64
}

func newWorld(t testing.TB) *world {
	return &world{t: t, fabric: fmt.Sprintf("co%d", fabrics.Add(1)), url: startSite(t).ClientURL()}
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// process is what a process has: a connection, an engine, a lease, and a router.
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
	client   *Client
	router   *Router
}

// process starts one that connects to url, or to the world's server.
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
	p.hub, p.leaseHub = jskv.NewHub(p.buckets.Locks), jskv.NewHub(p.buckets.Leases)
	t.Cleanup(p.hub.Close)
	t.Cleanup(p.leaseHub.Close)
	p.observer = lease.NewObserver(p.buckets.Leases, p.leaseHub.Watch, clock.Observer(), "", nil, nil)
	t.Cleanup(p.observer.Close)
	p.engine = engine.New(engine.Config{
		Store: p.buckets.Locks, Watcher: p.hub, Observer: p.observer,
		Contended: func(key string) { p.router.Contended(key) },
	})
	t.Cleanup(p.engine.Close)
	p.client, err = NewClient(ClientConfig{Conn: p.nc, Fabric: w.fabric, Manager: p.manager, Stamp: p.stamp()})
	if err != nil {
		t.Fatal(err)
	}
	cfg.LeaseDead = p.leaseDead
	p.router = NewRouter(p.engine, p.client, cfg)
	t.Cleanup(p.router.Close)
	p.lease = p.newLease(30 * time.Second)
	return p
}

func (p *process) stamp() Stamp { return NewStamp(p.buckets.Locks.Incarnation(), 0, 1) }

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

func (p *process) leaseDead(ctx context.Context, id string) (bool, error) {
	st, err := p.observer.Check(ctx, id, time.Hour)
	return st.Dead, err
}

func (p *process) leaseAlive(ctx context.Context, id string) (bool, error) {
	st, err := p.observer.Check(ctx, id, time.Hour)
	return !st.Dead && st.Revision > 0, err
}

// own is an owner of the shard for one term.
type owner struct {
	*Service
	p     *process
	lease *lease.Lease
	valid atomic.Bool
}

// serve has the process own the shard, for a new term.
func (p *process) serve() *owner {
	p.w.t.Helper()
	p.w.terms++
	o := &owner{p: p, lease: p.newLease(4 * time.Second)}
	o.valid.Store(true)
	var err error
	o.Service, err = Serve(ServiceConfig{
		Conn: p.nc, Fabric: p.w.fabric, Stamp: p.stamp(), Term: p.w.terms, Lease: o.lease.ID(), Version: "1.2.3",
		Doer: p.engine, Valid: func() bool { return o.valid.Load() && o.lease.Valid() }, LeaseAlive: p.leaseAlive,
	})
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.w.t.Cleanup(func() { _ = o.Close(p.w.context()) })
	p.router.SetHere(true)
	return o
}

// meet has the client find the owner.
func (p *process) meet() {
	p.w.t.Helper()
	p.router.Contended("meet")
	p.w.until("an owner is known", p.client.served.Load)
}

// until waits for something that has to come.
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

// acquire waits for the key, and returns the hold's id and its grant.
func (p *process) acquire(key string) (string, engine.Outcome, error) {
	id := p.lease.NextOp()
	out, err := engine.Do(p.w.context(), p.router, key, p.op(record.OpAcquire, id), engine.Options{})
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
	return engine.Do(context.Background(), p.router, key, p.op(record.OpRelease, id), engine.Options{Bound: patience})
}

func (p *process) mustRelease(key, id string) {
	p.w.t.Helper()
	if out, err := p.release(key, id); err != nil || !out.Existed {
		p.w.t.Fatalf("release: %+v, %v", out, err)
	}
}

// record reads a key's record.
func (p *process) record(key string) *record.Record {
	p.w.t.Helper()
	rec, _, err := p.engine.Read(p.w.context(), key)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return rec
}
