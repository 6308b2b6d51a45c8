package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/deadlock"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Manager acquires locks in one fabric. Make one for each process, or each connection, and share it: all its holds
// with the same timing are kept alive by one heartbeat. It is safe for concurrent use.
type Manager struct {
	cfg   config
	nc    *nats.Conn
	own   bool // nc was made by Connect
	clock clock.Clock
	feed  *feed         // of events; nil without a hook
	rtt   rtt.Estimator // of the connection, for the engine and all leases
	gate  *gate         // that every request passes
	hints *hints

	owners                         owners // units of work by owner
	pins, pinJoins, pinRevocations atomic.Uint64
	keptJoins                      atomic.Uint64

	optimism optimism
	updates  updates

	life context.Context // ends with the manager; its cause says why
	die  context.CancelCauseFunc
	gone chan struct{} // closed when the connection was closed for good

	mu      sync.Mutex
	closed  bool
	current *session
	seen    []uint64     // highest revision of each shard in sessions that have ended
	leaving []*session   // that are being ended
	past    engine.Stats // counters of sessions that have ended

	pastRoads coalesce.ClientStats // likewise

	pastDetection deadlock.Stats // likewise
	opening       ctxMutex       // of opening a session
	ending        sync.WaitGroup
	done          chan struct{} // closed when Close has finished
}

// Connect connects to a NATS server or cluster (a URL, or several with commas)
// and opens the fabric there, creating its buckets on first use.
//
// Errors: ErrInvalidOption, those of the connection, and those of opening the buckets in package kv:
// kv.ErrNoJetStream, kv.ErrServerTooOld, kv.ErrUnsafeConfig, kv.ErrShards, kv.ErrNoBucket, kv.ErrNewerSchema, kv.ErrLimit,
// kv.ErrUnavailable. All but the first are also ErrUnavailable when nobody answered.
func Connect(ctx context.Context, servers string, opts ...Option) (*Manager, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	natsOpts := append([]nats.Option{
		nats.Name("lockfabric " + cfg.buckets.Fabric),
		// A request that waits in the client's buffer until it is connected again
		// would be late by any time; it has to fail instead.
		nats.ReconnectBufSize(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.PingInterval(5 * time.Second),
		// Else nats.go prints what it can't return.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			cfg.logger.Warn("the NATS client reports an error", "error", err)
		}),
	}, cfg.nats...)
	natsOpts = append(natsOpts, func(o *nats.Options) error { // a manager has no use for a connection that gives up
		o.AllowReconnect, o.MaxReconnect = true, -1
		return nil
	})
	if deadline, ok := ctx.Deadline(); ok {
		// The servers are tried one after the other, and each may be silent.
		each := time.Until(deadline) / time.Duration(1+strings.Count(servers, ","))
		natsOpts = append(natsOpts, nats.Timeout(max(min(each, 5*time.Second), time.Millisecond)))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	nc, err := nats.Connect(servers, natsOpts...)
	if _, ok := errors.AsType[*url.Error](err); ok {
		// It quotes the URL, and what is wrong with it may be a part of a password.
		err = errors.New("a URL can't be read: write nats://HOST:PORT, and special characters of a user or password before it as %XX")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: connect to %q: %w", ErrUnavailable, redacted(servers), err)
	}
	m, err := open(ctx, nc, cfg, true)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return m, nil
}

// redacted returns a list of URLs without passwords and tokens. From a text that is
// no URL it cuts all that may be one.
func redacted(servers string) string {
	all := strings.Split(servers, ",")
	for i, s := range all {
		at := strings.LastIndexByte(s, '@')
		if at < 0 {
			continue
		}
		if u, err := url.Parse(strings.TrimSpace(s)); err == nil && u.User != nil {
			if _, ok := u.User.Password(); ok {
				all[i] = u.Redacted()
				continue
			}
		}
		scheme, _, ok := strings.Cut(s, "://")
		if ok {
			scheme += "://"
		} else {
			scheme = ""
		}
		all[i] = scheme + "xxxxx" + s[at:]
	}
	return strings.Join(all, ",")
}

// New opens the fabric on a connection that the caller made and will close, after the manager. Make it with
// nats.MaxReconnects(-1): else it gives up after two minutes without a server, and its manager ends with
// ErrConnectionClosed. Make it with nats.ReconnectBufSize(-1), too: else requests that
// were given up may be delivered after a reconnect, which is safe but makes for
// more work. A warning is logged for each. Errors are those of Connect.
func New(ctx context.Context, nc *nats.Conn, opts ...Option) (*Manager, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if nc == nil {
		return nil, fmt.Errorf("%w: the connection is nil", ErrInvalidOption)
	}
	if nc.IsClosed() {
		return nil, closedForGood(nc)
	}
	if nc.Opts.MaxReconnect >= 0 || !nc.Opts.AllowReconnect {
		cfg.logger.Warn("the connection gives up reconnecting after a while, and its manager ends then; make it with nats.MaxReconnects(-1)")
	}
	if nc.Opts.ReconnectBufSize >= 0 {
		cfg.logger.Warn("the connection buffers requests while it is disconnected; make it with nats.ReconnectBufSize(-1)")
	}
	return open(ctx, nc, cfg, false)
}

