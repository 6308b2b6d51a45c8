package primitives_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// patience is how long a test waits for what has to come.
const patience = 60 * time.Second

// mortalTTL is that of managers that a test cuts off: long enough that they live until then on a busy machine, too.
const mortalTTL = 3 * time.Second

// site is where tests run: a single server or a cluster of three. It is started by the first test that
// needs it and stopped by TestMain.
type site struct {
	name    string
	road    fabric.Road
	once    sync.Once
	err     error
	server  *embedded.Server // of a single one
	cluster *cluster.Cluster // else
	owner   *fabric.Manager  // the coalescer, where there is one
	numbers atomic.Uint64
}

var (
	// Here everything goes directly, so that writes and reads can be counted.
	singleSite  = &site{name: "one server", road: fabric.RoadDirect}
	clusterSite = &site{name: "three servers", road: fabric.RoadDirect}

	// Here somebody serves as the coalescer. Operations go as is the default, over the coalescer, and over it and directly at once.
	automaticSite    = &site{name: "one server, automatic", road: fabric.RoadAutomatic}
	coalescedSite    = &site{name: "one server, coalesced", road: fabric.RoadCoalesced}
	bothRoadsSite    = &site{name: "one server, on both roads", road: fabric.RoadBoth}
	bothRoadsOfThree = &site{name: "three servers, on both roads", road: fabric.RoadBoth}

	allSites = []*site{singleSite, clusterSite, automaticSite, coalescedSite, bothRoadsSite, bothRoadsOfThree}
)

// roads has every list of behaviours run on each road.
var roads = flag.Bool("roads", false, "run the primitives over a coalescer, and on both roads at once, as well")

func (s *site) start() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s != clusterSite && s != bothRoadsOfThree {
		s.server, s.err = embedded.Start(ctx, embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Second)), embedded.WithListen("127.0.0.1:0"))
	} else {
		s.cluster, s.err = cluster.Start(ctx, 3)
	}
	if s.err == nil && s.road != fabric.RoadDirect {
		s.owner, s.err = fabric.Connect(ctx, s.url(), fabric.WithCoalescer())
	}
}

func stopSites() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	for _, s := range allSites {
		if s.owner != nil {
			errs = append(errs, s.owner.Close())
		}
		if s.server != nil {
			errs = append(errs, s.server.Shutdown(ctx))
		}
		if s.cluster != nil {
			errs = append(errs, s.cluster.Shutdown())
		}
	}
	return errors.Join(errs...)
}

// onSite runs fn on a started site.
func onSite(t *testing.T, s *site, fn func(t *testing.T, s *site)) {
	t.Helper()
	t.Run(s.name, func(t *testing.T) {
		t.Helper()
		s.once.Do(s.start)
		if s.err != nil {
			t.Fatal(s.err)
		}
		fn(t, s)
	})
}

// onBothSites runs fn on one server and on three.
func onBothSites(t *testing.T, fn func(t *testing.T, s *site)) {
	t.Helper()
	onSite(t, singleSite, fn)
	onSite(t, clusterSite, fn)
}

// behaviour is one line of the conformance suite.
type behaviour struct {
	name string
	run  func(t *testing.T, s *site)
}

// runBehaviours runs them on one server, on three, as is the default and on both roads, on more sites, and with -roads on all.
func runBehaviours(t *testing.T, list []behaviour, more ...*site) {
	t.Helper()
	t.Parallel()
	sites := append([]*site{singleSite, clusterSite, automaticSite, bothRoadsSite}, more...)
	if *roads {
		sites = allSites
	}
	for _, s := range sites {
		onSite(t, s, func(t *testing.T, s *site) {
			for _, b := range list {
				t.Run(b.name, func(t *testing.T) {
					t.Parallel()
					b.run(t, s)
				})
			}
		})
	}
}

