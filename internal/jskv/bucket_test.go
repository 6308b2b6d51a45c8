package jskv_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

func dial(t *testing.T, srv *embedded.Server) *nats.Conn {
	t.Helper()
	return connect(t, srv.Connect)
}

func open(t *testing.T, nc *nats.Conn, cfg jskv.Config) *jskv.Buckets {
	t.Helper()
	if cfg.Fabric == "" {
		cfg.Fabric = "f"
	}
	b, err := jskv.Open(testContext(t), nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fabrics counts those of onServers.
var fabrics atomic.Uint64

// onServers runs fn with a locks bucket of its own on one server and on three, which TestMain stops.
func onServers(t *testing.T, fn func(t *testing.T, nc *nats.Conn, b *jskv.Bucket)) {
	t.Parallel()
	fabric := fmt.Sprintf("own%d", fabrics.Add(1)) // a new one each time with -count
	t.Run("one server", func(t *testing.T) {
		srv, err := oneServer()
		if err != nil {
			t.Fatal(err)
		}
		nc := dial(t, srv)
		fn(t, nc, open(t, nc, jskv.Config{Fabric: fabric}).Locks[0])
	})
	t.Run("three servers", func(t *testing.T) {
		c, err := threeServers()
		if err != nil {
			t.Fatal(err)
		}
		nc := connect(t, c.Connect)
		b := open(t, nc, jskv.Config{Fabric: fabric}).Locks[0]
		stream, err := jetStream(t, nc).Stream(testContext(t), b.Stream())
		if err != nil {
			t.Fatal(err)
		}
		if n := stream.CachedInfo().Config.Replicas; n != 3 {
			t.Errorf("%d replicas on a cluster", n)
		}
		heard(t, b)
		fn(t, nc, b)
	})
}

func jetStream(t *testing.T, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// settled repeats a write while the server says that the key is busy, or that nobody hears it:
// a new stream of three servers may still be without a leader.
func settled(t *testing.T, write func() (uint64, error)) (uint64, error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		rev, err := write()
		if !errors.Is(err, jskv.ErrBusy) && !errors.Is(err, nats.ErrNoResponders) || time.Now().After(end) {
			return rev, err
		}
	}
}

// heard returns when writes of this connection reach a leader. It writes nothing.
func heard(t *testing.T, b *jskv.Bucket) {
	t.Helper()
	if _, err := settled(t, func() (uint64, error) { return b.Update(testContext(t), "nothing", nil, 7, 0) }); !errors.Is(err, jskv.ErrConflict) {
		t.Fatalf("a write at a revision that does not exist: %v", err)
	}
}

func update(t *testing.T, b *jskv.Bucket, key, value string, rev uint64) uint64 {
	t.Helper()
	got, err := settled(t, func() (uint64, error) { return b.Update(testContext(t), key, []byte(value), rev, 0) })
	if err != nil {
		t.Fatalf("update of %s at %d: %v", key, rev, err)
	}
	return got
}

func expectConflict(t *testing.T, err error, key string, expected, actual uint64) {
	t.Helper()
	var c *jskv.ConflictError
	if !errors.Is(err, jskv.ErrConflict) || !errors.As(err, &c) {
		t.Errorf("got %v, want a conflict", err)
	} else if *c != (jskv.ConflictError{Key: key, Expected: expected, Actual: actual}) {
		t.Errorf("conflict %+v, want %s at %d instead of %d", *c, key, actual, expected)
	}
	for name, other := range map[string]error{"busy": jskv.ErrBusy, "unknown": jskv.ErrUnknown, "not sent": jskv.ErrNotSent, "rejected": kv.ErrRejected} {
		if errors.Is(err, other) {
			t.Errorf("a conflict is also %s", name)
		}
	}
}

func TestCompareAndSet(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		ctx := testContext(t)
		if e, err := b.Get(ctx, "a"); err != nil || !e.Deleted || e.Revision != 0 || e.Key != "a" {
			t.Errorf("never written: %+v, %v", e, err)
		}
		_, err := settled(t, func() (uint64, error) { return b.Update(ctx, "a", []byte("x"), 7, 0) })
		expectConflict(t, err, "a", 7, 0)

		first := update(t, b, "a", "one", 0)
		e, err := b.Get(ctx, "a")
		if err != nil || e.Deleted || string(e.Value) != "one" || e.Revision != first || time.Since(e.Created).Abs() > time.Hour {
			t.Errorf("%+v, %v", e, err)
		}
		_, err = settled(t, func() (uint64, error) { return b.Update(ctx, "a", []byte("x"), 0, 0) })
		expectConflict(t, err, "a", 0, first)
		second := update(t, b, "a", "two", first)
		if second <= first {
			t.Errorf("revision %d after %d", second, first)
		}
		_, err = settled(t, func() (uint64, error) { return b.Update(ctx, "a", []byte("x"), first, 0) })
		expectConflict(t, err, "a", first, second)
		_, err = settled(t, func() (uint64, error) { return b.Purge(ctx, "a", first, jskv.MarkerTTL) })
		expectConflict(t, err, "a", first, second)
		_, err = settled(t, func() (uint64, error) { return b.Update(ctx, "a", []byte("x"), second+1000, 0) })
		expectConflict(t, err, "a", second+1000, second)
		if e, err = b.Get(ctx, "a"); err != nil || string(e.Value) != "two" || e.Revision != second {
			t.Errorf("after refused writes: %+v, %v", e, err)
		}

		gone, err := settled(t, func() (uint64, error) { return b.Purge(ctx, "a", second, jskv.MarkerTTL) })
		if err != nil || gone <= second {
			t.Fatalf("purge: %d, %v", gone, err)
		}
		if e, err = b.Get(ctx, "a"); err != nil || !e.Deleted || e.Revision != gone || e.Value != nil {
			t.Errorf("the marker: %+v, %v", e, err)
		}
		_, err = settled(t, func() (uint64, error) { return b.Update(ctx, "a", []byte("x"), 0, 0) })
		expectConflict(t, err, "a", 0, gone)
		if third := update(t, b, "a", "three", gone); third <= gone {
			t.Errorf("revision %d after %d", third, gone)
		}

		// An absent key can be purged: that proves that nothing at 0 will commit.
		rev, err := settled(t, func() (uint64, error) { return b.Purge(ctx, "never", 0, jskv.MarkerTTL) })
		if err != nil {
			t.Fatal(err)
		}
		_, err = settled(t, func() (uint64, error) { return b.Update(ctx, "never", []byte("late"), 0, 0) })
		expectConflict(t, err, "never", 0, rev)
		_, err = settled(t, func() (uint64, error) { return b.Purge(ctx, "never", 0, jskv.MarkerTTL) })
		expectConflict(t, err, "never", 0, rev)
	})
}

