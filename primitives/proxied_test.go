package primitives_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// proxied is a connection that can be cut for good.
type proxied struct {
	conn *nats.Conn
	cut  func()
}

func (s *site) proxied(t testing.TB) proxied {
	t.Helper()
	p := faultproxy.New(t, strings.Split(s.url(), ",")[0])
	nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return proxied{nc, p.Cut}
}
