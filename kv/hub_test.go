package kv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/kv"
)

// patience is how long a test waits for what must happen. No test needs it
// unless it fails.
const patience = 30 * time.Second

// never is a poll interval that keeps polling out of a test.
const never = time.Hour

// line is the way to a server, which can be cut and mended.
type line struct {
	srv nats.InProcessConnProvider

	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

// InProcessConn makes a connection, unless the line is cut.
func (l *line) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errors.New("line is cut")
	}
	c, err := l.srv.InProcessConn()
	if err == nil {
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func startServer(t *testing.T) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(testContext(t), embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// connect makes a connection that comes back by itself, closed at the end.
func connect(t *testing.T, to func(...nats.Option) (*nats.Conn, error), opts ...nats.Option) *nats.Conn {
	t.Helper()
	quiet := func(*nats.Conn, *nats.Subscription, error) {} // faults are what these tests are about
	nc, err := to(append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ErrorHandler(quiet))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func openLocks(t *testing.T, nc *nats.Conn) *kv.Bucket {
	t.Helper()
	return openLocksBy(t, nc, nil)
}

func openLocksBy(t *testing.T, nc *nats.Conn, trip kv.RoundTripper) *kv.Bucket {
	t.Helper()
	b, err := kv.Open(testContext(t), nc, kv.Config{Fabric: "hub", Trip: trip})
	if err != nil {
		t.Fatal(err)
	}
	return b.Locks
}

// put writes a key from scratch or over what there is, whatever it takes, and
// returns the revision at which the value stands.
func put(ctx context.Context, t *testing.T, b *kv.Bucket, key string, value string) uint64 {
	t.Helper()
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		e, err := b.Get(attempt, key)
		if err == nil && string(e.Value) == value {
			cancel()
			return e.Revision // an attempt whose outcome was unknown
		}
		if err == nil {
			var rev uint64
			rev, err = b.Update(attempt, key, []byte(value), e.Revision, 0)
			if err == nil {
				cancel()
				return rev
			}
		}
		cancel()
		if ctx.Err() != nil {
			t.Fatalf("put %s: %v", key, err)
		}
	}
}

// inbox is one registration's fn. It keeps the newest entry and fails the test
// when an older one follows.
type inbox struct {
	t       *testing.T
	mu      sync.Mutex
	last    kv.Entry
	calls   int
	changed chan struct{} // closed and replaced at each call
}

func newInbox(t *testing.T) *inbox { return &inbox{t: t, changed: make(chan struct{})} }

func (i *inbox) fn(e kv.Entry) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if e.Revision != 0 && e.Revision < i.last.Revision {
		i.t.Errorf("%s: revision %d after %d", e.Key, e.Revision, i.last.Revision)
	}
	i.last = e
	i.calls++
	close(i.changed)
	i.changed = make(chan struct{})
}

// wait returns when an entry has come for which ok holds.
func (i *inbox) wait(ctx context.Context, what string, ok func(kv.Entry) bool) kv.Entry {
	i.t.Helper()
	for {
		i.mu.Lock()
		last, calls, changed := i.last, i.calls, i.changed
		i.mu.Unlock()
		if calls > 0 && ok(last) {
			return last
		}
		select {
		case <-changed:
		case <-ctx.Done():
			i.t.Fatalf("%s: never came; last of %d calls: %+v", what, calls, last)
		}
	}
}

// key returns the key of what came last.
func (i *inbox) key() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last.Key
}

func (i *inbox) waitRevision(ctx context.Context, rev uint64) {
	i.t.Helper()
	i.wait(ctx, fmt.Sprintf("revision %d", rev), func(e kv.Entry) bool { return e.Revision >= rev })
}

func absent(e kv.Entry) bool { return e.Deleted && e.Revision == 0 }

// waitFor looks until ok holds.
func waitFor(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: did not happen", what)
		}
	}
}