// One of many writers at the same revision wins; no writer gets a revision that
// the key never had.
func TestCompareAndSetIsExclusive(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		rev := update(t, b, "k", "start", 0)
		for round := range 20 {
			results := make(chan error, 8)
			won := make(chan uint64, 8)
			for i := range 8 {
				go func() {
					got, err := settled(t, func() (uint64, error) {
						return b.Update(testContext(t), "k", fmt.Appendf(nil, "%d/%d", round, i), rev, 0)
					})
					if err == nil {
						won <- got
					}
					results <- err
				}()
			}
			committed := 0
			for range 8 {
				if err := <-results; err == nil {
					committed++
				} else if !errors.Is(err, jskv.ErrConflict) {
					t.Errorf("round %d: %v", round, err)
				}
			}
			if committed != 1 {
				t.Fatalf("round %d: %d writes at one revision were committed", round, committed)
			}
			rev = <-won
		}
	})
}

// The outcome for each answer of the server, or for none.
func TestOutcomes(t *testing.T) {
	nc := dial(t, startServer(t))
	refusal := func(code int, text string) string {
		return fmt.Sprintf(`{"error":{"code":400,"err_code":%d,"description":%q},"stream":"KV_f-locks","seq":0}`, code, text)
	}
	all := map[string]error{"conflict": jskv.ErrConflict, "busy": jskv.ErrBusy, "not sent": jskv.ErrNotSent, "rejected": kv.ErrRejected, "unknown": jskv.ErrUnknown, "full": kv.ErrFull}
	for _, c := range []struct {
		name  string
		reply string
		err   error
		want  string // names from all
	}{
		{name: "committed", reply: `{"stream":"KV_f-locks","seq":1000}`},
		{name: "committed, in another order", reply: `{ "seq": 1000 , "stream":"KV_f-locks"}`},
		{name: "committed, with a domain", reply: `{"stream":"KV_f-locks","domain":"d","seq":1000,"duplicate":false}`},
		{name: "conflict", reply: refusal(10071, "wrong last sequence: 42"), want: "conflict"},
		{name: "conflict with nothing", reply: refusal(10071, "wrong last sequence: 0"), want: "conflict"},
		{name: "a conflict that tells no revision", reply: refusal(10071, "wrong last sequence"), want: "busy"},
		{name: "busy", reply: refusal(10164, "wrong last sequence"), want: "busy"},
		{name: "too large", reply: refusal(10054, "message size exceeds maximum allowed"), want: "rejected"},
		{name: "headers too large", reply: refusal(10097, "header size exceeds maximum allowed of 64k"), want: "rejected"},
		{name: "stream full", reply: refusal(10077, "maximum bytes exceeded"), want: "unknown full"},
		{name: "account full", reply: refusal(10002, "resource limits exceeded for account"), want: "unknown full"},
		{name: "storage full", reply: refusal(10047, "insufficient storage resources available"), want: "unknown full"},
		{name: "some other refusal", reply: refusal(10008, "JetStream system temporarily unavailable"), want: "unknown"},
		{name: "a refusal without a code", reply: `{"error":{"code":500,"description":"what"},"seq":0}`, want: "unknown"},
		{name: "nonsense", reply: "hello", want: "unknown"},
		{name: "nothing", reply: "", want: "unknown"},
		{name: "a sequence that can't be", reply: `{"stream":"KV_f-locks","seq":5}`, want: "unknown"},
		{name: "no sequence", reply: `{"stream":"KV_f-locks"}`, want: "unknown"},
		{name: "timeout", err: nats.ErrTimeout, want: "unknown"},
		{name: "deadline", err: context.DeadlineExceeded, want: "unknown"},
		{name: "cancelled", err: context.Canceled, want: "unknown"},
		{name: "connection lost", err: nats.ErrDisconnected, want: "unknown"},
		{name: "any other error", err: errors.New("what"), want: "unknown"},
		{name: "no responders", err: nats.ErrNoResponders, want: "not sent"},
		{name: "disconnected", err: nats.ErrReconnectBufExceeded, want: "not sent"},
		{name: "closed", err: nats.ErrConnectionClosed, want: "not sent"},
		{name: "payload", err: nats.ErrMaxPayload, want: "rejected"},
	} {
		t.Run(c.name, func(t *testing.T) {
			trip := func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
				if strings.HasPrefix(msg.Subject, "$KV.f-locks.") {
					return &nats.Msg{Data: []byte(c.reply)}, c.err
				}
				return nc.RequestMsgWithContext(ctx, msg)
			}
			b := open(t, nc, jskv.Config{Request: trip}).Locks[0]
			for op, do := range map[string]func() (uint64, error){
				"update": func() (uint64, error) { return b.Update(testContext(t), "k", []byte("v"), 7, 0) },
				"purge":  func() (uint64, error) { return b.Purge(testContext(t), "k", 7, jskv.MarkerTTL) },
				"check":  func() (uint64, error) { return b.CheckAt(testContext(t), "k", 7) },
			} {
				rev, err := do()
				if c.want == "" && (err != nil || rev != 1000) || c.want != "" && (err == nil || rev != 0) {
					t.Errorf("%s: %d, %v", op, rev, err)
				}
				for name, sentinel := range all {
					if is, want := errors.Is(err, sentinel), strings.Contains(" "+c.want+" ", " "+name+" "); is != want {
						t.Errorf("%s: %s is %v: %v", op, name, is, err)
					}
				}
				if c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("%s: the cause is lost: %v", op, err)
				}
				if c.name == "conflict" {
					expectConflict(t, err, "k", 7, 42)
				}
			}
		})
	}
}

