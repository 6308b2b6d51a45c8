package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// ErrNoLeader is returned by StepDown when no node leads the stream: it does not
// exist, or an election is under way. Wait with WaitStreamLeader.
var ErrNoLeader = errors.New("cluster: stream has no leader")

// pollPause is the interval at which a wait reads the state of a cluster, since
// the server offers its state but no events.
const pollPause = 10 * time.Millisecond

// WaitReady returns when the nodes that run and aren't isolated have a
// leader for JetStream's metadata that knows all of them, and are all current
// with it. Its error is ctx's cause.
func (c *Cluster) WaitReady(ctx context.Context) error {
	return wait(ctx, "cluster is not ready", func() bool {
		members := c.reachable()
		leaders, known := 0, 0
		for _, i := range members {
			srv := c.Node(i)
			if !srv.JetStreamIsCurrent() {
				return false
			}
			if srv.JetStreamIsClustered() && srv.JetStreamIsLeader() {
				leaders++
				known = len(srv.JetStreamClusterPeers())
			}
		}
		return leaders == 1 && known >= len(members)
	})
}

// StreamLeader returns the index of the node that leads the stream, -1 when
// there is none now. A node that is isolated and hasn't noticed yet is named
// only when no other leads.
func (c *Cluster) StreamLeader(stream string) int {
	if i := c.leaderAmong(c.reachable(), stream); i >= 0 {
		return i
	}
	return c.leaderAmong(c.runningNodes(), stream)
}

// WaitStreamLeader returns the index of the node that leads the stream, among
// those that run and aren't isolated, as soon as there is one and it has caught
// up. Its error is ctx's cause, and the index -1 then.
func (c *Cluster) WaitStreamLeader(ctx context.Context, stream string) (int, error) {
	leader := -1
	err := wait(ctx, fmt.Sprintf("stream %q has no leader", stream), func() bool {
		leader = c.leaderAmong(c.reachable(), stream)
		return leader >= 0 && c.Node(leader).JetStreamIsStreamCurrent(natsserver.DEFAULT_GLOBAL_ACCOUNT, stream)
	})
	if err != nil {
		return -1, err
	}
	return leader, nil
}

// StepDown makes the leader of the stream resign, so that another replica
// takes over. WaitStreamLeader returns which. StepDown fails with ErrNoLeader or with
// the reason that the server gives. With one replica
// the same node leads again.
func (c *Cluster) StepDown(ctx context.Context, stream string) error {
	i := c.StreamLeader(stream)
	if i < 0 {
		return fmt.Errorf("%w: %q", ErrNoLeader, stream)
	}
	nc, err := c.Node(i).Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	msg, err := nc.RequestWithContext(ctx, fmt.Sprintf(natsserver.JSApiStreamLeaderStepDownT, stream), nil)
	if err != nil {
		return fmt.Errorf("cluster: step down of %q: %w", stream, err)
	}
	var reply natsserver.JSApiStreamLeaderStepDownResponse
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return fmt.Errorf("cluster: step down of %q: %w", stream, err)
	}
	if reply.Error != nil {
		return fmt.Errorf("cluster: step down of %q: %w", stream, reply.Error)
	}
	return nil
}

func (c *Cluster) leaderAmong(nodes []int, stream string) int {
	for _, i := range nodes {
		if c.Node(i).JetStreamIsStreamLeader(natsserver.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return i
		}
	}
	return -1
}

// reachable returns the nodes that run and aren't isolated.
func (c *Cluster) reachable() []int { return c.filter(true) }

func (c *Cluster) runningNodes() []int { return c.filter(false) }

func (c *Cluster) filter(connected bool) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []int
	for i, up := range c.running {
		if up && !(connected && c.isolated[i]) {
			out = append(out, i)
		}
	}
	return out
}

func wait(ctx context.Context, what string, done func() bool) error {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}
