package jskv_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

func TestFirstRevisionIsAboveTheClock(t *testing.T) {
	nc := dial(t, startServer(t))
	before := uint64(time.Now().UnixMicro())
	b := open(t, nc, jskv.Config{})
	for _, bucket := range []*jskv.Bucket{b.Locks[0], b.Leases} {
		if rev := update(t, bucket, "k", "v", 0); rev <= before || rev >= 1<<53 {
			t.Errorf("%s: revision %d, the clock said %d", bucket.Name(), rev, before)
		}
	}
	if b.Quarantine != 0 {
		t.Errorf("a new fabric is in quarantine for %v", b.Quarantine)
	}
}

func TestRevisionsRiseOverDeletion(t *testing.T) {
	t.Parallel()
	nc := dial(t, startServer(t))
	js := jetStream(t, nc)
	var last uint64
	for i := range 4 {
		b := open(t, nc, jskv.Config{})
		rev := update(t, b.Locks[0], "k", "v", 0)
		if rev <= last {
			t.Errorf("round %d: revision %d after %d", i, rev, last)
		}
		last = rev
		if err := js.DeleteStream(testContext(t), b.Locks[0].Stream()); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // and once with the note, but not before the quarantine is over
			time.Sleep(time.Second)
			if err := js.DeleteStream(testContext(t), b.Leases.Stream()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The clock may have been set back: what is noted counts, too.
func TestRevisionsRiseOverWhatWasSeen(t *testing.T) {
	nc := dial(t, startServer(t))
	ahead := uint64(time.Now().Add(24 * time.Hour).UnixMicro())
	for name, note := range map[string]func(b *jskv.Buckets) error{
		"in the note": func(b *jskv.Buckets) error { return b.NoteTTL(testContext(t), time.Minute, []uint64{ahead}) },
		"by a lease": func(b *jskv.Buckets) error {
			_, err := b.Leases.Update(testContext(t), "some-lease", fmt.Appendf(nil, `{"v":1,"seen":%d}`, ahead), 0, time.Hour)
			return err
		},
	} {
		cfg := jskv.Config{Fabric: strings.ReplaceAll(name, " ", "-")}
		b := open(t, nc, cfg)
		if err := note(b); err != nil {
			t.Fatal(err)
		}
		if err := jetStream(t, nc).DeleteStream(testContext(t), b.Locks[0].Stream()); err != nil {
			t.Fatal(err)
		}
		if rev := update(t, open(t, nc, cfg).Locks[0], "k", "v", 0); rev <= ahead {
			t.Errorf("%s: revision %d, %d had been seen", name, rev, ahead)
		}
	}
}

func TestQuarantine(t *testing.T) {
	nc := dial(t, startServer(t))
	b := open(t, nc, jskv.Config{})
	for _, ttl := range []time.Duration{time.Minute, time.Second, 40 * time.Second} {
		if err := b.NoteTTL(testContext(t), ttl, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Verify(testContext(t), []uint64{0}); err != nil {
		t.Errorf("verify: %v", err)
	}
	if q := open(t, nc, jskv.Config{}).Quarantine; q != 0 {
		t.Errorf("opened again: quarantine of %v", q)
	}
	if err := jetStream(t, nc).DeleteStream(testContext(t), b.Locks[0].Stream()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Verify(testContext(t), []uint64{0}); !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("verify of a deleted bucket: %v", err)
	}
	if _, err := b.Locks[0].Get(testContext(t), "k"); !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("read of a deleted bucket: %v", err)
	}
	next := open(t, nc, jskv.Config{})
	for _, bs := range []*jskv.Buckets{next, open(t, nc, jskv.Config{})} {
		if bs.Quarantine < time.Minute*105/100 {
			t.Errorf("quarantine of %v, leases lasted %v", bs.Quarantine, time.Minute)
		}
	}
	if _, err := b.Verify(testContext(t), []uint64{0}); !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("verify of a bucket that was created again: %v", err)
	}
	if err := next.ConfirmIncarnation(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if q := open(t, nc, jskv.Config{}).Quarantine; q != 0 {
		t.Errorf("confirmed: quarantine of %v", q)
	}
}

// Many processes start at the same moment, and nothing is there.
func TestOpenedByManyAtOnce(t *testing.T) {
	t.Parallel()
	c := cluster.Run(t, 3)
	for round := range 3 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		buckets := map[*jskv.Buckets]bool{}
		for i := range 6 {
			nc, err := c.Node(i % 3).Connect()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			wg.Go(func() {
				b, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: fmt.Sprint("f", round)})
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				buckets[b] = true
			})
		}
		wg.Wait()
		for b := range buckets {
			if b.Quarantine != 0 {
				t.Errorf("round %d: quarantine of %v", round, b.Quarantine)
			}
			if _, err := b.Verify(testContext(t), []uint64{0}); err != nil {
				t.Errorf("round %d: they opened different buckets: %v", round, err)
			}
		}
	}
}

// Everything stays readable for other KV clients.
func TestOrdinaryClientsCanReadEverything(t *testing.T) {
	srv := startServer(t)
	b := open(t, dial(t, srv), jskv.Config{}).Locks[0]
	theirs, err := jetStream(t, dial(t, srv)).KeyValue(testContext(t), b.Name())
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	watch, err := theirs.WatchAll(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Stop() }()
	if e := <-watch.Updates(); e != nil {
		t.Fatalf("an empty bucket has %v", e)
	}
	seen := func(key, value string, rev uint64, op jetstream.KeyValueOp) {
		e := <-watch.Updates()
		if e == nil || e.Key() != key || string(e.Value()) != value || e.Revision() != rev || e.Operation() != op {
			t.Errorf("watch: %v, want %s at %d", e, key, rev)
		}
	}
	a := update(t, b, "photos.2026.a", "one", 0)
	seen("photos.2026.a", "one", a, jetstream.KeyValuePut)
	two := update(t, b, "photos.2026.b", "two", 0)
	seen("photos.2026.b", "two", two, jetstream.KeyValuePut)
	gone, err := b.Purge(ctx, "photos.2026.b", two, jskv.MarkerTTL)
	if err != nil {
		t.Fatal(err)
	}
	seen("photos.2026.b", "", gone, jetstream.KeyValuePurge)
	if e, err := theirs.Get(ctx, "photos.2026.a"); err != nil || string(e.Value()) != "one" || e.Revision() != a {
		t.Errorf("get: %v, %v", e, err)
	}
	if e, err := theirs.Get(ctx, "photos.2026.b"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("get of a deleted key: %v, %v", e, err)
	}
	if keys, err := theirs.Keys(ctx); err != nil || len(keys) != 1 || keys[0] != "photos.2026.a" {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if h, err := theirs.History(ctx, "photos.2026.a"); err != nil || len(h) != 1 {
		t.Errorf("history: %v, %v", h, err)
	}
	status, err := theirs.Status(ctx)
	if err != nil || status.Bucket() != "f-locks" || status.History() != 1 || status.TTL() != 0 {
		t.Errorf("status: %v, %v", status, err)
	}
	// What they write is read here: a DEL of theirs is a marker, too.
	if err := theirs.Delete(ctx, "photos.2026.a"); err != nil {
		t.Fatal(err)
	}
	if e, err := b.Get(ctx, "photos.2026.a"); err != nil || !e.Deleted || e.Revision <= gone {
		t.Errorf("deleted by an ordinary client: %+v, %v", e, err)
	}
	if rev, err := theirs.Put(ctx, "c", []byte("three")); err != nil || rev <= gone {
		t.Errorf("put: %d, %v", rev, err)
	}
	if e, err := b.Get(ctx, "c"); err != nil || e.Deleted || string(e.Value) != "three" {
		t.Errorf("put by an ordinary client: %+v, %v", e, err)
	}
}

// The marker carries its lifetime, a live value has none, and the server takes a
// purge with a lifetime for a marker: it is gone without a trace when it is over.
func TestMarkers(t *testing.T) {
	t.Parallel()
	nc := dial(t, startServer(t))
	b := open(t, nc, jskv.Config{}).Locks[0]
	stream, err := jetStream(t, nc).Stream(testContext(t), b.Stream())
	if err != nil {
		t.Fatal(err)
	}
	header := func() nats.Header {
		msg, err := stream.GetLastMsgForSubject(testContext(t), "$KV.f-locks.k")
		if err != nil {
			t.Fatal(err)
		}
		return msg.Header
	}
	rev := update(t, b, "k", "v", 0)
	if h := header(); h.Get("Nats-TTL") != "" || h.Get("KV-Operation") != "" {
		t.Errorf("a live value: %v", h)
	}
	rev, err = b.Purge(testContext(t), "k", rev, jskv.MarkerTTL)
	if err != nil {
		t.Fatal(err)
	}
	ttl, err := time.ParseDuration(header().Get("Nats-TTL"))
	if h := header(); err != nil || ttl < 10*time.Minute || h.Get("KV-Operation") != "PURGE" || h.Get("Nats-Rollup") != "sub" {
		t.Errorf("a marker: %v", h)
	}
	rev = update(t, b, "k", "v", rev)
	if _, err := b.Purge(testContext(t), "k", rev, time.Nanosecond); err != nil { // rounded up to a second
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		e, err := b.Get(testContext(t), "k")
		if err != nil || !e.Deleted {
			t.Fatalf("%+v, %v", e, err)
		}
		if e.Revision == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the marker stays")
		}
	}
	update(t, b, "k", "v", 0)
}

func TestEntries(t *testing.T) {
	nc := dial(t, startServer(t))
	b := open(t, nc, jskv.Config{}).Locks[0]
	a, c := update(t, b, "x.a", "1", 0), update(t, b, "x.c", "3", 0)
	rev := update(t, b, "x.b", "2", 0)
	if _, err := b.Purge(testContext(t), "x.b", rev, jskv.MarkerTTL); err != nil {
		t.Fatal(err)
	}
	update(t, b, "y", "4", 0)
	var got []string
	err := b.Entries(testContext(t), "x.>", func(e jskv.Entry) bool {
		got = append(got, fmt.Sprint(e.Key, "=", string(e.Value), "@", e.Revision))
		return true
	})
	if want := fmt.Sprintf("[x.a=1@%d x.c=3@%d]", a, c); err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	n := 0
	if err := b.Entries(testContext(t), ">", func(jskv.Entry) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("stopped after %d: %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Entries(ctx, ">", func(jskv.Entry) bool { return true }); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestBadConfigs(t *testing.T) {
	nc := dial(t, startServer(t))
	for _, cfg := range []jskv.Config{{}, {Fabric: "a.b"}, {Fabric: "a b"}, {Fabric: strings.Repeat("x", 65)}, {Fabric: "f", Replicas: -1}, {Fabric: "f", Replicas: 6}} {
		if _, err := jskv.Open(testContext(t), nc, cfg); !errors.Is(err, kv.ErrInvalidOption) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if _, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: "f", Replicas: 3}); !errors.Is(err, kv.ErrLimit) {
		t.Errorf("three replicas on one server: %v", err)
	}
}

// A bucket that another process has made meanwhile exists. If the server goes away
// before it is found, the error does not blame the credentials, and a retry helps.
func TestServerGoesAwayWhileBucketsAreMade(t *testing.T) {
	srv := startServer(t, embedded.WithListen("127.0.0.1:0"))
	proxy := faultproxy.New(t, srv.ClientURL())
	nc, err := nats.Connect(proxy.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	create := proxy.HoldRequests(faultproxy.Subject("$JS.API.STREAM.CREATE.KV_f-locks"))
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	opened := make(chan error, 1)
	go func() {
		_, err := jskv.Open(ctx, nc, jskv.Config{Fabric: "f"})
		opened <- err
	}()
	if err := create.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := jskv.Open(ctx, dial(t, srv), jskv.Config{Fabric: "f"}); err != nil {
		t.Fatal(err)
	}
	lookup := proxy.DropRequests(faultproxy.Subject("$JS.API.STREAM.INFO.KV_f-locks"))
	if err := create.Release(); err != nil {
		t.Fatal(err)
	}
	if err := lookup.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-opened; !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrNoBucket) {
		t.Error(err)
	}
}

// setBack replaces the locks bucket by one like it, identity included, that begins at
// revision 1.
func setBackIncarnation(t *testing.T, js jetstream.JetStream, b *jskv.Buckets) {
	t.Helper()
	s, err := js.Stream(testContext(t), b.Locks[0].Stream())
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.FirstSeq = 1
	testserver.Replace(t, js, cfg)
}

func TestVerifyOfABucketThatWasSetBack(t *testing.T) {
	nc := dial(t, startServer(t))
	b := open(t, nc, jskv.Config{})
	seen := update(t, b.Locks[0], "k", "v", 0)
	if last, err := b.Verify(testContext(t), []uint64{seen}); err != nil || last[0] != seen {
		t.Errorf("verified up to %d, %v; %d was written", last, err, seen)
	}
	setBackIncarnation(t, jetStream(t, nc), b)
	if _, err := b.Verify(testContext(t), []uint64{seen}); !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("set back: %v", err)
	}
}

// Many processes find at the same time that the bucket was set back. None of them, however late it moves the revisions
// up, removes what was written above.
func TestSetBackBucketIsMovedUpByManyAtOnce(t *testing.T) {
	t.Parallel()
	c := cluster.Run(t, 3)
	nc, err := c.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b := open(t, nc, jskv.Config{})
	seen := update(t, b.Locks[0], "k", "v", 0)
	setBackIncarnation(t, jetStream(t, nc), b)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			// Some have seen more than others.
			bs, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: b.Locks[0].Name()[:len(b.Locks[0].Name())-len("-locks")], Seen: []uint64{seen + uint64(i)}})
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			if bs.Quarantine == 0 || bs.Locks[0].Last() <= seen {
				t.Errorf("quarantine of %v, revisions from %d on; %d was seen", bs.Quarantine, bs.Locks[0].Last(), seen)
			}
			key := fmt.Sprint("k", i)
			rev, err := settled(t, func() (uint64, error) { return bs.Locks[0].Update(testContext(t), key, []byte("v"), 0, 0) })
			if err != nil || rev <= seen+8 {
				t.Errorf("revision %d after %d: %v", rev, seen, err)
			}
		})
	}
	all.Wait()
	for i := range 8 {
		if e, err := b.Locks[0].Get(testContext(t), fmt.Sprint("k", i)); err != nil || e.Deleted {
			t.Errorf("k%d, written above what was seen: %+v, %v", i, e, err)
		}
	}
}