func bucketStream(ctx context.Context, t *testing.T, nc *nats.Conn, b *kv.Bucket) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(ctx, b.Stream())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func consumers(ctx context.Context, t *testing.T, s jetstream.Stream) []string {
	t.Helper()
	var names []string
	list := s.ConsumerNames(ctx)
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestHubServesTenThousandWaiters(t *testing.T) {
	const keys, waiters, limit = 2000, 10_000, 50
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	b := openLocks(t, nc)
	stream := bucketStream(ctx, t, nc, b)
	h := kv.NewHub(b)
	defer h.Close()

	name := func(i int) string { return fmt.Sprintf("resource.%d", i%keys) }
	revs := make([]uint64, keys)
	for i := range keys / 2 { // the other half does not exist yet
		revs[i] = put(ctx, t, b, name(i), "first")
	}
	inboxes := make([]*inbox, waiters)
	stops := make([]func(), waiters)
	var registering sync.WaitGroup
	for i := range waiters {
		inboxes[i] = newInbox(t)
		registering.Go(func() { stops[i] = h.Watch(name(i), inboxes[i].fn) })
	}
	most := 0
	for i, in := range inboxes {
		if rev := revs[i%keys]; rev > 0 {
			in.waitRevision(ctx, rev)
		} else {
			in.wait(ctx, "absence", absent)
		}
		if i%500 == 0 {
			most = max(most, len(consumers(ctx, t, stream)))
		}
	}
	registering.Wait()

	for i := range keys {
		revs[i] = put(ctx, t, b, name(i), "second")
	}
	for i, in := range inboxes {
		in.waitRevision(ctx, revs[i%keys])
	}
	most = max(most, len(consumers(ctx, t, stream)))
	if most >= limit {
		t.Errorf("%d consumers, want fewer than %d", most, limit)
	}
	st := h.Stats()
	if st.Keys != keys || st.Registrations != waiters || st.Watchers >= limit {
		t.Errorf("stats %+v", st)
	}
	for _, stop := range stops {
		stop()
	}
	h.Close()
	waitFor(ctx, t, "consumers removed", func() bool { return len(consumers(ctx, t, stream)) == 0 })
}

func TestHubDeletesAndMarkers(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t)
	b := openLocks(t, connect(t, srv.Connect))
	h := kv.NewHub(b, kv.WithPollInterval(100*time.Millisecond))
	defer h.Close()
	in := newInbox(t)
	h.Watch("a", in.fn)
	in.wait(ctx, "absence", absent)
	rev := put(ctx, t, b, "a", "value")
	if e := in.wait(ctx, "value", func(e kv.Entry) bool { return e.Revision == rev }); string(e.Value) != "value" || e.Deleted {
		t.Errorf("delivered %+v", e)
	}
	marker, err := b.Purge(ctx, "a", rev, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if e := in.wait(ctx, "marker", func(e kv.Entry) bool { return e.Revision == marker }); !e.Deleted || e.Value != nil {
		t.Errorf("delivered %+v", e)
	}
	in.wait(ctx, "the marker's expiry", absent) // the server says nothing of it
}

func TestHubSurvivesDeletedConsumers(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	b := openLocks(t, nc)
	stream := bucketStream(ctx, t, nc, b)
	h := kv.NewHub(b, kv.WithPollInterval(100*time.Millisecond))
	defer h.Close()
	in, other := newInbox(t), newInbox(t)
	h.Watch("a", in.fn)
	h.Watch("b", other.fn)
	in.wait(ctx, "absence", absent)
	other.wait(ctx, "absence", absent)
	for _, name := range consumers(ctx, t, stream) {
		if err := stream.DeleteConsumer(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	in.waitRevision(ctx, put(ctx, t, b, "a", "1"))
	waitFor(ctx, t, "watcher replaced", func() bool { return h.Stats().Reopened > 0 })
	if st := h.Stats(); st.Missed == 0 {
		t.Errorf("stats %+v, want a missed entry", st)
	}
	other.waitRevision(ctx, put(ctx, t, b, "b", "1"))
}

func TestHubResumesAfterReconnect(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t)
	way := &line{srv: srv}
	nc := connect(t, func(opts ...nats.Option) (*nats.Conn, error) {
		return nats.Connect("", append(opts, nats.InProcessServer(way))...)
	})
	b := openLocks(t, nc)
	elsewhere := openLocks(t, connect(t, srv.Connect))
	h := kv.NewHub(b, kv.WithPollInterval(never))
	defer h.Close()
	in, untouched := newInbox(t), newInbox(t)
	h.Watch("a", in.fn)
	h.Watch("b", untouched.fn)
	in.wait(ctx, "absence", absent)
	untouched.wait(ctx, "absence", absent)

	for round := range 3 {
		lost := nc.StatusChanged(nats.RECONNECTING)
		way.cut()
		<-lost
		nc.RemoveStatusListener(lost)
		rev := put(ctx, t, elsewhere, "a", fmt.Sprint("while away ", round))
		way.mend()
		in.waitRevision(ctx, rev)
		waitFor(ctx, t, "watchers replaced", func() bool { return h.Stats().Reopened > uint64(round) })
		in.waitRevision(ctx, put(ctx, t, elsewhere, "a", fmt.Sprint("back ", round)))
	}
	untouched.waitRevision(ctx, put(ctx, t, elsewhere, "b", "1"))
}

func TestHubReportsTheBucketGone(t *testing.T) {
	for name, interval := range map[string]time.Duration{"by advisory": never, "by polls": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			srv := startServer(t)
			nc := connect(t, srv.Connect)
			// Without polls, heartbeats would tell too, 20 s later. So that it
			// is the advisory that counts, its probes of the bucket are counted.
			var probes atomic.Int64
			b := openLocksBy(t, nc, func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
				if bytes.Contains(msg.Data, []byte(`.-"`)) {
					probes.Add(1)
				}
				return nc.RequestMsgWithContext(ctx, msg)
			})
			gone := make(chan error, 10)
			h := kv.NewHub(b, kv.WithPollInterval(interval), kv.WithGone(func(err error) { gone <- err }))
			defer h.Close()
			in := newInbox(t)
			h.Watch("a", in.fn)
			in.waitRevision(ctx, put(ctx, t, b, "a", "1"))

			admin := connect(t, srv.Connect)
			js, err := jetstream.New(admin)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := js.DeleteStream(ctx, b.Stream()); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-gone:
					if !errors.Is(err, kv.ErrBucketGone) {
						t.Errorf("reported %v", err)
					}
				case <-ctx.Done():
					t.Fatal("not reported")
				}
				waitFor(ctx, t, "probe", func() bool { return probes.Swap(0) > 0 })
				failures := h.Stats().OpenFailures
				waitFor(ctx, t, "attempts to open again", func() bool { return h.Stats().OpenFailures > failures+2 })
				opened := h.Stats().Opened
				again := openLocks(t, admin)
				in.waitRevision(ctx, put(ctx, t, again, "a", "again"))
				waitFor(ctx, t, "watcher opened again", func() bool { return h.Stats().Opened > opened })
			}
			if len(gone) > 0 {
				t.Errorf("reported once more: %v", <-gone)
			}
		})
	}
}

func TestHubCloseInTheMiddle(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	b := openLocks(t, nc)
	for range 20 {
		h := kv.NewHub(b)
		var users sync.WaitGroup
		for i := range 50 {
			users.Go(func() {
				for j := range 10 {
					stop := h.Watch(fmt.Sprintf("k%d", (i+j)%30), func(kv.Entry) {})
					defer stop()
				}
			})
		}
		users.Go(h.Close)
		h.Close()
		users.Wait()
		h.Close()
	}
	stream := bucketStream(ctx, t, nc, b)
	waitFor(ctx, t, "consumers removed", func() bool { return len(consumers(ctx, t, stream)) == 0 })
}

func TestHubOutlivesItsConnection(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	h := kv.NewHub(openLocks(t, nc), kv.WithPollInterval(20*time.Millisecond))
	in := newInbox(t)
	stop := h.Watch("a", in.fn)
	in.wait(ctx, "absence", absent)
	nc.Close()
	waitFor(ctx, t, "failure to open", func() bool { return h.Stats().OpenFailures > 0 })
	stop()
	h.Close()
}
