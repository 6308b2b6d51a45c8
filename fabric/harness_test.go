package fabric_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/kv"
)

// patience is how long a test waits for what has to come.
const patience = 60 * time.Second

// site is where tests run: a single server or a cluster of three. It is started
// by the first test that needs it and stopped by TestMain.
type site struct {
	name      string
	servers   int             // of its cluster; 0 is a single server
	options   []fabric.Option // of its managers
	shards    int             // of its fabrics; 0 is 1
	coalesced bool            // somebody serves as the coalescer of the common fabric
	once      sync.Once
	err       error
	server    *embedded.Server // of a single one
	cluster   *cluster.Cluster // else
	owner     *fabric.Manager  // who serves, where it is coalesced
	end       []func()         // of what is to end before the server
	kept      sync.Once
	numbers   atomic.Uint64
}

var (
	// On these nothing takes the road over a coalescer, so that writes and reads can be counted.
	singleSite  = &site{name: "one server", options: []fabric.Option{fabric.WithRoad(fabric.RoadDirect)}}
	clusterSite = &site{name: "three servers", servers: 3, options: []fabric.Option{fabric.WithRoad(fabric.RoadDirect)}}

	// On this one managers are as they are by default. Some of them become coalescers.
	defaultSite = &site{name: "one server, as by default"}

	// On these all that can take the road over a coalescer takes it; in belt mode it takes both roads at
	// once.
	coalescedSite = &site{name: "one server, coalesced", coalesced: true, options: []fabric.Option{fabric.WithRoad(fabric.RoadCoalesced)}}
	beltSite      = &site{name: "one server, on both roads", coalesced: true, options: []fabric.Option{fabric.WithRoad(fabric.RoadBoth)}}

	// On these locks are kept.
	keptSite        = &site{name: "one server, kept", options: []fabric.Option{fabric.WithKeep(20 * time.Millisecond)}}
	keptClusterSite = &site{name: "three servers, kept", servers: 3, options: keptSite.options}

	// On these the locks are divided over several buckets.
	shardedSite        = &site{name: "one server, three shards", shards: 3, options: []fabric.Option{fabric.WithShards(3)}}
	shardedClusterSite = &site{name: "three servers, three shards", servers: 3, shards: 3, options: shardedSite.options}

	allSites = []*site{singleSite, clusterSite, defaultSite, coalescedSite, beltSite, keptSite, keptClusterSite, shardedSite, shardedClusterSite}
)

// roads has every list of behaviours run on each road.
var roads = flag.Bool("roads", false, "run the conformance tests on the coalesced road, and on both at once, as well")

func (s *site) start() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.servers == 0 {
		s.server, s.err = embedded.Start(ctx, embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Second)), embedded.WithListen("127.0.0.1:0"))
	} else {
		s.cluster, s.err = cluster.Start(ctx, s.servers)
	}
	if s.shards > 0 && s.err == nil {
		s.err = s.make(ctx)
	}
	if s.coalesced && s.err == nil {
		s.err = s.appoint(ctx)
	}
}

// make makes the common fabric, for managers that don't say how.
func (s *site) make(ctx context.Context) error {
	nc, err := s.connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	m, err := fabric.New(ctx, nc, s.options...)
	if err != nil {
		return err
	}
	return m.Close()
}

