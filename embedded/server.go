package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Server is a running NATS server with JetStream. It is safe for concurrent use.
type Server struct {
	srv      *natsserver.Server
	dir      string
	tempDir  bool
	token    string // "" = clients need none
	lock     *storeLock
	addr     net.Addr // nil without a listener
	routes   net.Addr // nil without a cluster
	stopOnce sync.Once
	stopping chan struct{} // closed when Shutdown begins
	stopped  chan struct{} // closed when everything is released
	stopErr  error         // set before stopped is closed
}

// Start runs a server and returns when JetStream is up and its store is
// recovered. It fails with ErrInvalidOption, ErrStoreInUse (a
// *StoreInUseError), ErrStartFailed, or ctx's cause; then nothing is left
// running and the store is free. ctx covers the start only: to end the server,
// call Shutdown. Recovery of a store can't be interrupted, so Start returns
// late when ctx ends in the middle of one.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	return start(ctx, c)
}

func start(ctx context.Context, c *config) (_ *Server, err error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("embedded: start: %w", context.Cause(ctx))
	}
	// Addresses are checked before anything is made on disk.
	if _, err := c.serverOptions(""); err != nil {
		return nil, err
	}
	dir, err := makeStoreDir(c)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, tempDir: c.tempStore, token: c.token, stopping: make(chan struct{}), stopped: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = s.Shutdown(context.WithoutCancel(ctx))
		}
	}()
	if s.lock, err = acquireStoreLock(dir); err != nil {
		return nil, err
	}
	o, err := c.serverOptions(dir)
	if err != nil {
		return nil, err
	}
	if s.srv, err = natsserver.NewServer(o); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStartFailed, err)
	}
	if err := s.run(ctx, c, newLogAdapter(c.logger)); err != nil {
		return nil, err
	}
	s.lock.setOwner(s.ClientURL())
	return s, nil
}

// run brings the server up. The server's Start returns when all is done or when
// it gave up; it is waited for in every case, because stopping a server that is
// still recovering its store can leave files open behind the lock.
func (s *Server) run(ctx context.Context, c *config, l *logAdapter) error {
	l.install(s.srv)
	s.srv.Start()
	select {
	case <-l.fatal:
		return fmt.Errorf("%w: %s", ErrStartFailed, l.reason)
	default:
	}
	if ctx.Err() != nil {
		return fmt.Errorf("embedded: start: %w", context.Cause(ctx))
	}
	if !s.srv.JetStreamEnabled() {
		return fmt.Errorf("%w: JetStream is not enabled", ErrStartFailed)
	}
	s.addr = s.srv.Addr()
	if c.cluster == nil {
		return nil
	}
	return s.waitRoutes(ctx, l)
}

// waitRoutes waits for the cluster listener: the server opens it, or gives up,
// after its Start has returned, and offers no event for it.
func (s *Server) waitRoutes(ctx context.Context, l *logAdapter) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if a := s.srv.ClusterAddr(); a != nil {
			s.routes = a
			return nil
		}
		select {
		case <-tick.C:
		case <-l.fatal:
			return fmt.Errorf("%w: %s", ErrStartFailed, l.reason)
		case <-ctx.Done():
			return fmt.Errorf("embedded: start: %w", context.Cause(ctx))
		}
	}
}

func makeStoreDir(c *config) (string, error) {
	if c.tempStore {
		dir, err := os.MkdirTemp("", "lockfabric-")
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrStartFailed, err)
		}
		return dir, nil
	}
	dir, err := filepath.Abs(c.storeDir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("%w: store directory: %w", ErrStartFailed, err)
	}
	return dir, nil
}

// Connect opens a connection inside the process; no listener is needed. It
// fails with ErrStopped after Shutdown. The caller closes it.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	select {
	case <-s.stopping:
		return nil, ErrStopped
	default:
	}
	// Last, so that no option of the caller leads to another server.
	opts = append(opts[:len(opts):len(opts)], nats.InProcessServer(s))
	if s.token != "" {
		opts = append(opts, nats.Token(s.token))
	}
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
	return nc, nil
}

// InProcessConn opens a raw connection inside the process. With it a Server can
// be given to nats.InProcessServer.
func (s *Server) InProcessConn() (net.Conn, error) {
	conn, err := s.srv.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return conn, nil
}

// ClientURL returns the URL for clients in other processes of this host, empty
// when the server has no listener.
func (s *Server) ClientURL() string {
	a, ok := s.addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1" // listening everywhere is no address to dial
	}
	return "nats://" + net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// Addr returns the address of the client listener, nil when there is none.
func (s *Server) Addr() net.Addr { return s.addr }

// ClusterAddr returns the address on which other servers of the cluster are
// accepted, nil without WithCluster.
func (s *Server) ClusterAddr() net.Addr { return s.routes }

// Name returns the server's name.
func (s *Server) Name() string { return s.srv.Name() }

// StoreDir returns the store directory as an absolute path.
func (s *Server) StoreDir() string { return s.dir }

// NumClients returns the number of client connections, in-process ones
// included.
func (s *Server) NumClients() int { return s.srv.NumClients() }

// Shutdown stops the server, waits until it has stopped, releases the store and
// removes a temporary one. Clients are disconnected. It can be called any
// number of times and from anywhere; every call waits for the same end and
// returns the same error. When ctx ends first, its cause is returned and the
// server goes on stopping; call again to wait on.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopOnce.Do(func() {
		close(s.stopping)
		go s.stop()
	})
	select {
	case <-s.stopped:
		return s.stopErr
	default:
	}
	select {
	case <-s.stopped:
		return s.stopErr
	case <-ctx.Done():
		return fmt.Errorf("embedded: shutdown: %w", context.Cause(ctx))
	}
}

// Kill stops the server and waits for it, without a bound. It is meant for
// tests that want a server gone; a leader still hands its streams over, see
// Cluster.KillNode for one that can't.
func (s *Server) Kill() { _ = s.Shutdown(context.Background()) }

// stop runs once. The lock is released only when the server's last goroutine
// has ended, so that the next owner finds files nobody writes to.
func (s *Server) stop() {
	defer close(s.stopped)
	if s.srv != nil {
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
	}
	var errs []error
	if s.lock != nil {
		errs = append(errs, s.lock.release())
	}
	if s.tempDir {
		if err := os.RemoveAll(s.dir); err != nil {
			errs = append(errs, fmt.Errorf("embedded: removing the temporary store: %w", err))
		}
	}
	s.stopErr = errors.Join(errs...)
}