func TestReadFailures(t *testing.T) {
	nc := dial(t, startServer(t))
	for name, c := range map[string]struct {
		reply string
		err   error
		want  error
	}{
		"timeout":       {err: nats.ErrTimeout, want: kv.ErrUnavailable},
		"no responders": {err: nats.ErrNoResponders, want: kv.ErrUnavailable},
		"nonsense":      {reply: "hello", want: kv.ErrUnavailable},
		"empty":         {reply: "{}", want: kv.ErrUnavailable},
		"no stream":     {reply: `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`, want: jskv.ErrBucketGone},
		"no leader":     {reply: `{"error":{"code":503,"err_code":10008,"description":"unavailable"}}`, want: kv.ErrUnavailable},
	} {
		fail := false
		trip := func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
			if fail {
				return &nats.Msg{Data: []byte(c.reply)}, c.err
			}
			return nc.RequestMsgWithContext(ctx, msg)
		}
		b := open(t, nc, jskv.Config{Request: trip}).Locks[0]
		fail = true
		e, err := b.Get(testContext(t), "k")
		if gone := errors.Is(err, jskv.ErrBucketGone); !errors.Is(err, c.want) || gone != errors.Is(c.want, jskv.ErrBucketGone) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

// A real server's refusals, and that a value over the limit is one.
func TestTooLarge(t *testing.T) {
	nc := dial(t, startServer(t))
	b := open(t, nc, jskv.Config{}).Locks[0]
	_, err := b.Update(testContext(t), "k", make([]byte, nc.MaxPayload()+1), 0, 0)
	if !errors.Is(err, kv.ErrRejected) || errors.Is(err, jskv.ErrUnknown) {
		t.Errorf("over the payload limit: %v", err)
	}
	update(t, b, "k", "fits", 0)
	nc.Close()
	if _, err := b.Update(testContext(t), "k", []byte("v"), 0, 0); !errors.Is(err, jskv.ErrNotSent) {
		t.Errorf("on a closed connection: %v", err)
	}
	if _, err := b.Get(testContext(t), "k"); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("on a closed connection: %v", err)
	}
}

// TestReadsAreScanned: servers answer in the form that is read without encoding/json.
func TestReadsAreScanned(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		ctx := testContext(t)
		ask := func() []byte {
			reply, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+b.Stream(), []byte(`{"last_by_subj":"$KV.`+b.Name()+`.a"}`))
			if err != nil {
				t.Fatal(err)
			}
			return reply.Data
		}
		rev, err := b.Update(ctx, "a", []byte("value"), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		answer := ask()
		if at, _, value, ok := jskv.ScanRead(answer); !ok || at != rev || string(value) != "value" {
			t.Errorf("%d, %q, %v of %s", at, value, ok, answer)
		}
		if rev, err = b.Purge(ctx, "a", rev, jskv.MarkerTTL); err != nil {
			t.Fatal(err)
		}
		answer = ask()
		if at, header, value, ok := jskv.ScanRead(answer); !ok || at != rev || len(value) > 0 || !strings.Contains(string(header), "PURGE") {
			t.Errorf("%d, %q, %q, %v of %s", at, header, value, ok, answer)
		}
	})
}
