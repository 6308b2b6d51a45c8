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
	plan     atomic.Pointer[plan] // of the start, or of the last reload
	lock     *storeLock
	addr     net.Addr // nil without a listener
	routes   net.Addr // nil without a cluster
	reload   sync.Mutex
	stopping atomic.Bool   // Shutdown was called
	stopped  chan struct{} // closed when everything is released
	stopErr  error         // set before stopped is closed
}

// Start starts a server and returns when JetStream is running and its store is recovered. It fails with
// ErrInvalidOption, ErrStoreInUse (a *StoreInUseError), ErrStartFailed, or ctx's cause. After an error nothing is
// running and the store is free. ctx applies only to the start; to end the server, call Shutdown. The recovery of a
// store can't be interrupted, so Start may return late if ctx ends during it.
func Start(ctx context.Context, opts ...Option) (_ *Server, err error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("embedded: start: %w", context.Cause(ctx))
	}
	// Everything is checked before anything is created on disk.
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
	s.plan.Store(p)
	p.warn(c)
	if err := s.run(ctx, o, &logAdapter{out: c.logger, fatal: make(chan struct{})}); err != nil {
		return nil, err
	}
	s.lock.setOwner(s.ClientURL())
	return s, nil
}

// run starts the server. The server's Start returns when it is ready or has failed. run always waits for it, because
// stopping a server that is still recovering its store can leave files open after the lock is released.
func (s *Server) run(ctx context.Context, o *natsserver.Options, l *logAdapter) error {
	// Protocol traces stay off, because they would write lock owners and payloads into the log.
	s.srv.SetLoggerV2(l, l.out != nil && l.out.Enabled(ctx, slog.LevelDebug), false, false)
	clustered := o.Cluster.Port != 0 // the server later writes its port there
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
	if !limited { // the server uses a part of the disk space that is free now, and no more later
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

// waitRoutes waits for the cluster listener, which the server opens after its Start, without an event.
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

// makeStoreDir creates the directory, or a temporary one if dir is empty.
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

// Addr returns the address of the client listener, or nil if there is none.
func (s *Server) Addr() net.Addr { return s.addr }

// ClusterAddr returns the address for other servers of the cluster, or nil without WithCluster.
func (s *Server) ClusterAddr() net.Addr { return s.routes }

// Name returns the server's name.
func (s *Server) Name() string { return s.srv.Name() }

// StoreDir returns the store directory as an absolute path.
func (s *Server) StoreDir() string { return s.dir }

// NumClients returns the number of client connections, in-process ones included.
func (s *Server) NumClients() int { return s.srv.NumClients() }

// Shutdown stops the server, waits until it has stopped, releases the store, and removes a temporary store. Clients are
// disconnected. It can be called several times and from any goroutine; every call waits for the same end and returns
// the same error. If ctx ends first, Shutdown returns its cause, and the server continues to stop; call Shutdown again
// to wait for the end.
func (s *Server) Shutdown(ctx context.Context) error {
	if !s.stopping.Swap(true) {
		go s.stop()
	}
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

// Kill stops the server and waits without a limit. It is for tests. A leader still hands over its streams.
func (s *Server) Kill() { _ = s.Shutdown(context.Background()) }

// stop runs once. It releases the lock only when the server's last goroutine has ended, so that no goroutine writes to
// the files of the next owner.
func (s *Server) stop() {
	defer close(s.stopped)
	// A running reload is completed first. Later ones find that the server is stopping.
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

// Reload reads the files of the options again: certificates, keys and authorities, and the configuration file with all
// that it includes. New connections use the new settings, and clients whose user was removed are disconnected. The same
// checks apply as at the start. Errors are ErrInvalidOption for invalid files, and ErrReload for a change that needs a
// restart. After an error, nothing has changed.
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
		// The rest of the text contains whole blocks of options, including passwords.
		text, _, _ := strings.Cut(err.Error(), ": old=")
		return fmt.Errorf("%w: %s", ErrReload, text)
	}
	s.plan.Store(p)
	p.warn(s.cfg)
	return nil
}

// Health returns ErrStoreFailed if the server can no longer write its store, for example because the disk is full;
// ErrStoreGone if its files were removed or replaced; and ErrStopped after Shutdown. A single server detects a failure
// of each stream. In a cluster, other servers then lead the stream, and this server detects only the failure of its
// whole store. Health can fail for a moment while a stream is created or deleted; treat it as serious if it lasts for
// seconds.
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

// roomFor fails if the server would refuse every write.
func roomFor(dir string, limit int64, used uint64) error {
	if limit > 0 && used < uint64(limit) {
		return nil
	}
	return fmt.Errorf("%w: the disk of %s is full: the store has %d bytes and may have %d, three quarters of what is free and its own; make room",
		ErrStartFailed, dir, used, limit)
}

// Stats contains counters and sizes of a server. The counters start at 0 when the server starts.
type Stats struct {
	Connections, TotalConnections              uint64 // of clients: now, and since the start
	Subscriptions                              uint64
	SlowConsumers                              uint64 // connections that were closed because they were too slow
	InMessages, InBytes, OutMessages, OutBytes uint64 // of clients and of other servers
	Routes                                     uint64 // connections to other servers of the cluster
	Streams, Consumers                         uint64 // stored on this server
	StoredMessages, StoredBytes                uint64
	APIRequests, APIErrors                     uint64 // of JetStream
	Clustered                                  bool   // JetStream is clustered
	Leader                                     bool   // the cluster has a leader for its metadata, and this server knows it
	StreamsLed                                 uint64 // in a cluster, how many of Streams this server leads
}

// Stats returns the server's counters. After Shutdown they have no meaning.
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

// logAdapter sends the server's log to slog, and keeps the first fatal message, the only report of a failed start.
type logAdapter struct {
	out  *slog.Logger // nil: no log
	once sync.Once
	// fatal is closed when reason is set.
	fatal  chan struct{}
	reason string
}

var _ natsserver.Logger = (*logAdapter)(nil)

func (l *logAdapter) Noticef(format string, v ...any) { l.log(slog.LevelInfo, format, v) }
func (l *logAdapter) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *logAdapter) Errorf(format string, v ...any)  { l.log(slog.LevelError, format, v) }
func (l *logAdapter) Debugf(format string, v ...any)  { l.log(slog.LevelDebug, format, v) }
func (l *logAdapter) Tracef(format string, v ...any)  { l.log(slog.LevelDebug-4, format, v) }

// Fatalf is called where the nats-server command would end the process.
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

// Connect opens a connection inside the process. It needs no listener and no TLS. If clients need credentials, Connect
// uses its own, unless opts contains some. The caller must give credentials only in two cases, otherwise the error is
// ErrCredentials: the accounts are those of a configuration file or an operator, or the file has users for websocket or
// mqtt only. After Shutdown the error is ErrStopped. The caller closes the connection.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	if s.stopping.Load() {
		return nil, ErrStopped
	}
	// This option comes last, so that no option of the caller can lead to another server.
	opts = append(opts[:len(opts):len(opts)], nats.InProcessServer(s))
	given, err := credentialsGiven(opts)
	if err != nil {
		return nil, err
	}
	p := s.plan.Load()
	if !given && p.internal {
		opts = append(opts, s.identity.option())
	}
	nc, err := nats.Connect("", opts...)
	switch {
	case err == nil:
		return nc, nil
	case !given && p.accounts && errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("%w: the configuration file says whom to let in; pass nats options with credentials of one, such as nats.UserInfo: %w", ErrCredentials, err)
	default:
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
}

// InProcessConn opens a raw connection inside the process, so a Server can be passed to nats.InProcessServer. If
// clients need credentials, the caller must then give them.
func (s *Server) InProcessConn() (net.Conn, error) {
	conn, err := s.srv.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return &greeting{Conn: conn}, nil
}

// ClientURL returns the URL for clients in other processes of this host, without credentials: "nats://...", or
// "tls://..." if TLS is required. It is empty if the server has no listener.
func (s *Server) ClientURL() string {
	a, ok := s.addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1" // clients can't connect to the address that means "all interfaces"
	}
	scheme := "nats://"
	if s.TLS() {
		scheme = "tls://"
	}
	return scheme + net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// TLS reports whether clients outside the process must use TLS.
func (s *Server) TLS() bool { return s.plan.Load().tls }

// Auth reports whether clients outside the process must authenticate, with credentials or a certificate.
func (s *Server) Auth() bool { return s.plan.Load().auth }

// greeting is the client's end of a connection inside the process. Such a connection has no buffer. A server that
// refuses the client's CONNECT writes while the client is still writing the PING that follows, so each would wait for
// the other until the server gives up after ten seconds. Therefore greeting sends both in one piece. A client writes
// them one after another, before it reads or anything else writes.
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
