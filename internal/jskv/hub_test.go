package jskv_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

func TestHubServesTenThousandWaiters(t *testing.T) {
	t.Parallel()
	const keys, waiters, limit = 2000, 10_000, 50
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	b := openLocks(t, nc)
	stream := bucketStream(ctx, t, nc, b)
	h := jskv.NewHub(b)
	defer h.Close()

	name := func(i int) string { return fmt.Sprintf("resource.%d", i%keys) }
	revs := make([]uint64, keys)
	write := func(from, to int, value string) { // by many at a time: each of them waits for its answer
		var writing sync.WaitGroup
		for w := range 32 {
			writing.Go(func() {
				for i := from + w; i < to; i += 32 {
					revs[i] = update(t, b, name(i), value, revs[i])
				}
			})
		}
		writing.Wait()
	}
	write(0, keys/2, "first") // the other half does not exist yet
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

	write(0, keys, "second")
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

// Only a read shows that a key is absent, so it has to wait as long as answers take.
func TestHubReadTimeout(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t, embedded.WithListen("127.0.0.1:0"))
	proxy := faultproxy.New(t, srv.ClientURL())
	nc, err := nats.Connect(proxy.URL(), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var reads atomic.Int64
	b := openLocksBy(t, nc, func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
		defer reads.Add(1)
		return nc.RequestMsgWithContext(ctx, msg)
	})
	reads.Store(0)
	proxy.SetDelay(100*time.Millisecond, 0) // in each direction
	var timeout atomic.Int64
	timeout.Store(int64(50 * time.Millisecond))
	h := jskv.NewHub(b, jskv.WithReadTimeout(func() time.Duration { return time.Duration(timeout.Load()) }))
	defer h.Close()
	in := newInbox(t)
	defer h.Watch("k", in.fn)()
	waitFor(ctx, t, "reads", func() bool { return reads.Load() >= 3 })
	if n := in.count(); n > 0 {
		t.Errorf("%d entries from reads that were not waited for", n)
	}
	timeout.Store(int64(10 * time.Second))
	in.wait(ctx, "absence", absent)
}

func TestHubDeletesAndMarkers(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	srv := startServer(t)
	b := openLocks(t, connect(t, srv.Connect))
	h := jskv.NewHub(b, jskv.WithPollInterval(100*time.Millisecond))
	defer h.Close()
	in := newInbox(t)
	h.Watch("a", in.fn)
	in.wait(ctx, "absence", absent)
	rev := put(ctx, t, b, "a", "value")
	if e := in.wait(ctx, "value", func(e jskv.Entry) bool { return e.Revision == rev }); string(e.Value) != "value" || e.Deleted {
		t.Errorf("delivered %+v", e)
	}
	marker, err := b.Purge(ctx, "a", rev, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if e := in.wait(ctx, "marker", func(e jskv.Entry) bool { return e.Revision == marker }); !e.Deleted || e.Value != nil {
		t.Errorf("delivered %+v", e)
	}
	in.wait(ctx, "the marker's expiry", absent) // the server says nothing of it
}

// A purge of a part of the stream leaves no marker, but its request is heard.
func TestHubHearsOfAPurge(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	nc := connect(t, startServer(t).Connect)
	b := openLocks(t, nc)
	h := jskv.NewHub(b, jskv.WithRestInterval(never))
	defer h.Close()
	var in *inbox
	for i := range 50 {
		in = newInbox(t)
		key := fmt.Sprint("k", i)
		rev := put(ctx, t, b, key, "1")
		h.Follow(key, in.fn)
		in.waitRevision(ctx, rev)
	}
	if err := bucketStream(ctx, t, nc, b).Purge(ctx, jetstream.WithPurgeSubject("$KV."+b.Name()+".k49")); err != nil {
		t.Fatal(err)
	}
	in.wait(ctx, "absence", absent)
}

func TestHubSurvivesDeletedConsumers(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	b := openLocks(t, nc)
	stream := bucketStream(ctx, t, nc, b)
	h := jskv.NewHub(b, jskv.WithPollInterval(100*time.Millisecond))
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
	t.Parallel()
	ctx := testContext(t)
	srv := startServer(t)
	way := &line{srv: srv}
	nc := connect(t, func(opts ...nats.Option) (*nats.Conn, error) {
		return nats.Connect("", append(opts, nats.InProcessServer(way))...)
	})
	b := openLocks(t, nc)
	elsewhere := openLocks(t, connect(t, srv.Connect))
	h := jskv.NewHub(b, jskv.WithPollInterval(never))
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
		waitFor(ctx, t, "watchers replaced", func() bool { return h.Stats().Reopened > round })
		in.waitRevision(ctx, put(ctx, t, elsewhere, "a", fmt.Sprint("back ", round)))
	}
	untouched.waitRevision(ctx, put(ctx, t, elsewhere, "b", "1"))
}

func TestHubReportsTheBucketGone(t *testing.T) {
	t.Parallel()
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
			doubts := make(chan struct{}, 1)
			h := jskv.NewHub(b, jskv.WithPollInterval(interval), jskv.WithDoubt(func() {
				select {
				case doubts <- struct{}{}:
				default:
				}
			}))
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
				case <-doubts:
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
		})
	}
}

func TestHubCloseInTheMiddle(t *testing.T) {
	ctx := testContext(t)
	srv := startServer(t)
	nc := connect(t, srv.Connect)
	b := openLocks(t, nc)
	for range 20 {
		h := jskv.NewHub(b)
		var users sync.WaitGroup
		for i := range 50 {
			users.Go(func() {
				for j := range 10 {
					stop := h.Watch(fmt.Sprintf("k%d", (i+j)%30), func(jskv.Entry) {})
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
	h := jskv.NewHub(openLocks(t, nc), jskv.WithPollInterval(20*time.Millisecond))
	in := newInbox(t)
	stop := h.Watch("a", in.fn)
	in.wait(ctx, "absence", absent)
	nc.Close()
	waitFor(ctx, t, "failure to open", func() bool { return h.Stats().OpenFailures > 0 })
	stop()
	h.Close()
}
