package faultproxy_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// testTimeout bounds waits for events that must happen.
	testTimeout = 2 * time.Minute
	// never is how long to wait for events that must not happen.
	never = 200 * time.Millisecond
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// fixture is a server with a bucket, seen directly and through a proxy.
type fixture struct {
	proxy  *faultproxy.Proxy
	nc     *nats.Conn         // through the proxy
	kv     jetstream.KeyValue // through the proxy
	direct jetstream.KeyValue
	conn   *nats.Conn // direct
}

func setup(t *testing.T, opts ...nats.Option) *fixture {
	t.Helper()
	s, err := embedded.Start(testContext(t), embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	f := &fixture{proxy: faultproxy.New(t, s.ClientURL())}
	if f.conn, err = s.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.conn.Close)
	js, err := jetstream.New(f.conn)
	if err != nil {
		t.Fatal(err)
	}
	if f.direct, err = js.CreateKeyValue(testContext(t), jetstream.KeyValueConfig{Bucket: "b"}); err != nil {
		t.Fatal(err)
	}
	opts = append([]nats.Option{nats.ReconnectWait(10 * time.Millisecond), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1)}, opts...)
	if f.nc, err = nats.Connect(f.proxy.URL(), opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.nc.Close)
	if js, err = jetstream.New(f.nc); err != nil {
		t.Fatal(err)
	}
	if f.kv, err = js.KeyValue(testContext(t), "b"); err != nil {
		t.Fatal(err)
	}
	return f
}

func mustPut(t *testing.T, kv jetstream.KeyValue, key string) uint64 {
	t.Helper()
	rev, err := kv.PutString(testContext(t), key, "v")
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

// putLost tries a write whose acknowledgement must not come.
func (f *fixture) putLost(t *testing.T, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), never)
	defer cancel()
	if rev, err := f.kv.PutString(ctx, key, "v"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put %s: revision %d, %v", key, rev, err)
	}
}