// conn returns a connection of its own, as a process of its own would have.
func (s *site) conn(t testing.TB) *nats.Conn {
	t.Helper()
	connect := func(o ...nats.Option) (*nats.Conn, error) { return s.server.Connect(o...) }
	if s.cluster != nil {
		connect = s.cluster.Connect
	}
	nc, err := connect(nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (s *site) jetStream(t testing.TB) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(s.conn(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// locks returns the bucket of the records, as other programs see it.
func (s *site) locks(t testing.TB) jetstream.KeyValue {
	t.Helper()
	s.manager(t) // makes it
	bucket, err := s.jetStream(t).KeyValue(waitContext(t), fabric.DefaultFabric+"-locks")
	if err != nil {
		t.Fatal(err)
	}
	return bucket
}

// url is where a process of its own connects.
func (s *site) url() string {
	if s.cluster != nil {
		return s.cluster.URL()
	}
	return s.server.ClientURL()
}

// manager returns a manager with a connection of its own.
func (s *site) manager(t testing.TB, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	m := newManager(t, s.conn(t), append([]fabric.Option{fabric.WithRoad(s.road), fabric.WithoutVolunteering()}, opts...)...)
	if s.owner != nil && s.road != fabric.RoadAutomatic { // which asks once it meets somebody
		eventually(t, "a coalescer is known", func() bool { return m.Stats().CoalescerTerm > 0 })
	}
	return m
}

func newManager(t testing.TB, nc *nats.Conn, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	m, err := fabric.New(waitContext(t), nc, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// key returns a name that no other test uses.
func (s *site) key(t testing.TB) string {
	return fmt.Sprintf("%s/%d", strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, t.Name()), s.numbers.Add(1))
}

// waitContext ends after patience.
func waitContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually asks until the answer is yes. It is for what has no event.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// receive waits for what has to come out of a channel.
func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing comes")
		panic("not reached")
	}
}

// result is what a call in the background came to.
type result[T any] struct {
	value T
	err   error
}

// async makes a call in the background.
func async[T any](fn func() (T, error)) <-chan result[T] {
	out := make(chan result[T], 1)
	go func() {
		v, err := fn()
		out <- result[T]{v, err}
	}()
	return out
}

func second[T any](_ T, err error) error { return err }

// must is the value of a call that has to succeed.
func must[T any](t testing.TB, c <-chan result[T]) T {
	t.Helper()
	r := receive(t, c)
	if r.err != nil {
		t.Fatalf("in the background: %v", r.err)
	}
	return r.value
}

func read(t testing.TB, m *fabric.Manager, key string) fabric.Info {
	t.Helper()
	info, err := m.Read(waitContext(t), key)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return info
}

// waitInfo reads until the record is as it should be.
func waitInfo(t testing.TB, m *fabric.Manager, key, what string, is func(info fabric.Info) bool) {
	t.Helper()
	eventually(t, what, func() bool { return is(read(t, m, key)) })
}

func waitQueue(t testing.TB, m *fabric.Manager, key string, n int) {
	t.Helper()
	waitInfo(t, m, key, fmt.Sprintf("%d waiters", n), func(i fabric.Info) bool { return len(i.Waiters) == n })
}

func expectFree(t testing.TB, m *fabric.Manager, key string) {
	t.Helper()
	if info := read(t, m, key); info.Kind != "" {
		t.Errorf("not free: %+v", info)
	}
}

// writeCount is how many writes were answered, and how many were not in time, were put off by a busy server, or were
// a coalescer's: those may be committed or not, and are done again then.
type writeCount struct{ done, unknown uint64 }

// not reports whether n is certainly not the number of writes that it took.
func (c writeCount) not(n uint64) bool { return c.unknown == 0 && c.done != n }

// writes counts the writes of fn by these managers.
func writes(fn func(), of ...*fabric.Manager) writeCount {
	count := func() (c writeCount) {
		for _, m := range of {
			st := m.Stats()
			c.done, c.unknown = c.done+st.Writes, c.unknown+st.Unknown+st.Busy+st.Coalesced
		}
		return c
	}
	// What was written before can be read before its answer has come.
	before := count()
	for still := 0; still < 10; still++ {
		time.Sleep(5 * time.Millisecond)
		if now := count(); now != before {
			before, still = now, 0
		}
	}
	fn()
	after := count()
	return writeCount{after.done - before.done, after.unknown - before.unknown}
}

// releaser is the part of a handle that every hold has.
type releaser interface {
	Release(ctx context.Context) error
}

func release(t testing.TB, l releaser) {
	t.Helper()
	if err := l.Release(waitContext(t)); err != nil {
		t.Fatalf("release: %v", err)
	}
}

// behindProxy returns a proxy before the site's server, and a connection through it.
func (s *site) behindProxy(t *testing.T, opts ...nats.Option) (*faultproxy.Proxy, *nats.Conn) {
	t.Helper()
	proxy := faultproxy.New(t, s.url())
	nc, err := nats.Connect(proxy.URL(), append(opts, nats.ReconnectBufSize(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return proxy, nc
}
