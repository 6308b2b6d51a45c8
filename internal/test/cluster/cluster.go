package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	// Name is the name of each cluster; its nodes are <Name>-0, <Name>-1 and so on.
	Name = "lockfabric"

	// runTime bounds the start and the end of a cluster under Run.
	runTime = 2 * time.Minute

	// restartPause is how long RestartNode waits before it tries again a port
	// that another process has taken meanwhile.
	restartPause = 50 * time.Millisecond

	// noGossip is the route address that every node tells the others. Routes
	// are configured in full, so gossip could only add connections that go
	// around the links. Port 1 is never handed out as a free port; a dial there
	// is refused at once, and the server doesn't retry routes learnt by gossip.
	noGossip = "127.0.0.1:1"
)

// Cluster is a group of servers. Their stores are temporary. They sync them every
// two minutes, which is the default of a NATS server. All methods are safe for
// concurrent use. Indexes of nodes go from 0 to n-1.
type Cluster struct {
	dir string
	// links[i][j] carries the routes that node i dials to node j. Each node dials
	// all others and itself. It notices and closes the route to itself at once, but the servers
	// use the number of configured routes as the size of the cluster: with a
	// smaller number two halves could each elect a leader.
	links [][]*Link

	// ops serialises starting, stopping and cutting; it is held while servers
	// start and stop. mu guards the fields below and is held only briefly.
	ops      sync.Mutex
	mu       sync.Mutex
	nodes    []*Node
	running  []bool
	isolated []bool
	closed   bool // by Shutdown; guarded by ops
}

// Node is one server of a cluster.
type Node struct {
	*natsserver.Server

	port int // of clients; the server forgets it when it stops
}

// Connect opens a connection to this node, inside the process. The caller closes it.
func (n *Node) Connect(opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("", append(opts[:len(opts):len(opts)], nats.InProcessServer(n))...)
}

func (n *Node) stop() {
	n.Shutdown()
	n.WaitForShutdown()
}

// Run is Start for a test. Shutdown is called at the end of the test.
func Run(t testing.TB, n int) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTime)
	defer cancel()
	c, err := Start(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Shutdown(); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return c
}

