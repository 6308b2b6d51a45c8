package jskv_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// The bucket of waits is made with the others, in memory, and an older fabric gets it when it is needed.
func TestWaitsBucketIsMadeWithTheOthers(t *testing.T) {
	nc := dial(t, startServer(t))
	js := jetStream(t, nc)
	b := open(t, nc, jskv.Config{Fabric: "f"})
	s, err := js.Stream(testContext(t), "KV_"+kv.WaitsBucket("f"))
	if err != nil {
		t.Fatalf("after the first opening: %v", err)
	}
	if c := s.CachedInfo().Config; c.Storage != jetstream.MemoryStorage || !c.AllowMsgTTL || c.AllowDirect {
		t.Errorf("%+v", c)
	}
	update(t, b.Locks[0], "k", "v", 0)
	if err := js.DeleteStream(testContext(t), "KV_"+kv.WaitsBucket("f")); err != nil {
		t.Fatal(err)
	}
	again := open(t, nc, jskv.Config{Fabric: "f"}) // an older fabric
	waits, err := again.Waits(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if rev := update(t, waits, "lease", "{}", 0); rev == 0 {
		t.Error("nothing was written")
	}
	if waits, err = b.Waits(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if e, err := waits.Get(testContext(t), "lease"); err != nil || string(e.Value) != "{}" {
		t.Errorf("%q, %v", e.Value, err)
	}
}

// An account without room for it can use the fabric all the same.
func TestWaitsBucketWithoutRoom(t *testing.T) {
	srv := limitedServer(t, map[string]string{"two": "max_streams: 2"})
	nc := connect(t, func(opts ...nats.Option) (*nats.Conn, error) {
		return nats.Connect(srv.ClientURL(), append(opts, nats.UserInfo("two", "two"))...)
	})
	b := open(t, nc, jskv.Config{Fabric: "f"})
	if _, err := b.Waits(testContext(t)); !errors.Is(err, kv.ErrLimit) {
		t.Errorf("got %v, want ErrLimit", err)
	}
}
