package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Server is a running NATS server with JetStream. It is safe for concurrent use.
type Server struct {
	srv      *natsserver.Server
	dir      string
	tempDir  bool
	cfg      *config
	identity *identity
	access   atomic.Pointer[access]
	lock     *storeLock
	addr     net.Addr // nil without a listener
	routes   net.Addr // nil without a cluster
	reload   sync.Mutex
	stopOnce sync.Once
	stopping atomic.Bool   // Shutdown has begun
	stopped  chan struct{} // closed when everything is released
	stopErr  error         // set before stopped is closed
}

// Start runs a server and returns when JetStream is up and its store is recovered. It fails with ErrInvalidOption,
// ErrStoreInUse (a *StoreInUseError), ErrStartFailed, or ctx's cause; then nothing is left running and the store is
// free. ctx covers the start only: to end the server, call Shutdown. Recovery of a store can't be interrupted, so
// Start returns late when ctx ends in the middle of one.
func Start(ctx context.Context, opts ...Option) (_ *Server, err error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("embedded: start: %w", context.Cause(ctx))
	}
	// All is checked before anything is made on disk.
	id, err := newIdentity()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStartFailed, err)
	}
	p, err := c.plan(id)
	if err != nil {
		return nil, err
	}
	o := p.options
	dir, err := makeStoreDir(o.StoreDir)
	if err != nil {
		return nil, err
	}
	o.StoreDir = dir
	s := &Server{dir: dir, tempDir: c.tempStore, cfg: c, identity: id, stopped: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = s.Shutdown(context.WithoutCancel(ctx))
		}
	}()
	if s.lock, err = acquireStoreLock(dir); err != nil {
		return nil, err
	}
	if s.srv, err = natsserver.NewServer(o); err != nil {
		return nil, c.refused(err)
	}
	s.access.Store(p.access)
	p.log(c.logger)
	if err := s.run(ctx, o, &logAdapter{out: c.logger, fatal: make(chan struct{})}); err != nil {
		return nil, err
	}
	s.lock.setOwner(s.ClientURL())
	return s, nil
}

// run brings the server up. The server's Start returns when all is done or when it gave up; it is waited for in every
// case, because stopping a server that is still recovering its store can leave files open behind the lock.
func (s *Server) run(ctx context.Context, o *natsserver.Options, l *logAdapter) error {
	// Protocol traces stay off: they would put lock owners and payloads into the log.
	s.srv.SetLoggerV2(l, l.out != nil && l.out.Enabled(ctx, slog.LevelDebug), false, false)
	clustered := o.Cluster.Port != 0 // the server writes the port it got there, later
	limited := o.JetStreamMaxStore > 0
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
	if !limited { // it uses a part of what is free on the disk now, and no more later
		state, err := s.srv.Jsz(nil)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrStartFailed, err)
		}
		if err := roomFor(s.dir, state.Config.MaxStore, state.Store); err != nil {
			return err
		}
	}
	s.addr = s.srv.Addr()
	if !clustered {
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

// makeStoreDir makes the directory, a temporary one if it has no name.
func makeStoreDir(dir string) (string, error) {
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp("", "lockfabric-")
	} else if dir, err = filepath.Abs(dir); err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("%w: store directory: %w", ErrStartFailed, err)
	}
	return dir, nil
}

// Addr returns the address of the client listener, nil when there is none.
func (s *Server) Addr() net.Addr { return s.addr }

// ClusterAddr returns the address on which other servers of the cluster are accepted, nil without WithCluster.
func (s *Server) ClusterAddr() net.Addr { return s.routes }

// Name returns the server's name.
func (s *Server) Name() string { return s.srv.Name() }

// StoreDir returns the store directory as an absolute path.
func (s *Server) StoreDir() string { return s.dir }

// NumClients returns the number of client connections, in-process ones included.
func (s *Server) NumClients() int { return s.srv.NumClients() }

// Shutdown stops the server, waits until it has stopped, releases the store and removes a temporary one. Clients are
// disconnected. It can be called any number of times and from anywhere; every call waits for the same end and returns
// the same error. When ctx ends first, its cause is returned and the server goes on stopping; call again to wait on.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopOnce.Do(func() {
		s.stopping.Store(true)
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
// tests that want a server gone; a leader still hands its streams over.
func (s *Server) Kill() { _ = s.Shutdown(context.Background()) }