// Start runs n servers and returns when the cluster is ready as WaitReady says. On an
// error, which may be ctx's cause, it leaves nothing running.
func Start(ctx context.Context, n int) (_ *Cluster, err error) {
	c := &Cluster{nodes: make([]*Node, n), running: make([]bool, n), isolated: make([]bool, n)}
	defer func() {
		if err != nil {
			_ = c.Shutdown()
		}
	}()
	if c.dir, err = os.MkdirTemp("", "lockfabric-cluster-"); err != nil {
		return nil, err
	}
	c.links = make([][]*Link, n)
	for i := range c.links {
		for range n {
			l, err := NewLink()
			if err != nil {
				return nil, err
			}
			c.links[i] = append(c.links[i], l)
		}
	}
	for i := range n {
		if err := c.startNode(ctx, i, natsserver.RANDOM_PORT); err != nil {
			return nil, err
		}
	}
	if err := c.WaitReady(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// startNode runs with ops held, or before the cluster is shared.
func (c *Cluster) startNode(ctx context.Context, i, port int) error {
	name := Name + "-" + strconv.Itoa(i)
	var routes []string
	for _, l := range c.links[i] {
		routes = append(routes, "nats-route://"+l.Addr())
	}
	srv, err := natsserver.NewServer(&natsserver.Options{
		ServerName: name, Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: filepath.Join(c.dir, name),
		Routes: natsserver.RoutesFromStr(strings.Join(routes, ",")),
		Cluster: natsserver.ClusterOpts{
			Name: Name, Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, Advertise: noGossip, NoAdvertise: true,
		},
	})
	if err != nil {
		return err
	}
	n := &Node{Server: srv}
	srv.Start()
	if addr, ok := srv.Addr().(*net.TCPAddr); ok {
		n.port = addr.Port
	}
	if n.port == 0 || !srv.JetStreamEnabled() {
		n.stop()
		return fmt.Errorf("cluster: %s does not start", name)
	}
	// The server opens its address for routes after its Start has returned.
	if err := wait(ctx, name+" does not accept routes", func() bool { return srv.ClusterAddr() != nil }); err != nil {
		n.stop()
		return err
	}
	c.setTarget(i, srv.ClusterAddr().String())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[i], c.running[i] = n, true
	return nil
}

// setTarget sets the address where node i accepts routes as the target of the links to it.
func (c *Cluster) setTarget(i int, addr string) {
	for _, row := range c.links {
		row[i].SetTarget(addr)
	}
}

// Size returns the number of nodes, stopped ones included.
func (c *Cluster) Size() int { return len(c.nodes) }

// Node returns the server with index i. A stopped node keeps its place with the
// stopped server; RestartNode puts a new one there.
func (c *Cluster) Node(i int) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// Running reports whether node i is started and not stopped.
func (c *Cluster) Running(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[i]
}

// URL returns the client URLs of all nodes, separated by commas, as nats.Connect
// takes them. It stays the same over restarts.
func (c *Cluster) URL() string {
	var urls []string
	for i := range c.Size() {
		urls = append(urls, c.Node(i).ClientURL())
	}
	return strings.Join(urls, ",")
}

// Connect opens a TCP connection to any node. The client moves to another one
// when that node stops. The caller closes the connection. For a connection to one node, use
// Node(i).Connect.
func (c *Cluster) Connect(opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect(c.URL(), opts...)
}

// StopNode shuts node i down and waits for it. Its store stays. The node hands its leaderships
// over first; KillNode prevents that. Stopping a stopped node does nothing.
func (c *Cluster) StopNode(i int) {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.stopNode(i)
}

// KillNode cuts node i off and then shuts it down, so that it can't hand its
// leaderships over: the other nodes detect the loss by themselves, as after a crash. The
// store is closed in order.
func (c *Cluster) KillNode(i int) {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.setIsolated(i, true)
	c.stopNode(i)
	c.setIsolated(i, false)
}

func (c *Cluster) stopNode(i int) {
	c.Node(i).stop()
	// Remove the target after the shutdown, since the hand-over needs the links.
	c.setTarget(i, "")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[i] = false
}

// RestartNode starts node i again on its store and its client port. It stops the node
// first if it runs. It returns when the server is up; WaitReady waits until
// the node has caught up. If another process has taken the port, RestartNode waits for it until
// ctx ends. After Shutdown it fails.
func (c *Cluster) RestartNode(ctx context.Context, i int) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	if c.closed {
		return errors.New("cluster: shut down")
	}
	c.stopNode(i)
	port := c.Node(i).port
	for {
		err := c.startNode(ctx, i, port)
		if err == nil || !portTaken(port) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(restartPause):
		}
	}
}

// portTaken reports whether a start has failed because another process has the port. The server
// gives its reason only as text.
func portTaken(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return true
	}
	_ = l.Close()
	return false
}

// Isolate cuts node i off from all other nodes, in both directions, while its
// clients keep reaching it. Its connections to them are reset and new ones
// refused until Heal. A message that had already arrived may still take
// effect, and a leader that is cut off takes about ten seconds to resign; it
// commits nothing meanwhile.
func (c *Cluster) Isolate(i int) {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.setIsolated(i, true)
}

// Heal reconnects node i; the servers find each other within about a second.
func (c *Cluster) Heal(i int) {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.setIsolated(i, false)
}

func (c *Cluster) setIsolated(i int, on bool) {
	c.mu.Lock()
	c.isolated[i] = on
	isolated := slices.Clone(c.isolated)
	c.mu.Unlock()
	for a, row := range c.links {
		for b, l := range row {
			switch {
			case a == b || (a != i && b != i):
			case isolated[a] || isolated[b]:
				l.cut()
			default:
				l.heal()
			}
		}
	}
}

// Shutdown stops all nodes, waits for them and removes their stores. It can be
// called again.
func (c *Cluster) Shutdown() error {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.closed = true
	var wg sync.WaitGroup
	for i := range c.Size() {
		if n := c.Node(i); n != nil {
			wg.Go(n.stop)
		}
	}
	wg.Wait()
	c.mu.Lock()
	clear(c.running)
	c.mu.Unlock()
	for _, row := range c.links {
		for _, l := range row {
			l.Close()
		}
	}
	return os.RemoveAll(c.dir)
}
