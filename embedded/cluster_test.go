package embedded_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
)

// stream is the name of the stream behind createBucket's bucket.
const stream = "KV_b"

func startCluster(t *testing.T, n int, opts ...embedded.ClusterOption) *embedded.Cluster {
	t.Helper()
	c, err := embedded.StartCluster(testContext(t), n, opts...)
	if err != nil {
		t.Fatalf("StartCluster: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := c.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return c
}

func streamLeader(t *testing.T, c *embedded.Cluster) int {
	t.Helper()
	i, err := c.WaitStreamLeader(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// put repeats a write until it is acknowledged: while leaders change there may
// be nobody to answer, and a message to the old one may be lost.
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

func ready(t *testing.T, c *embedded.Cluster) {
	t.Helper()
	if err := c.WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestClusterReplicates(t *testing.T) {
	dir := t.TempDir()
	c := startCluster(t, 0, embedded.ClusterStoreDir(dir), embedded.ClusterName("trio"))
	if c.Size() != 3 || c.Node(0).Name() != "trio-0" || c.Node(3) != nil || c.Running(3) {
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
	if _, err := os.Stat(filepath.Join(dir, "trio-2", "jetstream")); err != nil {
		t.Error(err)
	}
}

func TestClusterSyncAlways(t *testing.T) {
	c := startCluster(t, 2, embedded.ClusterSync(embedded.SyncAlways))
	put(t, createBucket(t, connect(t, c.Connect), 2), "k")
}

func TestStepDown(t *testing.T) {
	c := startCluster(t, 3)
	if err := c.StepDown(testContext(t), "none"); !errors.Is(err, embedded.ErrNoLeader) {
		t.Errorf("step down of a stream that doesn't exist: %v", err)
	}
	if i := c.StreamLeader("none"); i != -1 {
		t.Errorf("leader of a stream that doesn't exist: %d", i)
	}
	kv := createBucket(t, connect(t, c.Connect), 3)
	before := streamLeader(t, c)
	if err := c.StepDown(testContext(t), stream); err != nil {
		t.Fatal(err)
	}
	if after := streamLeader(t, c); after == before {
		t.Errorf("node %d leads again", after)
	}
	put(t, kv, "k")
}

func TestNodeRestarts(t *testing.T) {
	c := startCluster(t, 3)
	url := c.URL()
	kv := createBucket(t, connect(t, c.Connect, nats.MaxReconnects(-1)), 3)
	old := streamLeader(t, c)
	if err := c.StopNode(testContext(t), old); err != nil {
		t.Fatal(err)
	}
	if err := c.StopNode(testContext(t), old); err != nil {
		t.Errorf("stopping a stopped node: %v", err)
	}
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
	for _, err := range []error{c.StopNode(t.Context(), 3), c.KillNode(t.Context(), -1), c.RestartNode(t.Context(), 3), c.Isolate(3), c.Heal(-1)} {
		if !errors.Is(err, embedded.ErrNoSuchNode) {
			t.Errorf("index out of range: %v", err)
		}
	}
}

func TestKilledLeaderIsReplaced(t *testing.T) {
	c := startCluster(t, 3)
	kv := createBucket(t, connect(t, c.Connect, nats.MaxReconnects(-1)), 3)
	old := streamLeader(t, c)
	if err := c.KillNode(testContext(t), old); err != nil {
		t.Fatal(err)
	}
	if leader := streamLeader(t, c); leader == old {
		t.Errorf("the killed node %d leads", old)
	}
	put(t, kv, "k")
	if err := c.RestartNode(testContext(t), old); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
}

// The set-up that matters for a lock service: a leader that its clients reach,
// but that can't reach a majority.
func TestIsolatedLeaderCommitsNothing(t *testing.T) {
	c := startCluster(t, 3)
	kv := createBucket(t, connect(t, c.Connect, nats.MaxReconnects(-1)), 3)
	put(t, kv, "before")
	old := streamLeader(t, c)
	atOld := connect(t, c.Node(old).Connect)
	if err := c.Isolate(old); err != nil {
		t.Fatal(err)
	}

	// It still thinks that it leads, takes the message, and must not acknowledge
	// it. The attempt ends when the others have elected a leader, which is long
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

	if err := c.Heal(old); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	put(t, majority, "healed")
	if _, err := majority.Get(testContext(t), "lost"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the write of the isolated leader: %v", err)
	}
}

func TestClusterStartEndsWithContext(t *testing.T) {
	if c, err := embedded.StartCluster(canceled(t), 3); !errors.Is(err, context.Canceled) || c != nil {
		t.Errorf("got %v, %v", c, err)
	}
}
