package cluster_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/test/cluster"
)

// stream is the name of the stream behind createBucket's bucket.
const stream = "KV_b"

const testTimeout = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// connect takes the Connect of a cluster or of a node.
func connect(t *testing.T, dial func(...nats.Option) (*nats.Conn, error), opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	nc, err := dial(opts...)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func createBucket(t *testing.T, js jetstream.JetStream, replicas int) jetstream.KeyValue {
	t.Helper()
	kv, err := js.CreateKeyValue(testContext(t), jetstream.KeyValueConfig{Bucket: "b", Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func streamLeader(t *testing.T, c *cluster.Cluster) int {
	t.Helper()
	i, err := c.WaitStreamLeader(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// put repeats a write until it is acknowledged: while leaders change there may
// be no leader to answer, and a message to the old one may be lost.
func put(t *testing.T, kv jetstream.KeyValue, key string) {
	t.Helper()
	ctx := testContext(t)
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := kv.PutString(attempt, key, "v")
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil || errors.Is(err, jetstream.ErrInvalidKey) {
			t.Fatalf("put %q: %v", key, err)
		}
	}
}

func ready(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if err := c.WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestClusterReplicates(t *testing.T) {
	c := cluster.Run(t, 3)
	if c.Size() != 3 || c.Node(0).Name() != cluster.Name+"-0" {
		t.Errorf("size %d, first node %q", c.Size(), c.Node(0).Name())
	}
	kv := createBucket(t, connect(t, c.Connect), 3)
	put(t, kv, "k")
	info, err := connect(t, c.Node(1).Connect).Stream(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	if peers := info.CachedInfo().Cluster.Replicas; len(peers) != 2 {
		t.Errorf("replicas: %v", peers)
	}
}

func TestStepDown(t *testing.T) {
	c := cluster.Run(t, 3)
	if err := c.StepDown(testContext(t), "none"); !errors.Is(err, cluster.ErrNoLeader) {
		t.Errorf("step down of a stream that doesn't exist: %v", err)
	}
	if i := c.StreamLeader("none"); i != -1 {
		t.Errorf("leader of a stream that doesn't exist: %d", i)
	}
	kv := createBucket(t, connect(t, c.Connect), 3)
	before := streamLeader(t, c)
	for ctx := testContext(t); streamLeader(t, c) == before; { // it may be elected again
		if err := c.StepDown(ctx, stream); err != nil && !errors.Is(err, cluster.ErrNoLeader) {
			t.Fatal(err)
		}
	}
	put(t, kv, "k")
}

func TestNodeRestarts(t *testing.T) {
	c := cluster.Run(t, 3)
	url := c.URL()
	kv := createBucket(t, connect(t, c.Connect, nats.MaxReconnects(-1)), 3)
	old := streamLeader(t, c)
	c.StopNode(old)
	c.StopNode(old)
	if c.Running(old) {
		t.Error("a stopped node counts as running")
	}
	put(t, kv, "meanwhile")
	if err := c.RestartNode(testContext(t), old); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	if c.URL() != url || !c.Running(old) {
		t.Errorf("url was %s, is %s", url, c.URL())
	}
}

func TestKilledLeaderIsReplaced(t *testing.T) {
	c := cluster.Run(t, 3)
	kv := createBucket(t, connect(t, c.Connect, nats.MaxReconnects(-1)), 3)
	old := streamLeader(t, c)
	c.KillNode(old)
	if leader := streamLeader(t, c); leader == old {
		t.Errorf("the killed node %d leads", old)
	}
	put(t, kv, "k")
	if err := c.RestartNode(testContext(t), old); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
}

// The important case for a lock service: clients reach a leader
// that can't reach a majority.
func TestIsolatedLeaderCommitsNothing(t *testing.T) {
	c := cluster.Run(t, 3)
	kv := createBucket(t, connect(t, c.Connect, nats.MaxReconnects(-1)), 3)
	put(t, kv, "before")
	old := streamLeader(t, c)
	atOld := connect(t, c.Node(old).Connect)
	c.Isolate(old)

	// The old leader still believes that it leads. It takes the message and must not acknowledge
	// it. The attempt ends when the others have elected a leader. That is long
	// after an acknowledgement would have come.
	if got := c.StreamLeader(stream); got != old {
		t.Errorf("leader right after the cut: %d, want %d", got, old)
	}
	election, stop := context.WithCancelCause(testContext(t))
	acked := make(chan error, 1)
	go func() {
		_, err := atOld.Publish(election, "$KV.b.lost", []byte("v"), jetstream.WithRetryAttempts(0))
		if err == nil {
			stop(errors.New("an isolated leader acknowledged a write"))
		}
		acked <- err
	}()
	leader, err := c.WaitStreamLeader(election, stream)
	stop(nil)
	<-acked
	if err != nil {
		t.Fatal(err)
	}
	if leader == old {
		t.Fatalf("node %d leads while it is cut off", old)
	}
	if got := c.StreamLeader(stream); got != leader {
		t.Errorf("StreamLeader = %d, want %d", got, leader)
	}
	majority, err := connect(t, c.Node(leader).Connect).KeyValue(testContext(t), "b")
	if err != nil {
		t.Fatal(err)
	}
	put(t, majority, "after")

	c.Heal(old)
	ready(t, c)
	put(t, majority, "healed")
	if _, err := majority.Get(testContext(t), "lost"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the write of the isolated leader: %v", err)
	}
}

func TestStartEndsWithContext(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if c, err := cluster.Start(ctx, 3); !errors.Is(err, context.Canceled) || c != nil {
		t.Errorf("got %v, %v", c, err)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
		t.Errorf("left on disk: %v", left)
	}
}

// A cluster stays shut down.
func TestShutdownOfStoppedNodes(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	c := cluster.Run(t, 2)
	c.StopNode(0)
	c.StopNode(1)
	if err := c.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := c.RestartNode(testContext(t), 0); err == nil || c.Running(0) {
		t.Errorf("restart after Shutdown: %v, running %v", err, c.Running(0))
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
		t.Errorf("left on disk: %v", left)
	}
}
