package fabric_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

// acquireReaders acquires 100 shared holds of key at once, each with as much metadata as
// it may have. Those that don't fit are to be refused with the limit.
func acquireReaders(t *testing.T, m *fabric.Manager, key string) (locks []*fabric.Lock) {
	t.Helper()
	meta := fabric.WithMetadata(map[string]string{"m": strings.Repeat("x", fabric.MaxMetadata-1)})
	full := 0
	for _, c := range fillQueue(waitContext(t), t, m, key, 100, shared, meta) {
		switch g := receive(t, c); {
		case g.err == nil:
			locks = append(locks, g.lock)
		case errors.Is(g.err, fabric.ErrQueueFull) && strings.HasSuffix(g.err.Error(), " bytes"):
			full++
		default:
			t.Error(g.err)
		}
	}
	t.Logf("%d granted, %d refused", len(locks), full)
	return locks
}

// What fits the server's limit of a message is granted, and the rest is refused by the
// limit's name; a limit that changes while the client reconnects is followed.
func TestSmallPayloadLimit(t *testing.T) {
	t.Parallel()
	opts := &natsserver.Options{JetStream: true, MaxPayload: 65536}
	srv := testserver.Start(t, opts)
	reconnected := make(chan struct{}, 1)
	m, err := fabric.Connect(waitContext(t), srv.ClientURL(), fabric.WithNATS(nats.ReconnectHandler(func(*nats.Conn) {
		reconnected <- struct{}{}
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })

	// A record has to fit in the answer to a read as well, which is in base64.
	locks := acquireReaders(t, m, "readers")
	if len(locks) < 30 || len(locks) > 48 {
		t.Errorf("%d granted at 64 KiB", len(locks))
	}
	if n := len(inspect(t, m, "readers").Holders); n != len(locks) {
		t.Errorf("%d stand in the record, %d were granted", n, len(locks))
	}
	for _, l := range locks {
		release(t, l)
	}
	expectFree(t, m, "readers")

	srv.Shutdown()
	srv.WaitForShutdown()
	testserver.Start(t, &natsserver.Options{JetStream: true, MaxPayload: 32768, Port: opts.Port, StoreDir: opts.StoreDir})
	receive(t, reconnected)
	if locks = acquireReaders(t, m, "readers"); len(locks) < 12 || len(locks) > 24 {
		t.Errorf("%d granted at 32 KiB", len(locks))
	}
}

func TestPayloadLimitTooSmall(t *testing.T) {
	t.Parallel()
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, MaxPayload: 8192})
	_, err := fabric.Connect(waitContext(t), srv.ClientURL())
	if !errors.Is(err, kv.ErrLimit) || !strings.Contains(fmt.Sprint(err), "max_payload is 8192") {
		t.Error(err)
	}
}
