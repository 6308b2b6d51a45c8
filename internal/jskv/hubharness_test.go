package jskv_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// patience is how long a test waits for what must happen. No test needs it
// unless it fails.
const patience = 2 * time.Minute

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

func startServer(t *testing.T, opts ...embedded.Option) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(testContext(t), append(opts, embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Minute)))...)
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

func openLocks(t *testing.T, nc *nats.Conn) *jskv.Bucket {
	t.Helper()
	return openLocksBy(t, nc, nil)
}

func openLocksBy(t *testing.T, nc *nats.Conn, request jskv.Requester) *jskv.Bucket {
	t.Helper()
	b, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: "hub", Request: request})
	if err != nil {
		t.Fatal(err)
	}
	return b.Locks[0]
}

// put writes a key from scratch or over what there is, whatever it takes, and
// returns the revision at which the value stands.
func put(ctx context.Context, t *testing.T, b *jskv.Bucket, key string, value string) uint64 {
	t.Helper()
	for wait := time.Second; ; wait = min(2*wait, 16*time.Second) { // a busy machine may need longer than a second
		attempt, cancel := context.WithTimeout(ctx, wait)
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
	last    jskv.Entry
	calls   int
	changed chan struct{} // closed and replaced at each call
}

func newInbox(t *testing.T) *inbox { return &inbox{t: t, changed: make(chan struct{})} }

func (i *inbox) fn(e jskv.Entry) {
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
func (i *inbox) wait(ctx context.Context, what string, ok func(jskv.Entry) bool) jskv.Entry {
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

// count returns how many entries have come.
func (i *inbox) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.calls
}

// key returns the key of what came last.
func (i *inbox) key() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last.Key
}

func (i *inbox) waitRevision(ctx context.Context, rev uint64) {
	i.t.Helper()
	i.wait(ctx, fmt.Sprintf("revision %d", rev), func(e jskv.Entry) bool { return e.Revision >= rev })
}

func absent(e jskv.Entry) bool { return e.Deleted && e.Revision == 0 }

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

func bucketStream(ctx context.Context, t *testing.T, nc *nats.Conn, b *jskv.Bucket) jetstream.Stream {
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
