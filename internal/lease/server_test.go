package lease_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
)

// TestOnAServer goes through a lease's whole life on a real server, with the real
// clocks. It waits for events only, however long they take.
func TestOnAServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	nc, err := srv.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	buckets, err := jskv.Open(ctx, nc, jskv.Config{Fabric: "lease"})
	if err != nil {
		t.Fatal(err)
	}
	b := buckets.Leases
	hub := jskv.NewHub(b)
	defer hub.Close()
	o := lease.NewObserver(b, hub.Watch, clock.Observer(), "", nil, nil)
	defer o.Close()
	await := func(what string, ch <-chan string) {
		t.Helper()
		select {
		case <-ch:
		case <-ctx.Done():
			t.Fatalf("%s: not in a minute", what)
		}
	}
	decode := func(id string) lease.Info {
		t.Helper()
		e, err := b.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		i, err := lease.Decode(id, e.Value)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}

	l, err := lease.Create(ctx, b, lease.Config{TTL: 30 * time.Second, AutoRenew: true, Label: "test"})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan string, 1)
	o.Observe(l.ID(), l.TTL(), true, func(id string) { closed <- id })
	for range 3 {
		if err := l.Renew(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if i := decode(l.ID()); i.Dead || i.Label != "test" || !l.Valid() {
		t.Fatalf("after three renewals: %+v, %v", i, l.Err())
	}
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	await("closed", closed)
	if i := decode(l.ID()); !i.Dead || i.Reason != lease.ReasonClosed {
		t.Fatalf("after Close: %+v", i)
	}

	// A crashed holder with a TTL far below the server's whole seconds, and one
	// whose key is not there.
	for _, missing := range []bool{false, true} {
		id := nuid.Next()
		if !missing {
			v := fmt.Appendf(nil, `{"v":1,"id":"%s","state":"live","ttl":300,"margin":15,"nonce":"n"}`, id)
			if _, err := b.Update(ctx, id, v, 0, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		died := make(chan string, 1)
		o.Observe(id, 300*time.Millisecond, false, func(id string) { died <- id })
		await("crashed", died)
		if i := decode(id); !i.Dead || i.Reason != lease.ReasonExpired {
			t.Fatalf("missing %v: %+v", missing, i)
		}
		if st, err := o.Check(ctx, id, time.Second); err != nil || !st.Dead {
			t.Fatalf("missing %v: %+v, %v", missing, st, err)
		}
	}
}