// stop runs once. The lock is released only when the server's last goroutine
// has ended, so that the next owner finds files nobody writes to.
func (s *Server) stop() {
	defer close(s.stopped)
	// A reload that has begun comes to its end first; later ones find it stopping.
	s.reload.Lock()
	defer s.reload.Unlock()
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

// Reload reads the files again that the options name: certificates, keys and authorities, and the configuration file
// with what it refers to. New connections see the change; clients whose user is gone are disconnected. The same
// checks apply as at the start, so it fails with ErrInvalidOption for files that make no sense, and with ErrReload
// for a change that needs a restart. Then everything stays as it was.
func (s *Server) Reload() error {
	s.reload.Lock()
	defer s.reload.Unlock()
	if s.stopping.Load() {
		return ErrStopped
	}
	p, err := s.cfg.plan(s.identity)
	if err != nil {
		return err
	}
	o := p.options
	if s.cfg.tempStore {
		o.StoreDir = s.dir
	}
	if o.StoreDir, err = filepath.Abs(o.StoreDir); err != nil {
		return fmt.Errorf("%w: %w", ErrReload, err)
	}
	if err := s.srv.ReloadOptions(o); err != nil {
		// What comes after it are whole blocks of options, passwords included.
		text, _, _ := strings.Cut(err.Error(), ": old=")
		return fmt.Errorf("%w: %s", ErrReload, text)
	}
	s.access.Store(p.access)
	p.log(s.cfg.logger)
	return nil
}

// Health fails with ErrStoreFailed when the server can't write its store any more, because the disk is full for
// example, with ErrStoreGone when its files were removed or replaced, and with ErrStopped after Shutdown. A
// server alone finds out about every stream; one in a cluster, whose streams others
// lead then, only when it has given up its whole store. For a moment it can fail
// while a stream is made or deleted: take it seriously when it lasts for seconds.
func (s *Server) Health() error {
	if s.stopping.Load() {
		return ErrStopped
	}
	if err := s.checkFiles(); err != nil {
		return err
	}
	h := s.srv.Healthz(&natsserver.HealthzOptions{Details: true, JSEnabledOnly: s.srv.JetStreamIsClustered()})
	for _, e := range h.Errors {
		if e.Type == natsserver.HealthzErrorJetStream || e.Type == natsserver.HealthzErrorStream {
			return fmt.Errorf("%w: %s", ErrStoreFailed, e.Error)
		}
	}
	return nil
}

// roomFor fails when the server would refuse every write.
func roomFor(dir string, limit int64, used uint64) error {
	if limit > 0 && used < uint64(limit) {
		return nil
	}
	return fmt.Errorf("%w: the disk of %s is full: the store has %d bytes and may have %d, three quarters of what is free and its own; make room",
		ErrStartFailed, dir, used, limit)
}

// Stats are counters and sizes of a server. The counters begin at its start.
type Stats struct {
	Connections, TotalConnections              uint64 // of clients: now, and all there were
	Subscriptions                              uint64
	SlowConsumers                              uint64 // connections that were cut because they took too little
	InMessages, InBytes, OutMessages, OutBytes uint64 // of clients and of other servers
	Routes                                     uint64 // connections to other servers of the cluster
	Streams, Consumers                         uint64 // that this server keeps
	StoredMessages, StoredBytes                uint64
	APIRequests, APIErrors                     uint64 // of JetStream
	Clustered                                  bool   // JetStream is
	Leader                                     bool   // the cluster has a leader for its metadata, known here
	StreamsLed                                 uint64 // of Streams in a cluster, those that this server leads
}

// Stats returns what the server counts. After Shutdown it is of no meaning.
func (s *Server) Stats() Stats {
	var st Stats
	if v, err := s.srv.Varz(nil); err == nil {
		st.Connections, st.TotalConnections, st.Subscriptions = uint64(v.Connections), v.TotalConnections, uint64(v.Subscriptions)
		st.SlowConsumers, st.Routes = uint64(v.SlowConsumers), uint64(v.Routes)
		st.InMessages, st.InBytes, st.OutMessages, st.OutBytes = uint64(v.InMsgs), uint64(v.InBytes), uint64(v.OutMsgs), uint64(v.OutBytes)
	}
	if js, err := s.srv.Jsz(nil); err == nil {
		st.Streams, st.Consumers, st.StoredMessages, st.StoredBytes = uint64(js.Streams), uint64(js.Consumers), js.Messages, js.Bytes
		st.APIRequests, st.APIErrors, st.StreamsLed = js.API.Total, js.API.Errors, uint64(js.StreamsLeader)
		st.Clustered = js.Meta != nil
		st.Leader = st.Clustered && js.Meta.Leader != ""
	}
	return st
}

// logAdapter gives the server's log to slog, and remembers the first fatal
// message: the server reports that it can't start in no other way.
type logAdapter struct {
	out  *slog.Logger // nil: silent
	once sync.Once
	// fatal is closed once reason is set.
	fatal  chan struct{}
	reason string
}

var _ natsserver.Logger = (*logAdapter)(nil)

func (l *logAdapter) Noticef(format string, v ...any) { l.log(slog.LevelInfo, format, v) }
func (l *logAdapter) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *logAdapter) Errorf(format string, v ...any)  { l.log(slog.LevelError, format, v) }
func (l *logAdapter) Debugf(format string, v ...any)  { l.log(slog.LevelDebug, format, v) }
func (l *logAdapter) Tracef(format string, v ...any)  { l.log(slog.LevelDebug-4, format, v) }

