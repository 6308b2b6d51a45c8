package fabric_test

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// connectTo connects to a server of one test.
func connectTo(t *testing.T, srv *natsserver.Server, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(srv.ClientURL(), append(opts, nats.ReconnectBufSize(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// beats has every beat that a connection hears from now on tell.
func beats(t *testing.T, nc *nats.Conn) <-chan struct{} {
	t.Helper()
	heard := make(chan struct{}, 1)
	_, err := nc.Subscribe(coalesce.BeatSubject("lockfabric", 0), func(*nats.Msg) {
		select {
		case heard <- struct{}{}:
		default:
		}
	})
	if err != nil || nc.Flush() != nil {
		t.Fatal(err)
	}
	return heard
}

// C21: a leaf node has a JetStream of its own, and a fabric of the same name in it. Hellos, beats and frames pass
// between the two, and nobody takes an operation for the other fabric.
func TestC21LeafNode(t *testing.T) {
	t.Parallel()
	opts := &natsserver.Options{
		JetStream: true, ServerName: "hub", JetStreamDomain: "hub", LeafNode: natsserver.LeafNodeOpts{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT},
	}
	hub := testserver.Start(t, opts)
	at := &url.URL{Scheme: "nats", Host: net.JoinHostPort(opts.LeafNode.Host, strconv.Itoa(opts.LeafNode.Port))}
	leaf := testserver.Start(t, &natsserver.Options{
		JetStream: true, ServerName: "leaf", JetStreamDomain: "leaf",
		LeafNode: natsserver.LeafNodeOpts{Remotes: []*natsserver.RemoteLeafOpts{{URLs: []*url.URL{at}}}},
	})
	eventually(t, "the link", func() bool { return hub.NumLeafNodes() == 1 })
	one := fabric.WithReplicas(1) // a server with a link has the name of a cluster
	newManager(t, connectTo(t, hub), fabric.WithCoalescer(), one)
	asks := connectTo(t, hub)
	inHub := newManager(t, asks, one, fabric.WithRoad(fabric.RoadCoalesced))
	nc := connectTo(t, leaf)
	inLeaf := newManager(t, nc, one, fabric.WithRoad(fabric.RoadCoalesced))
	heard := beats(t, nc)
	eventually(t, "the hub's owner serves the hub", func() bool {
		_ = asks.Publish("lf.lockfabric.0.hello", nil) // the manager's own may have come before the owner listened
		release(t, acquire(t, inHub, "k"))
		return inHub.Stats().Coalesced > 0
	})
	theirs := acquire(t, inHub, "k")
	wait := acquireAsync(waitContext(t), inHub, "k")
	release(t, acquire(t, inLeaf, "k")) // in another fabric
	receive(t, heard)
	release(t, acquire(t, inLeaf, "k"))
	release(t, theirs)
	release(t, granted(t, wait))
	if st := inLeaf.Stats(); st.Coalesced+st.CoalescerTerm != 0 {
		t.Errorf("%d operations went to the hub's owner, of term %d", st.Coalesced, st.CoalescerTerm)
	}
}

// Who may not publish to a coalescer does without it, whether or not it is answered.
func TestRoads_ClientWithoutRights(t *testing.T) {
	t.Parallel()
	publish, helpful, subscribe := needed("lockfabric")
	user := func(name string, not ...string) *natsserver.User {
		may := slices.DeleteFunc(slices.Concat(publish, helpful), func(s string) bool { return slices.Contains(not, s) })
		return &natsserver.User{Username: name, Password: "x", Permissions: &natsserver.Permissions{
			Publish: &natsserver.SubjectPermission{Allow: may}, Subscribe: &natsserver.SubjectPermission{Allow: subscribe},
		}}
	}
	const hello, op = "lf.lockfabric.*.hello", "lf.lockfabric.*.*.op"
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, Users: []*natsserver.User{
		{Username: "owner", Password: "x"}, user("both"), user("mute", hello, op), user("greets", op),
	}})
	connect := func(name string) *nats.Conn {
		return connectTo(t, srv, nats.UserInfo(name, "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	}
	newManager(t, connect("owner"), fabric.WithCoalescer())
	asks := connect("both")
	both := newManager(t, asks, fabric.WithRoad(fabric.RoadCoalesced))
	eventually(t, "the owner serves", func() bool {
		_ = asks.Publish("lf.lockfabric.0.hello", nil) // the manager's own may have come before the owner listened
		release(t, acquire(t, both, "k"))
		return both.Stats().Coalesced > 0
	})
	for _, name := range []string{"mute", "greets"} {
		nc := connect(name)
		heard := beats(t, nc)
		m := newManager(t, nc, fabric.WithRoad(fabric.RoadCoalesced))
		held := acquire(t, both, "k")
		first := acquireAsync(waitContext(t), both, "k")
		waiters := func(n int) func() bool { return func() bool { return len(inspect(t, both, "k").Waiters) == n } }
		eventually(t, "the first wait", waiters(1))
		receive(t, heard)
		second := acquireAsync(waitContext(t), m, "k")
		eventually(t, "the second wait", waiters(2))
		release(t, held)
		release(t, granted(t, first))
		release(t, granted(t, second))
		eventually(t, "the owner is not relied on", func() bool {
			release(t, acquire(t, m, "k2"))
			st := m.Stats()
			return name == "mute" && st.Coalesced+st.CoalescerTerm == 0 || name == "greets" && st.Fallbacks > 0
		})
	}
}
