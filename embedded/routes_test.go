package embedded_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
)

// WithCluster as a daemon uses it, with links standing in for addresses that are
// known beforehand.
func TestClusterByHand(t *testing.T) {
	var links []*cluster.Link
	for range 2 {
		l, err := cluster.NewLink()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		links = append(links, l)
	}
	all := []string{links[0].Addr(), "nats-route://" + links[1].Addr()}
	var servers []*embedded.Server
	for i, name := range []string{"a", "b"} {
		s := start(t, embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"),
			embedded.WithServerName(name), embedded.WithCluster("hand", "127.0.0.1:0", all...))
		links[i].SetTarget(s.ClusterAddr().String())
		servers = append(servers, s)
	}
	js := connect(t, servers[0].Connect)
	for ctx := testContext(t); ; {
		// As long as there is no leader, nobody answers.
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		_, err := js.CreateOrUpdateKeyValue(attempt, jetstream.KeyValueConfig{Bucket: "b", Replicas: 2})
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("no replicated bucket: %v", err)
		}
	}
}
