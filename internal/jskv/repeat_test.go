package jskv_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// Every request of an opening and of a list is sent again when nobody answers it: two
// of each kind are lost.
func TestEveryRequestIsRepeated(t *testing.T) {
	for _, subject := range []string{
		"$JS.API.INFO",
		"$JS.API.STREAM.INFO.KV_f-leases",
		"$JS.API.STREAM.INFO.KV_f-locks",
		"$JS.API.STREAM.CREATE.KV_f-leases",
		"$JS.API.STREAM.CREATE.KV_f-locks",
		"$JS.API.STREAM.MSG.GET.KV_f-leases",
		"$JS.API.CONSUMER.CREATE.KV_f-leases.>",
		"$JS.API.CONSUMER.CREATE.KV_f-locks.>",
		"$KV.f-leases._fabric",
	} {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t, embedded.WithListen("127.0.0.1:0")) // whose buckets are still to be made
			proxy := faultproxy.New(t, srv.ClientURL())
			rule := proxy.DropRequests(faultproxy.Times(2, faultproxy.Subject(subject)))
			nc := connect(t, func(opts ...nats.Option) (*nats.Conn, error) { return nats.Connect(proxy.URL(), opts...) })
			b, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: "f"})
			if err != nil {
				t.Fatal(err)
			}
			keys := 0
			if err := b.Locks[0].Entries(testContext(t), ">", func(jskv.Entry) bool { keys++; return true }); err != nil || keys != 0 {
				t.Errorf("the list of locks: %d keys, %v", keys, err)
			}
			if rule.Count() < 2 {
				t.Errorf("%d requests were lost: the test shows nothing", rule.Count())
			}
		})
	}
}
