package jskv_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
)

func TestHubOnACluster(t *testing.T) {
	t.Parallel()
	servers := cluster.Run(t, 3)
	nc := connect(t, servers.Node(0).Connect)
	b := openLocks(t, nc)
	stream := bucketStream(testContext(t), t, nc, b)

	// a cast is a hub with inboxes for keys of its own.
	type cast []*inbox
	const keys = 10
	hubs := 0
	setup := func(t *testing.T) cast {
		t.Helper()
		hubs++
		h := jskv.NewHub(b, jskv.WithPollInterval(300*time.Millisecond))
		t.Cleanup(h.Close)
		c := make(cast, keys)
		for i := range c {
			c[i] = newInbox(t)
			h.Watch(fmt.Sprintf("hub%d.%d", hubs, i), c[i].fn)
		}
		for _, in := range c {
			in.wait(testContext(t), "absence", absent)
		}
		return c
	}
	write := func(ctx context.Context, t *testing.T, c cast, value string) {
		t.Helper()
		for i, in := range c {
			rev := put(ctx, t, b, in.key(), value)
			if i%5 == 0 {
				in.waitRevision(ctx, rev)
			}
		}
		for _, in := range c {
			in.wait(ctx, value, func(e jskv.Entry) bool { return string(e.Value) == value })
		}
	}

	t.Run("leader steps down", func(t *testing.T) {
		ctx := testContext(t)
		c := setup(t)
		for round := range 5 {
			if _, err := servers.WaitStreamLeader(ctx, b.Stream()); err != nil {
				t.Fatal(err)
			}
			if err := servers.StepDown(ctx, b.Stream()); err != nil {
				t.Fatal(err)
			}
			write(ctx, t, c, fmt.Sprint("round ", round))
		}
	})

	// The client stays connected to node 0 and hears nothing when the server
	// that has the watcher's consumer dies.
	t.Run("consumer's node dies", func(t *testing.T) {
		var casts []cast
		for node := 1; node < 3; node++ {
			ctx := testContext(t)
			for consumersOn(ctx, t, stream, servers.Node(node).Name()) == 0 {
				casts = append(casts, setup(t)) // the server places consumers at random
			}
			servers.KillNode(node)
			for _, c := range casts {
				write(ctx, t, c, fmt.Sprint("without ", node))
			}
			if err := servers.RestartNode(ctx, node); err != nil {
				t.Fatal(err)
			}
			if err := servers.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			for _, c := range casts {
				write(ctx, t, c, fmt.Sprint("with ", node))
			}
		}
	})
}

// consumersOn counts the stream's consumers that live on a server. It asks again when no leader answers.
func consumersOn(ctx context.Context, t *testing.T, s jetstream.Stream, server string) int {
	t.Helper()
	for {
		actx, cancel := context.WithTimeout(ctx, 5*time.Second)
		n, list := 0, s.ListConsumers(actx)
		for info := range list.Info() {
			if info.Cluster != nil && info.Cluster.Leader == server {
				n++
			}
		}
		cancel()
		if list.Err() == nil {
			return n
		}
		if ctx.Err() != nil {
			t.Fatal(list.Err())
		}
	}
}
