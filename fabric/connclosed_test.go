package fabric_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// A connection that was closed for good ends every call, and those that come later.
func TestConnectionClosedForGood(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		nc := s.conn(t)
		m := newManager(t, nc)
		u, held := everyCall(t, s, m, func() {})
		nc.Close()
		got, err := u.all(closeTakes)
		if err != nil {
			t.Error(err)
		}
		waits := map[string]bool{"Acquire": true, "Acquire under a lease of its own": true, "Convert": true, "Watch": true}
		for _, e := range got {
			if waits[e.call] && !errors.Is(e.err, fabric.ErrConnectionClosed) {
				t.Errorf("%s: %v", e.call, e.err)
			}
		}
		if held.Err() != nil {
			t.Errorf("a hold before its deadline: %v", held.Err())
		}
		if _, err := m.Acquire(waitContext(t), s.key(t)); !errors.Is(err, fabric.ErrConnectionClosed) {
			t.Errorf("later: %v", err)
		}
		if _, err := fabric.New(waitContext(t), nc); !errors.Is(err, fabric.ErrConnectionClosed) {
			t.Errorf("New: %v", err)
		}
		if err := fabric.StandBy(waitContext(t), nc); !errors.Is(err, fabric.ErrConnectionClosed) {
			t.Errorf("StandBy: %v", err)
		}
	})
}

// sharedBuffer is written by the goroutines of a manager and read by the test.
type sharedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *sharedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *sharedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A borrowed connection that gives up during an outage ends a wait without a deadline,
// and New has warned of that.
func TestConnectionThatGivesUp(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		p := faultproxy.New(t, s.server.ClientURL())
		nc, err := nats.Connect(p.URL(), nats.MaxReconnects(2), nats.ReconnectWait(10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		var log sharedBuffer
		m := newManager(t, nc, fabric.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		if !strings.Contains(log.String(), "nats.MaxReconnects(-1)") {
			t.Errorf("no warning in %q", log.String())
		}
		key := s.key(t)
		holder := acquire(t, s.manager(t), key)
		next := queue(t, t.Context(), m, key)
		p.Cut()
		if got := <-next; !errors.Is(got.err, fabric.ErrConnectionClosed) {
			t.Errorf("the waiter got %v", got.err)
		}
		release(t, holder)
	})
}

// dialer counts the connections that are made.
type dialer struct{ n atomic.Int32 }

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.n.Add(1)
	return net.Dial(network, address)
}

// A connection that Connect makes never gives up, whatever the options say.
func TestConnectNeverGivesUp(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		p := faultproxy.New(t, s.server.ClientURL())
		var dials dialer
		m, err := fabric.Connect(waitContext(t), p.URL(), fabric.WithNATS(nats.NoReconnect(), nats.MaxReconnects(1), nats.ReconnectWait(10*time.Millisecond), nats.SetCustomDialer(&dials)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		p.Cut()
		eventually(t, "some tries", func() bool { return dials.n.Load() > 5 })
		p.Heal()
		release(t, acquire(t, m, s.key(t)))
	})
}