func (f *fixture) stored(t *testing.T, key string) bool {
	t.Helper()
	_, err := f.direct.Get(testContext(t), key)
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func wait(t *testing.T, r *faultproxy.Rule, n int) {
	t.Helper()
	if err := r.Wait(testContext(t), n); err != nil {
		t.Fatal(err)
	}
}

func TestPassesEverything(t *testing.T) {
	f := setup(t)
	mustPut(t, f.kv, "k")
	w, err := f.kv.Watch(testContext(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.Updates(); e == nil || e.Key() != "k" {
		t.Errorf("watch: %v", e)
	}
	if f.proxy.Conns() != 1 {
		t.Errorf("Conns = %d", f.proxy.Conns())
	}
}

func TestDropRepliesTo(t *testing.T) {
	f := setup(t)
	r := f.proxy.DropRepliesTo(faultproxy.Times(1, faultproxy.Subject("$KV.b.k")))
	f.putLost(t, "k")
	for ctx := testContext(t); !f.stored(t, "k"); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("it is not stored")
		}
	}
	if r.Count() != 1 {
		t.Errorf("matched %d", r.Count())
	}
	mustPut(t, f.kv, "k")
}

func TestDropRequests(t *testing.T) {
	f := setup(t)
	r := f.proxy.DropRequests(faultproxy.Subject("$KV.b.k"))
	f.putLost(t, "k")
	mustPut(t, f.kv, "other") // behind it on the same connection
	if r.Count() != 1 || f.stored(t, "k") {
		t.Errorf("matched %d, stored %v", r.Count(), f.stored(t, "k"))
	}
	r.Remove()
	mustPut(t, f.kv, "k")
}

func TestDropReplies(t *testing.T) {
	f := setup(t)
	sub, err := f.nc.SubscribeSync("x.*")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	f.proxy.DropReplies(func(_ string, _, payload []byte) bool { return string(payload) == "1" })
	for i := range 3 {
		if err := f.conn.Publish("x."+strconv.Itoa(i), []byte(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"x.0", "x.2"} {
		if m, err := sub.NextMsg(testTimeout); err != nil || m.Subject != want {
			t.Errorf("got %v, %v, want %s", m, err, want)
		}
	}
}

func TestHoldAndRelease(t *testing.T) {
	f := setup(t)
	r := f.proxy.HoldRequests(faultproxy.Subject("$KV.b.k"))
	done := make(chan error, 1)
	go func() {
		_, err := f.kv.PutString(testContext(t), "k", "v")
		done <- err
	}()
	wait(t, r, 1)
	mustPut(t, f.kv, "other") // overtakes
	if f.stored(t, "k") {
		t.Error("a held write is stored")
	}
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("released write: %v", err)
	}
	mustPut(t, f.kv, "k") // the rule is removed
}

// The dangerous case of a late message: its sender has given up long ago.
func TestReleaseAfterTheClientHasGone(t *testing.T) {
	tests := map[string]func(*fixture){
		"closed": func(f *fixture) { f.nc.Close() },
		"cut":    func(f *fixture) { f.proxy.Cut() },
	}
	for name, leave := range tests {
		t.Run(name, func(t *testing.T) {
			f := setup(t)
			w, err := f.direct.Watch(testContext(t), "k", jetstream.UpdatesOnly())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			r := f.proxy.HoldRequests(faultproxy.Subject("$KV.b.k"))
			f.putLost(t, "k")
			wait(t, r, 1)
			leave(f)
			if f.stored(t, "k") {
				t.Error("a held write is stored")
			}
			if err := r.Release(); err != nil {
				t.Fatal(err)
			}
			select {
			case e := <-w.Updates():
				if e == nil || e.Key() != "k" {
					t.Errorf("got %v", e)
				}
			case <-testContext(t).Done():
				t.Error("the write never arrived")
			}
			if err := r.Release(); err != nil {
				t.Errorf("second Release: %v", err)
			}
		})
	}
}

func TestDuplicate(t *testing.T) {
	f := setup(t)
	f.proxy.DuplicateRequests(faultproxy.Times(1, faultproxy.Subject("$KV.b.k")))
	first := mustPut(t, f.kv, "k")
	if next := mustPut(t, f.kv, "other"); next != first+2 {
		t.Errorf("revisions %d and %d: the first write didn't arrive twice", first, next)
	}

	sub, err := f.nc.SubscribeSync("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	f.proxy.DuplicateReplies(faultproxy.Subject("x"))
	if err := f.conn.Publish("x", nil); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := sub.NextMsg(testTimeout); err != nil {
			t.Errorf("copy %d: %v", i, err)
		}
	}
}

func TestStall(t *testing.T) {
	f := setup(t)
	f.proxy.Stall(true)
	f.proxy.Stall(true)
	f.putLost(t, "k")
	if f.stored(t, "k") || !f.nc.IsConnected() || f.proxy.Conns() != 1 {
		t.Errorf("stored %v, connected %v", f.stored(t, "k"), f.nc.IsConnected())
	}
	f.proxy.Stall(false)
	mustPut(t, f.kv, "other")
	if !f.stored(t, "k") {
		t.Error("what was stalled got lost")
	}
}

func TestCutAndHeal(t *testing.T) {
	down, up := make(chan struct{}, 16), make(chan struct{}, 16)
	f := setup(t,
		nats.DisconnectErrHandler(func(*nats.Conn, error) { down <- struct{}{} }),
		nats.ReconnectHandler(func(*nats.Conn) { up <- struct{}{} }))
	f.proxy.Cut()
	if f.proxy.Conns() != 0 {
		t.Errorf("Conns = %d after Cut", f.proxy.Conns())
	}
	<-down
	if nc, err := nats.Connect(f.proxy.URL()); err == nil {
		nc.Close()
		t.Error("connected through a proxy that is cut")
	}
	f.proxy.Heal()
	<-up
	mustPut(t, f.kv, "k")
}

func TestCutEndsAStalledConnection(t *testing.T) {
	f := setup(t)
	f.proxy.Stall(true)
	f.putLost(t, "k")
	f.proxy.Cut() // returns though bytes are waiting to be written
	f.proxy.Stall(false)
	if f.proxy.Conns() != 0 || f.stored(t, "k") {
		t.Errorf("Conns = %d, stored %v", f.proxy.Conns(), f.stored(t, "k"))
	}
}

func TestDelayKeepsOrder(t *testing.T) {
	f := setup(t)
	sub, err := f.conn.SubscribeSync("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	const base = 20 * time.Millisecond
	f.proxy.SetDelay(base, base)
	if rtt, err := f.nc.RTT(); err != nil || rtt < 2*base {
		t.Errorf("round trip %v, %v: less than the delay both ways", rtt, err)
	}
	const n = 200
	for i := range n {
		if err := f.nc.Publish("x", []byte(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		m, err := sub.NextMsg(testTimeout)
		if err != nil || string(m.Data) != strconv.Itoa(i) {
			t.Fatalf("message %d: %v, %v", i, m, err)
		}
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	f := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.proxy.DropReplies(faultproxy.Subject("x")).Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
}

func TestBadTargets(t *testing.T) {
	if p, err := faultproxy.Start("nonsense"); err == nil {
		p.Close()
		t.Error("started without a port")
	}
	p := faultproxy.New(t, "127.0.0.1:1") // no server listens there
	if nc, err := nats.Connect(p.URL()); err == nil {
		nc.Close()
		t.Error("connected to nobody")
	}
	p.Close()
	p.Close()
}
