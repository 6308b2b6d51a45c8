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

	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Manager acquires locks in one fabric. Create one for each process or each connection, and share it: one heartbeat
// renews all its holds with the same timing. It is safe for concurrent use.
type Manager struct {
	cfg   config
	nc    *nats.Conn
	own   bool // nc was made by Connect, so Close closes it
	clock clock.Clock
	feed  *feed         // delivers events; nil without a hook
	rtt   rtt.Estimator // of the connection; the engine and all leases use it
	gate  *gate         // all requests pass it
	hints *hints

	owners      owners   // units of work, by owner
	userBuckets sync.Map // buckets of the application that Update has checked: name -> *jskv.UserBucket

	// Counters, see Stats.
	pins, pinJoins, pinRevocations, keptJoins            atomic.Uint64
	optimisticReads, optimisticHits, optimisticFallbacks atomic.Uint64
	updateTries, updatesDone, updateFallbacks            atomic.Uint64

	life context.Context // ends with the manager; its cause is the reason
	die  context.CancelCauseFunc
	gone chan struct{} // closed when the connection is closed permanently

	mu      sync.Mutex
	closed  bool
	current *session
	seen    []uint64   // highest revision of each shard in sessions that have ended
	leaving []*session // sessions that are ending
	past    Stats      // counters of sessions that have ended
	opening ctxMutex   // held while a session is opened
	ending  sync.WaitGroup
	done    chan struct{} // closed when Close has finished
}

// Connect connects to a NATS server or cluster (one URL, or several separated by commas) and opens the fabric there. It
// creates the fabric's buckets on first use.
//
// Errors: ErrInvalidOption, errors of the connection, and errors of opening the buckets, which are in package kv:
// kv.ErrNoJetStream, kv.ErrServerTooOld, kv.ErrUnsafeConfig, kv.ErrShards, kv.ErrNoBucket, kv.ErrNewerSchema,
// kv.ErrLimit, kv.ErrUnavailable. All but ErrInvalidOption are also ErrUnavailable if no server answered.
func Connect(ctx context.Context, servers string, opts ...Option) (*Manager, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	natsOpts := append([]nats.Option{
		nats.Name("lockfabric " + cfg.buckets.Fabric),
		// Otherwise the client buffers requests until it is connected again, and sends them arbitrarily late.
		nats.ReconnectBufSize(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.PingInterval(5 * time.Second),
		// Without a handler, nats.go prints such errors.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			cfg.logger.Warn("the NATS client reports an error", "error", err)
		}),
	}, cfg.nats...)
	natsOpts = append(natsOpts, func(o *nats.Options) error { // the connection must never give up
		o.AllowReconnect, o.MaxReconnect = true, -1
		return nil
	})
	if deadline, ok := ctx.Deadline(); ok {
		// The servers are tried one after another, and each of them may not answer.
		each := time.Until(deadline) / time.Duration(1+strings.Count(servers, ","))
		natsOpts = append(natsOpts, nats.Timeout(max(min(each, 5*time.Second), time.Millisecond)))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	nc, err := nats.Connect(servers, natsOpts...)
	if _, ok := errors.AsType[*url.Error](err); ok {
		// The error quotes the URL, and the invalid part can be a part of a password.
		err = errors.New("a URL can't be read: write nats://HOST:PORT, and special characters of a user or password before it as %XX")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: connect to %q: %w", ErrUnavailable, redacted(servers), err)
	}
	m, err := open(ctx, nc, cfg)
	if err != nil {
		nc.Close()
		return nil, err
	}
	m.own = true
	return m, nil
}

// redacted returns a list of URLs without anything that may be a secret.
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