// appoint has somebody serve as the coalescer.
func (s *site) appoint(ctx context.Context) error {
	nc, err := s.server.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		return err
	}
	m, err := fabric.New(ctx, nc, slices.Concat(s.options, []fabric.Option{fabric.WithCoalescer(), fabric.WithLeisure(time.Hour)})...)
	if err != nil {
		return err
	}
	s.owner = m
	s.end = append(s.end, func() { _ = m.Close(); nc.Close() })
	for {
		if fabric.Serving(m) > 0 {
			return nil
		}
		if err := errors.Join(ctx.Err(), nc.Publish(coalesce.HelloSubject(fabric.DefaultFabric, 0), nil)); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func stopSites() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	for _, s := range allSites {
		for _, end := range s.end {
			end()
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

// runBehaviours runs them on one server, on three and as by default, on more sites, and with -roads on every road.
func runBehaviours(t *testing.T, list []behaviour, more ...*site) {
	t.Helper()
	t.Parallel()
	sites := append([]*site{singleSite, clusterSite, defaultSite}, more...)
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

func (s *site) connect(opts ...nats.Option) (*nats.Conn, error) {
	if s.cluster != nil {
		return s.cluster.Connect(opts...)
	}
	return s.server.Connect(opts...)
}

// conn returns a connection of its own, as a process of its own would have.
func (s *site) conn(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append([]nats.Option{nats.ReconnectBufSize(-1)}, opts...)
	nc, err := s.connect(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// manager returns a manager with a connection of its own. Its fabric is the
// site's common one unless the options say otherwise.
func (s *site) manager(t testing.TB, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	m := newManager(t, s.conn(t), slices.Concat(s.options, opts)...)
	if s.coalesced && fabric.Name(m) == fabric.DefaultFabric && fabric.OnRoad(m) {
		eventually(t, "a coalescer is known", func() bool { return fabric.Roads(m).Term > 0 })
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

// key returns a lock name that no other test uses.
func (s *site) key(t testing.TB) string {
	n, name := s.numbers.Add(1), strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, t.Name())
	if s.shards > 1 { // the keys of a test are in all of them
		return fmt.Sprintf("%d-%s/%d", n, name, n)
	}
	return fmt.Sprintf("%s/%d", name, n)
}

// fabric returns the name of a fabric that no other test uses, whose buckets are
// deleted at the end of the test.
func (s *site) fabric(t testing.TB) string { return s.fabricOf(t, s.shards) }

// fabricOf is fabric for one of so many shards.
func (s *site) fabricOf(t testing.TB, shards int) string {
	t.Helper()
	name := fmt.Sprintf("own-%d", s.numbers.Add(1))
	js := s.jetStream(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, bucket := range kv.LocksBuckets(name, shards) {
			_ = js.DeleteStream(ctx, "KV_"+bucket)
		}
		_ = js.DeleteStream(ctx, "KV_"+name+"-leases")
		_ = js.DeleteStream(ctx, "KV_"+name+"-waits")
	})
	return name
}

// jetStream is the way to make and delete streams.
func (s *site) jetStream(t testing.TB) jetstream.JetStream {
	t.Helper()
	// With its last stream a server removes the directory of streams, even while another is being made.
	s.kept.Do(func() { _ = s.manager(t).Close() })
	js, err := jetstream.New(s.conn(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// bucket returns a bucket of a fabric as any other KV client sees it.
func (s *site) bucket(t testing.TB, name string) jetstream.KeyValue {
	t.Helper()
	b, err := s.jetStream(t).KeyValue(waitContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// locks returns the bucket of the common fabric that has the lock of this encoded name.
func (s *site) locks(t testing.TB, enc string) jetstream.KeyValue {
	t.Helper()
	return s.bucket(t, kv.LocksBuckets(fabric.DefaultFabric, s.shards)[kv.Shard(enc, s.shards)])
}

// deleteBuckets deletes those of a fabric.
func (s *site) deleteBuckets(t testing.TB, name string) {
	t.Helper()
	for _, bucket := range append(kv.LocksBuckets(name, s.shards), kv.LeasesBucket(name)) {
		if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+bucket); err != nil {
			t.Fatal(err)
		}
	}
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

func acquire(t testing.TB, m *fabric.Manager, key string, opts ...fabric.AcquireOption) *fabric.Lock {
	t.Helper()
	l, err := m.Acquire(waitContext(t), key, opts...)
	if err != nil {
		t.Fatalf("acquire: %v", err)
	}
	return l
}

func release(t testing.TB, l *fabric.Lock) {
	t.Helper()
	if err := l.Release(waitContext(t)); err != nil {
		t.Fatalf("release: %v", err)
	}
}

// grant is what an acquire in the background came to.
type grant struct {
	lock *fabric.Lock
	err  error
}

// queue acquires in the background and returns when the request stands in the
// lock's queue.
func queue(t testing.TB, ctx context.Context, m *fabric.Manager, key string, opts ...fabric.AcquireOption) <-chan grant {
	t.Helper()
	was := len(inspect(t, m, key).Waiters)
	out := acquireAsync(ctx, m, key, opts...)
	waitQueue(t, m, key, was+1)
	return out
}

func acquireAsync(ctx context.Context, m *fabric.Manager, key string, opts ...fabric.AcquireOption) <-chan grant {
	out := make(chan grant, 1)
	go func() {
		l, err := m.Acquire(ctx, key, opts...)
		out <- grant{l, err}
	}()
	return out
}

// granted waits for an acquire in the background.
func granted(t testing.TB, c <-chan grant) *fabric.Lock {
	t.Helper()
	g := receive(t, c)
	if g.err != nil {
		t.Fatalf("acquire in the background: %v", g.err)
	}
	return g.lock
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

func inspect(t testing.TB, m *fabric.Manager, key string) fabric.Info {
	t.Helper()
	info, err := m.Inspect(waitContext(t), key)
	if err != nil {
		t.Fatalf("inspect: %v", err)
	}
	return info
}

func waitQueue(t testing.TB, m *fabric.Manager, key string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d waiters", n), func() bool { return len(inspect(t, m, key).Waiters) == n })
}

// waitLost waits for the loss of a hold and returns its reason.
func waitLost(t testing.TB, l *fabric.Lock) error {
	t.Helper()
	select {
	case <-l.Lost():
	case <-time.After(patience):
		t.Fatal("the hold is never lost")
	}
	var lost *fabric.LostError
	if err := l.Err(); !errors.As(err, &lost) || !errors.Is(err, fabric.ErrLost) {
		t.Fatalf("after Lost was closed, Err is %v", err)
	}
	if cause := context.Cause(l.Context()); !errors.Is(cause, fabric.ErrLost) || l.Context().Err() == nil {
		t.Errorf("the hold's context ends with %v", cause)
	}
	if !l.ValidUntil().IsZero() {
		t.Errorf("a lost hold is valid until %v", l.ValidUntil())
	}
	return lost.Reason
}

func expectHolder(t testing.TB, m *fabric.Manager, key string, l *fabric.Lock) {
	t.Helper()
	eventually(t, fmt.Sprintf("held by %s with token %d alone", l.ID(), l.Token()), func() bool { // the record follows a turn
		info := inspect(t, m, key)
		return len(info.Holders) == 1 && info.Holders[0].ID == l.ID() && info.Holders[0].Token == l.Token()
	})
	if err := l.Err(); err != nil {
		t.Errorf("the holder's handle says %v", err)
	}
}

func expectFree(t testing.TB, m *fabric.Manager, key string) {
	t.Helper()
	if fabric.OnRoad(m) { // an owner that is behind may write once more what was released, also after a look
		eventually(t, key+" is free", func() bool { return free(t, m, key) })
		return
	}
	for h := inspect(t, m, key).Holders; len(h) == 1 && h[0].Metadata["intent"] == "kept"; h = inspect(t, m, key).Holders {
		time.Sleep(10 * time.Millisecond) // on the site where locks are kept for a moment
	}
	if info := inspect(t, m, key); len(info.Holders)+len(info.Waiters) > 0 || info.Kind != "" {
		t.Errorf("not free: %+v", info)
	}
}

// leaseOf returns the lease that a hold stands under.
func leaseOf(id string) string { return id[:strings.LastIndexByte(id, '.')] }
