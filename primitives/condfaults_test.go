package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
)

// Where the record has no room for one more that waits, the mutex isn't given up.
func TestCondInAFullQueue(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "small.conf")
	if err := os.WriteFile(config, []byte("listen: 127.0.0.1:-1\nmax_payload: 65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, err := embedded.Start(waitContext(t), embedded.WithTempStore(), embedded.WithConfigFile(config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Kill)
	nc, err := srv.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	m := newManager(t, nc)
	mu := primitives.NewMutex(m, "full")
	ctx, cancel := context.WithCancel(waitContext(t))
	defer cancel()
	for n := 1; ; n++ {
		l := lock(t, mu)
		// Six bytes for a character, in JSON.
		cond := primitives.NewCond(mu, fmt.Sprint(n)+strings.Repeat("\x01", primitives.MaxCondName-3))
		wait := async(func() (*primitives.Lock, error) { return cond.Wait(ctx, l) })
		var full *result[*primitives.Lock]
		waitInfo(t, m, "full", "one more that waits, or none", func(i fabric.Info) bool {
			select {
			case r := <-wait:
				full = &r
			default:
			}
			return full != nil || len(i.Conditions) == n
		})
		if full == nil {
			continue
		}
		if back := full.value; !errors.Is(full.err, fabric.ErrQueueFull) || back == nil || back.Err() != nil || back.Token() != l.Token() || n < 10 {
			t.Fatalf("%+v for the %dth", full, n)
		}
		release(t, full.value)
		return
	}
}

// A wait that is held back on its way is cancelled, and comes late: the mutex is held by the handle that Wait
// has returned, and stays so.
func TestCondWaitThatComesLate(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		p := newCondPair(t, s)
		proxy := faultproxy.New(t, strings.TrimPrefix(s.url(), "nats://"))
		nc, err := nats.Connect(proxy.URL(), nats.ReconnectBufSize(-1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		mu := primitives.NewMutex(newManager(t, nc), p.key)
		l := lock(t, mu)
		ctx, cancel := context.WithCancel(waitContext(t))
		late := proxy.HoldRequests(faultproxy.Times(1, faultproxy.Subject("$KV."+fabric.DefaultFabric+"-locks.>")))
		waited := async(func() (*primitives.Lock, error) { return primitives.NewCond(mu, "full").Wait(ctx, l) })
		if err := late.Wait(waitContext(t), 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		r := receive(t, waited)
		if !errors.Is(r.err, context.Canceled) || r.value == nil || r.value.Err() != nil {
			t.Fatalf("%+v", r)
		}
		if err := late.Release(); err != nil {
			t.Fatal(err)
		}
		next := async(func() (*primitives.Lock, error) { return p.mus[0].Lock(waitContext(t)) })
		waitQueue(t, p.m, p.key, 1)
		if info := read(t, p.m, p.key); len(info.Holders) != 1 || info.Holders[0].ID != r.value.ID() || len(info.Conditions) > 0 {
			t.Errorf("held by %+v, conditions %+v", info.Holders, info.Conditions)
		}
		release(t, r.value)
		release(t, must(t, next))
		expectFree(t, p.m, p.key)
	})
}