// New opens the fabric on a connection of the caller, who closes it after the manager. Make it with
// nats.MaxReconnects(-1): otherwise it gives up after two minutes without a server, and its manager ends with
// ErrConnectionClosed. Make it also with nats.ReconnectBufSize(-1): otherwise requests that were given up may be delivered
// after a reconnect, which is safe but causes more work. If one is missing, New logs a warning. Errors are those of
// Connect.
func New(ctx context.Context, nc *nats.Conn, opts ...Option) (*Manager, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if err := checkConnection(nc); err != nil {
		return nil, err
	}
	if nc.Opts.MaxReconnect >= 0 || !nc.Opts.AllowReconnect {
		cfg.logger.Warn("the connection gives up reconnecting after a while, and its manager ends then; make it with nats.MaxReconnects(-1)")
	}
	if nc.Opts.ReconnectBufSize >= 0 {
		cfg.logger.Warn("the connection buffers requests while it is disconnected; make it with nats.ReconnectBufSize(-1)")
	}
	return open(ctx, nc, cfg)
}

func checkConnection(nc *nats.Conn) error {
	switch {
	case nc == nil:
		return fmt.Errorf("%w: the connection is nil", ErrInvalidOption)
	case nc.IsClosed():
		return closedForGood(nc)
	}
	return nil
}

func open(ctx context.Context, nc *nats.Conn, cfg config) (*Manager, error) {
	m := &Manager{cfg: cfg, nc: nc, opening: newCtxMutex(), clock: clock.Holder(), feed: newFeed(cfg.hook), done: make(chan struct{}), gone: make(chan struct{})}
	m.life, m.die = context.WithCancelCause(context.Background())
	m.gate = newGate(nc, cfg.buckets.Request, m.rtt.Timeout, m.resendRenewals)
	m.cfg.buckets.Request = m.gate.request
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
	// Create the shared lease now, so that the first acquire needs only one write.
	sl, err := s.leaseShare(ctx, cfg.timing)
	if err != nil {
		_ = m.Close()
		return nil, translate(err)
	}
	sl.leave()
	return m, nil
}

// session returns the current session, or opens one if there is none. ctx must end with the manager.
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
		s.end(context.Background(), ErrClosed, false) // the session has no leases yet
		err = ErrClosed
	}
	return s, err
}

// running returns the current session, or why there will be none. With begin, the caller must open one if it is nil.
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

// look makes the current session read the record that a hint names.
func (m *Manager) look(key string, rev uint64) {
	switch s, _ := m.running(false); {
	case s == nil:
	case rev == 0: // the try of another process was refused
		s.dropIdleIntents(key)
	default:
		s.shard(key).doer.Look(key, rev)
	}
}

// publish makes s the current session, unless it has ended: forget was called before. Called with m.mu held.
func (m *Manager) publish(s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		m.current = s
	}
}

// resendRenewals sends the unanswered renewals again and waits for the answers.
func (m *Manager) resendRenewals(ctx context.Context) {
	if s, _ := m.running(false); s != nil {
		together(s.leaseShares(), func(sl *leaseShare) { sl.lease.Resend(ctx) })
	}
}

// forget makes the next acquire open a new session. Until s has ended, its counters still count.
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

// ended adds the counters of a session that has ended to those of the manager.
func (m *Manager) ended(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaving = slices.DeleteFunc(m.leaving, func(l *session) bool { return l == s })
	m.past.add(s)
	m.past.Waiting, m.past.ExpectedWait, m.past.CoalescerTerm, m.past.Held, m.past.Serving = 0, 0, 0, 0, 0
}

// Limits of Close, for all its requests to the servers together, and for everything. They do not depend on the link.
const (
	closeTimeout = 3 * time.Second
	closeLimit   = closeTimeout + time.Second
)

// Close ends every hold of the manager, hands its locks to the next waiters, and stops all its goroutines. It closes
// the connection if Connect made it. A second call does nothing and returns nil. The only error is ErrEventsDropped,
// for a manager with an event hook.
//
// Close takes at most four seconds, whatever the link and the servers do: it makes all handles invalid, ends each lease,
// which frees all entries under it, and removes the holds from their records, as far as the time allows. The rest ends
// with the TTL. Running calls end within the same time, with ErrClosed.
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
	// The client can block longer than its contexts allow, because it holds its lock while it dials.
	select {
	case <-ended:
	case <-time.After(closeLimit):
		m.cfg.logger.Warn("closed before everything has ended; the rest ends when the NATS client lets it")
	}
	return m.feed.close(time.Until(limit))
}
