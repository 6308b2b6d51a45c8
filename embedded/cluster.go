package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// restartPause is how long RestartNode waits before it tries a port again
	// that something else has taken meanwhile.
	restartPause = 50 * time.Millisecond

	// noGossip is the route address that every node tells the others. Routes
	// are configured in full, so gossip could only add connections that go
	// around the links. Port 1 is never handed out as a free port; a dial there
	// is refused at once, and the server doesn't retry routes learnt by gossip.
	noGossip = "127.0.0.1:1"
)

// Cluster is a group of servers in this process, on loopback, with JetStream
// replicated between them: the set-up on which replicas, leader changes and
// partitions can be tried. All methods are safe for concurrent use, and indexes
// of nodes go from 0 to n-1.
type Cluster struct {
	cfg     *clusterConfig
	dir     string
	tempDir bool
	// links[i][j] carries the routes that node i dials to node j. Each node dials
	// all others and itself, which it notices at once and gives up: the servers
	// take the number of their routes for the size of the cluster, and with a
	// smaller number two halves could each elect a leader.
	links [][]*link

	// ops serialises starting, stopping and cutting; it is held while servers
	// start and stop. mu guards the fields below and is held only briefly.
	ops      sync.Mutex
	mu       sync.Mutex
	nodes    []*Server
	running  []bool
	isolated []bool
	closed   bool // by Shutdown; guarded by ops
}

// StartCluster runs n servers, 3 when n is 0, and returns when the cluster is ready
// as WaitReady says. It fails with ErrInvalidOption, an error of Start, or
// ctx's cause, and leaves nothing running then.
func StartCluster(ctx context.Context, n int, opts ...ClusterOption) (_ *Cluster, err error) {
	cfg, err := newClusterConfig(n, opts)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, dir: cfg.storeDir, nodes: make([]*Server, cfg.nodes), running: make([]bool, cfg.nodes), isolated: make([]bool, cfg.nodes)}
	n = len(c.nodes)
	defer func() {
		if err != nil {
			_ = c.Shutdown(context.WithoutCancel(ctx))
		}
	}()
	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "lockfabric-cluster-"); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStartFailed, err)
		}
		c.tempDir = true
	}
	if c.links, err = newLinks(n); err != nil {
		return nil, err
	}
	for i := range n {
		if err := c.startNode(ctx, i, "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	if err := c.WaitReady(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// newLinks returns a link for each ordered pair. On an error it closes what it
// made.
func newLinks(n int) ([][]*link, error) {
	links := make([][]*link, n)
	for i := range links {
		for range n {
			l, err := newLink()
			if err != nil {
				closeLinks(links)
				return nil, err
			}
			links[i] = append(links[i], l)
		}
	}
	return links, nil
}

func closeLinks(links [][]*link) {
	for _, row := range links {
		for _, l := range row {
			l.close()
		}
	}
}

// startNode runs with ops held, or before the cluster is shared.
func (c *Cluster) startNode(ctx context.Context, i int, listen string) error {
	name := c.cfg.name + "-" + strconv.Itoa(i)
	var routes []string
	for _, l := range c.links[i] {
		routes = append(routes, l.addr())
	}
	cfg, err := newConfig([]Option{
		WithStoreDir(filepath.Join(c.dir, name)),
		WithSync(c.cfg.sync),
		WithListen(listen),
		WithServerName(name),
		WithCluster(c.cfg.name, "127.0.0.1:0", routes...),
		WithLogger(c.cfg.logger),
	})
	if err != nil {
		return err
	}
	if c.cfg.logger != nil {
		cfg.logger = c.cfg.logger.With("node", name)
	}
	cfg.cluster.advertise = noGossip
	s, err := start(ctx, cfg)
	if err != nil {
		return fmt.Errorf("node %d: %w", i, err)
	}
	c.setTarget(i, s.ClusterAddr().String())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[i], c.running[i] = s, true
	return nil
}

// setTarget tells the links to node i where it accepts routes.
func (c *Cluster) setTarget(i int, addr string) {
	for _, row := range c.links {
		row[i].setTarget(addr)
	}
}

// Size returns the number of nodes, stopped ones included.
func (c *Cluster) Size() int { return len(c.nodes) }

// Nodes returns all servers by index. A stopped node keeps its place with the
// stopped server; RestartNode puts a new one there.
func (c *Cluster) Nodes() []*Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Server(nil), c.nodes...)
}

