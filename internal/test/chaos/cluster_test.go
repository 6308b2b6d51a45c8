package chaos_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
)

const (
	locksStream  = "KV_" + fabric.DefaultFabric + "-locks"
	leasesStream = "KV_" + fabric.DefaultFabric + "-leases"
)

func startCluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	return cluster.Run(t, 3)
}

func leader(t *testing.T, c *cluster.Cluster, stream string) int {
	t.Helper()
	i, err := c.WaitStreamLeader(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// stepDowns makes the leaders of both streams resign in turn, once a second,
// until d has passed.
func stepDowns(t *testing.T, s *scenario, c *cluster.Cluster, d time.Duration) {
	t.Helper()
	n := 0
	for deadline := time.Now().Add(d); time.Now().Before(deadline); n++ {
		for _, stream := range []string{locksStream, leasesStream} {
			if stream == leasesStream && n%3 != 0 {
				continue
			}
			leader(t, c, stream)
			ctx, cancel := context.WithTimeout(testContext(t), 5*time.Second)
			// The leader may change by itself at the same moment.
			if err := c.StepDown(ctx, stream); err != nil && !errors.Is(err, cluster.ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
		}
		s.work(min(time.Second, time.Until(deadline)))
	}
	t.Logf("%d times the leader resigned", n)
}

// The stream's leader resigns every second. Callers only wait longer: there is no
// error, no loss and no unconfirmed release.
func TestSoakLeaderResigns(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	managers := newManagers(t, 8, func(int) string { return c.URL() }, connOptions())
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 64, Keys: 32})
	stepDowns(t, s, c, lasts(3*time.Second))
	s.finish()
}

// A server is stopped or killed and starts again, many times, under a fabric of one stream and one of three streams. The three
// have their leaders on different servers, and an owner each. The lease outlives every election, so no hold is lost.
// A release can take longer than its five seconds.
func TestSoakServerRestarts(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	managers := newManagers(t, 8, func(int) string { return c.URL() }, connOptions())
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 48, Keys: 32, Tolerance: chaos.Tolerance{Unconfirmed: true}})
	sharded := newManagers(t, 4, func(int) string { return c.URL() }, connOptions(), fabric.WithFabric("sharded"), fabric.WithShards(3),
		fabric.WithRoad(fabric.RoadCoalesced), fabric.WithCoalescer())
	ofShards := begin(t, &chaos.Workload{Managers: sharded, Workers: 16, Keys: 12, Tolerance: chaos.Tolerance{Unconfirmed: true}})
	deadline := time.Now().Add(lasts(time.Second))
	for n := 0; n == 0 || time.Now().Before(deadline); n++ {
		s.work(time.Second)
		i := leader(t, c, locksStream)
		if n%3 == 2 {
			i = rand.IntN(c.Size())
		}
		down := c.KillNode
		if n%2 == 1 {
			down = c.StopNode
		}
		down(i)
		s.note("node %d is down", i)
		s.note("node %d leads", leader(t, c, locksStream))
		for _, s := range []*scenario{s, ofShards} {
			grow(t, s, 5, func(int) bool { return true })
		}
		s.note("all are granted locks again")
		if err := c.RestartNode(testContext(t), i); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	s.finish()
	ofShards.finish()
	over := uint64(0)
	for _, m := range sharded {
		over += m.Stats().Coalesced
	}
	if over == 0 {
		t.Error("nothing went over the owners: the scenario showed nothing of them")
	}
}

// The leader is cut off from the majority, and some clients reach only this leader.
// They are granted nothing and lose their holds at their deadlines. The
// other clients take over.
func TestSoakLeaderCutOff(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	c := startCluster(t)
	first := newManagers(t, 1, func(int) string { return c.URL() }, connOptions()) // makes the buckets
	old := leader(t, c, locksStream)
	pinned := func(i int) string { return c.Node((old + i) % c.Size()).ClientURL() } // every third to the leader
	managers := newManagers(t, 8, pinned, connOptions(), fabric.WithTTL(ttl))
	if err := first[0].Close(); err != nil {
		t.Fatal(err)
	}
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 64, Keys: 32, LongHold: 2 * ttl, Tolerance: chaos.Tolerance{
		Lost: []error{fabric.ErrExpired, fabric.ErrTakenOver}, Unconfirmed: true,
	}})
	for deadline := time.Now().Add(lasts(time.Second)); ; {
		s.work(time.Second)
		if now := leader(t, c, locksStream); now != old {
			// Back to the node that some clients can't leave.
			if err := c.StepDown(testContext(t), locksStream); err != nil {
				s.note("%v", err) // no leader, or none that is ready, so soon after the last election
			}
			continue
		}
		cutOff(t, s, c, old)
		if !time.Now().Before(deadline) {
			break
		}
	}
	s.finish()
}

// cutOff isolates a leader until the majority has taken over, and heals.
func cutOff(t *testing.T, s *scenario, c *cluster.Cluster, old int) {
	t.Helper()
	c.Isolate(old)
	s.note("leader %d is cut off", old)
	s.note("node %d leads", leader(t, c, locksStream))
	s.note("node %d leads for the leases", leader(t, c, leasesStream))
	minority := func(i int) bool { return i%c.Size() == 0 }
	before := s.w.Progress()
	grow(t, s, 5, func(i int) bool { return !minority(i) })
	s.note("the majority is granted locks again")
	after := s.w.Progress()
	for i := range after.ByManager {
		if minority(i) && after.ByManager[i] != before.ByManager[i] {
			t.Errorf("manager %d reaches only the leader without a majority and was granted %d locks", i, after.ByManager[i]-before.ByManager[i])
		}
	}
	c.Heal(old)
	if err := c.WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s.note("healed")
	grow(t, s, 1, minority)
	s.note("the minority is granted locks again")
}

// grow waits until each of the chosen managers has been granted so many more
// locks.
func grow(t *testing.T, s *scenario, more uint64, chosen func(i int) bool) {
	t.Helper()
	ctx := testContext(t)
	before := s.w.Progress().ByManager
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left := -1
		for i, n := range s.w.Progress().ByManager {
			if chosen(i) && n < before[i]+more {
				left = i
			}
		}
		if left < 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("manager %d is not granted locks any more", left)
		}
	}
}