// Fatalf is called where the server's own command would end the process.
func (l *logAdapter) Fatalf(format string, v ...any) {
	l.once.Do(func() {
		l.reason = fmt.Sprintf(format, v...)
		close(l.fatal)
	})
	l.log(slog.LevelError, format, v)
}

func (l *logAdapter) log(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.out == nil || !l.out.Enabled(ctx, level) {
		return
	}
	l.out.Log(ctx, level, fmt.Sprintf(format, v...))
}

// Connect opens a connection inside the process; no listener is needed, nor TLS. Where clients need credentials it
// brings its own, unless opts have some. The caller has to give some only in the accounts of a configuration file or
// of an operator, or where that file has other users for websocket or mqtt: ErrCredentials. It fails with ErrStopped
// after Shutdown. The caller closes the connection.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	if s.stopping.Load() {
		return nil, ErrStopped
	}
	// Last, so that no option of the caller leads to another server.
	opts = append(opts[:len(opts):len(opts)], nats.InProcessServer(s))
	given, err := credentialsGiven(opts)
	if err != nil {
		return nil, err
	}
	a := s.access.Load()
	if !given && a.internal {
		opts = append(opts, s.identity.option())
	}
	nc, err := nats.Connect("", opts...)
	switch {
	case err == nil:
		return nc, nil
	case !given && a.accounts && errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("%w: the configuration file says whom to let in; pass nats options with credentials of one, such as nats.UserInfo: %w", ErrCredentials, err)
	default:
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
}

// InProcessConn opens a raw connection inside the process. With it a Server can be given to nats.InProcessServer;
// where clients need credentials, the caller has to give them then.
func (s *Server) InProcessConn() (net.Conn, error) {
	conn, err := s.srv.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return &greeting{Conn: conn}, nil
}

// ClientURL returns the URL for clients in other processes of this host, without credentials: "nats://...", or
// "tls://..." where TLS is needed. It is empty when the server has no listener.
func (s *Server) ClientURL() string {
	a, ok := s.addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1" // listening everywhere is no address to dial
	}
	scheme := "nats://"
	if s.TLS() {
		scheme = "tls://"
	}
	return scheme + net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// TLS reports whether clients from outside the process have to use TLS.
func (s *Server) TLS() bool { return s.access.Load().tls }

// Auth reports whether clients from outside the process have to say who they are, by credentials or by a certificate.
func (s *Server) Auth() bool { return s.access.Load().auth }

// greeting is the client's end of a connection inside the process. Such a connection has no buffer: a server that
// refuses the client's CONNECT has something to say while the client still writes the PING that comes after it, and
// each would wait for the other until the server gives up, ten seconds later. So the two go out in one piece. A
// client writes them in turn, before it reads or anything else writes.
type greeting struct {
	net.Conn
	held []byte
	done bool
}

func (g *greeting) Write(p []byte) (int, error) {
	switch {
	case g.done:
		return g.Conn.Write(p)
	case g.held == nil && bytes.HasPrefix(p, []byte("CONNECT ")):
		g.held = bytes.Clone(p)
		return len(p), nil
	}
	g.done = true
	if g.held == nil {
		return g.Conn.Write(p)
	}
	n, err := g.Conn.Write(append(g.held, p...))
	return max(n-len(g.held), 0), err
}