func open(ctx context.Context, nc *nats.Conn, cfg config, own bool) (*Manager, error) {
	m := &Manager{cfg: cfg, nc: nc, own: own, opening: newCtxMutex(), clock: clock.Holder(), feed: newFeed(cfg.hook), done: make(chan struct{}), gone: make(chan struct{})}
	m.life, m.die = context.WithCancelCause(context.Background())
	m.gate = newGate(nc, cfg.buckets.Trip, m.rtt.Timeout, m.resendRenewals)
	m.cfg.buckets.Trip = m.gate.trip
	m.hints = newHints(nc, cfg.buckets.Fabric, m)
	m.ending.Go(m.followConnection(nc.StatusChanged(nats.CLOSED)))
	s, err := m.session(ctx)
	if err != nil {
		m.die(ErrClosed)
		m.hints.close()
		m.gate.close()
		return nil, translate(err)
	}
	m.feed.start()
	if cfg.lazy {
		return m, nil
	}
	// Make the shared lease now, so that the first acquire is one write.
	sl, err := s.slot(ctx, cfg.timing)
	if err != nil {
		own := m.own
		m.own = false // the caller of open closes it
		_ = m.Close()
		m.own = own
		return nil, translate(err)
	}
	sl.leave()
	return m, nil
}

// session returns the current session, opening one if there is none. ctx is bound to the manager.
func (m *Manager) session(ctx context.Context) (*session, error) {
	if s, err := m.running(false); s != nil || err != nil {
		return s, err
	}
	if err := m.opening.lock(ctx); err != nil {
		return nil, err
	}
	defer m.opening.unlock()
	if s, err := m.running(true); s != nil || err != nil {
		return s, err
	}
	defer m.ending.Done()
	s, err := openSession(ctx, m)
	m.mu.Lock()
	closed := m.closed
	if err == nil && !closed {
		m.publish(s)
	}
	m.mu.Unlock()
	if err == nil && closed {
		s.end(context.Background(), ErrClosed, false) // it has no leases yet
		err = ErrClosed
	}
	return s, err
}

// running returns the current session, or why there will be none. If there is none
// yet and begin is set, the caller opens one, and Close waits for that.
func (m *Manager) running(begin bool) (*session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if end := context.Cause(m.life); end != nil {
		return nil, end
	}
	if begin && m.current == nil {
		m.ending.Add(1)
	}
	return m.current, nil
}

// look has the current session look at a record that a hint names.
func (m *Manager) look(key string, rev uint64) {
	switch s, _ := m.running(false); {
	case s == nil:
	case rev == 0: // somebody's try was refused
		s.dropIdleIntents(key)
	default:
		s.shard(key).doer.Look(key, rev)
	}
}

// publish makes s the current session, unless it has ended already: whoever ended it
// has had it forgotten before. Called with m.mu held.
func (m *Manager) publish(s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		m.current = s
	}
}

// resendRenewals has the renewals that are under way sent again at once, and returns
// when all of them are answered or ctx ends.
func (m *Manager) resendRenewals(ctx context.Context) {
	s, _ := m.running(false)
	if s == nil {
		return
	}
	var wg sync.WaitGroup
	s.liveLeases.Range(func(_, sl any) bool {
		wg.Go(func() { sl.(*slot).lease.Resend(ctx) })
		return true
	})
	wg.Wait()
}

// forget makes the next acquire open a new session. Until it has ended, the old one still counts.
func (m *Manager) forget(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == s {
		m.current = nil
	}
	before := m.seen
	m.seen = s.seen()
	for i := range min(len(m.seen), len(before)) {
		m.seen[i] = max(m.seen[i], before[i])
	}
	m.leaving = append(m.leaving, s)
}

// ended takes over the counters of a session that counts no more.
func (m *Manager) ended(s *session) {
	st := s.engineStats()
	st.Waiting, st.ExpectedWait = 0, 0
	roads := s.roads()
	roads.Term, roads.Held = 0, 0
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaving = slices.DeleteFunc(m.leaving, func(l *session) bool { return l == s })
	m.past = m.past.Plus(st)
	m.pastDetection = m.pastDetection.Plus(s.detection.stats())
	m.pastRoads = roads.Plus(m.pastRoads)
}

// Bounds of Close, which don't follow the link, since Close promises to be bounded.
// closeTimeout is for everything that it asks the servers for, together. It has room
// for three round trips of a second; what is not done by then ends with the leases.
const (
	closeTimeout = 3 * time.Second
	closeLimit   = closeTimeout + time.Second
)

// Close ends every hold of the manager, hands their locks on, and stops all its
// goroutines. It closes the connection if Connect made it. Closing again does
// nothing. The only error is ErrEventsDropped, for a manager with an event hook.
//
// It takes at most four seconds, whatever the link and the servers do. The handles are invalid first. Then each lease
// is ended, which frees all that stands under it for whoever waits; then the holds are removed from their records, as
// far as the time allows. What can't be told the servers ends with the TTL. Calls that are under way end with
// ErrClosed, and do so within the same time.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		<-m.done
		return nil
	}
	m.closed = true
	s := m.current
	m.mu.Unlock()
	defer close(m.done)
	limit := time.Now().Add(closeLimit)
	m.die(ErrClosed)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if s != nil {
			s.end(ctx, ErrClosed, true)
		}
		m.ending.Wait()
		m.gate.close()
		m.hints.close()
		if m.own {
			m.nc.Close()
		}
	}()
	// The client can block for longer than its contexts last: while it dials it holds its lock.
	select {
	case <-ended:
	case <-time.After(closeLimit):
		m.cfg.logger.Warn("closed before everything has ended; the rest ends when the NATS client lets it")
	}
	return m.feed.close(time.Until(limit))
}