// Node returns the server with index i, or nil when there is none.
func (c *Cluster) Node(i int) *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < 0 || i >= len(c.nodes) {
		return nil
	}
	return c.nodes[i]
}

// Running reports whether node i is started and not stopped.
func (c *Cluster) Running(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return i >= 0 && i < len(c.running) && c.running[i]
}

// URL returns the client URLs of all nodes, separated by commas, as nats.Connect
// takes them. It stays the same over restarts.
func (c *Cluster) URL() string {
	var urls []string
	for _, s := range c.Nodes() {
		urls = append(urls, s.ClientURL())
	}
	return strings.Join(urls, ",")
}

// Connect opens a TCP connection to any node; the client moves to another one
// when that node goes. The caller closes it. For a connection to one node, use
// Node(i).Connect.
func (c *Cluster) Connect(opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect(c.URL(), opts...)
	if err != nil {
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
	return nc, nil
}

// StopNode shuts node i down and waits for it; its store stays. Leaders hand
// over first, see KillNode. Stopping a stopped node does nothing.
func (c *Cluster) StopNode(ctx context.Context, i int) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	return c.stopNode(ctx, i)
}

// KillNode cuts node i off and then shuts it down, so that it can't hand its
// leaderships over: the others find out by themselves, as after a crash. The
// store is closed in order.
func (c *Cluster) KillNode(ctx context.Context, i int) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	if err := c.setIsolated(i, true); err != nil {
		return err
	}
	err := c.stopNode(ctx, i)
	return errors.Join(err, c.setIsolated(i, false))
}

func (c *Cluster) stopNode(ctx context.Context, i int) error {
	s := c.Node(i)
	if s == nil {
		return fmt.Errorf("%w: %d of %d", ErrNoSuchNode, i, c.Size())
	}
	err := s.Shutdown(ctx)
	// After the shutdown: to stop its callers first would spoil the hand-over.
	c.setTarget(i, "")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[i] = false
	return err
}

// RestartNode starts node i again on its store and its client port, stopping it
// first when it runs. It returns when the server is up; WaitReady waits until
// it has caught up. Until ctx ends it waits for the port, should something else
// have taken it. After Shutdown it fails with ErrStopped.
func (c *Cluster) RestartNode(ctx context.Context, i int) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	if c.closed {
		return ErrStopped
	}
	if err := c.stopNode(ctx, i); err != nil {
		return err
	}
	addr := c.Node(i).Addr().String()
	for {
		err := c.startNode(ctx, i, addr)
		if err == nil || !portTaken(addr) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(restartPause):
		}
	}
}

// portTaken tells a lost port from other reasons of a failed start: the server
// gives its reason as text only.
func portTaken(addr string) bool {
	l, err := net.Listen("tcp", addr)
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
func (c *Cluster) Isolate(i int) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	return c.setIsolated(i, true)
}

// Heal reconnects node i; the servers find each other within about a second.
func (c *Cluster) Heal(i int) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	return c.setIsolated(i, false)
}

func (c *Cluster) setIsolated(i int, on bool) error {
	if i < 0 || i >= c.Size() {
		return fmt.Errorf("%w: %d of %d", ErrNoSuchNode, i, c.Size())
	}
	c.mu.Lock()
	c.isolated[i] = on
	isolated := append([]bool(nil), c.isolated...)
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
	return nil
}

// Shutdown stops all nodes, waits for them and removes temporary stores. It can
// be called again; when ctx ends first, call it again to wait on.
func (c *Cluster) Shutdown(ctx context.Context) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.closed = true
	var wg sync.WaitGroup
	nodes := c.Nodes()
	errs := make([]error, len(nodes))
	for i, s := range nodes {
		if s != nil {
			wg.Go(func() { errs[i] = s.Shutdown(ctx) })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil && ctx.Err() != nil {
		return err // some may still be stopping
	}
	c.mu.Lock()
	clear(c.running)
	c.mu.Unlock()
	closeLinks(c.links)
	if c.tempDir {
		if err := os.RemoveAll(c.dir); err != nil {
			errs = append(errs, fmt.Errorf("embedded: removing the temporary stores: %w", err))
		}
	}
	return errors.Join(errs...)
}
