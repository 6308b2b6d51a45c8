package fabric

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// endReason returns nil while the manager works, and then the reason why it does not.
func (m *Manager) endReason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	return context.Cause(m.life)
}

// callContext returns a context for one call. It ends with ctx and with the manager. Call done at the end of the call.
func (m *Manager) callContext(ctx context.Context) (_ context.Context, done func()) {
	return both(ctx, m.life)
}

// callContextFor is callContext with a time limit, if limit is above 0.
func (m *Manager) callContextFor(ctx context.Context, limit time.Duration) (_ context.Context, done func()) {
	ctx, unbind := m.callContext(ctx)
	if limit <= 0 {
		return ctx, unbind
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	return ctx, func() {
		cancel()
		unbind()
	}
}

// inSession calls fn with the current session, under a callContext, and explains its error.
func (m *Manager) inSession(caller context.Context, fn func(ctx context.Context, s *session) error) error {
	ctx, done := m.callContext(caller)
	defer done()
	s, err := m.session(ctx)
	if err == nil {
		err = fn(ctx, s)
	}
	return m.explain(caller, err)
}

// both returns a context that ends when one of the two ends. Call done to free it.
func both(ctx, other context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() {
		unhook()
		cancel(nil)
	}
}

// handle is what a hold and a set have in common: it is valid, and then released or lost.
type handle struct {
	share *leaseShare
	of    interface { // the Hold or the Set
		check() // ends it if the clock says that its lease has ended
		holding() []*Hold
	}

	mu     sync.Mutex
	err    error           // nil while held; then ErrReleased or a *LostError
	lost   chan struct{}   // made when needed
	ctx    context.Context // made when needed
	cancel context.CancelCauseFunc
}

// Lost returns a channel that is closed when the hold, or a member of the set, is lost: by this process's own clock,
// before anybody else can get the lock, or within a second if an operator takes it away. Release does not close it.
func (h *handle) Lost() <-chan struct{} {
	h.of.check()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == nil {
		h.lost = make(chan struct{})
		if isLost(h.err) {
			close(h.lost)
		}
	}
	return h.lost
}

// Context returns a context that ends with the handle: by a *LostError (ErrLost), or ErrReleased after Release.
func (h *handle) Context() context.Context {
	h.of.check()
	holds := h.of.holding()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx == nil {
		h.ctx, h.cancel = context.WithCancelCause(context.Background())
		h.ctx = &holdContext{h.ctx, holds}
		if h.err != nil {
			h.cancel(h.err)
		}
	}
	return h.ctx
}

// Within returns a context that ends when ctx ends or when the handle does; in the second case, its cause is that of
// Context. Call done when the work is finished.
func (h *handle) Within(ctx context.Context) (_ context.Context, done func()) {
	unit := whileHolding(unitIn(ctx), h.of.holding()...)
	return both(context.WithValue(ctx, unitKey{}, unit), h.Context())
}

// Err returns nil while the handle is valid, then a *LostError (ErrLost) or ErrReleased. The Key of a set's LostError
// names the member that was lost first. Err sends no request.
func (h *handle) Err() error {
	h.of.check()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// ValidUntil returns the time until which nobody else can get the lock, even if no server answers any more; zero if the
// handle has ended. Each renewal extends it.
func (h *handle) ValidUntil() time.Time {
	if h.Err() != nil {
		return time.Time{}
	}
	return time.Now().Add(h.share.lease.Remaining())
}

// finish makes the handle invalid. Called with mu held and err nil.
func (h *handle) finish(err error) {
	h.err = err
	if h.lost != nil && isLost(err) {
		close(h.lost)
	}
	if h.cancel != nil {
		h.cancel(err)
	}
}

// do calls fn while h is held, and releases h. Its error is that of Do.
func do[H interface {
	Within(context.Context) (context.Context, func())
	Release(context.Context) error
}](ctx context.Context, h H, fn func(context.Context, H) error) (err error) {
	defer func() {
		if rerr := h.Release(ctx); isLost(rerr) {
			err = errors.Join(err, rerr)
		}
	}()
	ctx, done := h.Within(ctx)
	defer done()
	return fn(ctx, h)
}

// translate converts an error of the engine, or of a lower layer, to an error of this package.
func translate(err error) error {
	switch {
	case errors.Is(err, kv.ErrUnavailable):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, engine.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case errors.Is(err, record.ErrNewerSchema), errors.Is(err, kv.ErrNewerSchema):
		return fmt.Errorf("%w: %w", ErrNewerSchema, err)
	case errors.Is(err, record.ErrMalformed):
		return fmt.Errorf("%w: %w", ErrMalformedRecord, err)
	}
	return err
}

// explain returns the final form of a call's error: the reason of the manager's end, if this caused it.
func (m *Manager) explain(ctx context.Context, err error) error {
	err = translate(err)
	if end := m.endReason(); end != nil && ctx.Err() == nil &&
		(errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) || errors.Is(err, ErrUnavailable)) {
		return end
	}
	return err
}

// closedForGood returns ErrConnectionClosed with the last error of the connection.
func closedForGood(nc *nats.Conn) error {
	if why := nc.LastError(); why != nil {
		return fmt.Errorf("%w: %w", ErrConnectionClosed, why)
	}
	return ErrConnectionClosed
}

// followConnection returns a function that ends the manager when its connection is closed permanently.
func (m *Manager) followConnection(closed chan nats.Status) func() {
	return func() {
		defer m.nc.RemoveStatusListener(closed)
		if !m.nc.IsClosed() { // it may have been closed before the listener existed
			select {
			case <-closed:
			case <-m.life.Done():
				return
			}
		}
		err := closedForGood(m.nc)
		m.cfg.logger.Warn("the connection was closed for good; holds end with their leases", "error", err)
		m.die(err)
		close(m.gone)
	}
}
