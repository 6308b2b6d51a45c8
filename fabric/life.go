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
	b := &callCtx{Context: ctx, life: m.life}
	return b, b.free
}

// callCtx is a context that ends with its parent and with the manager. The two are merged only when somebody waits for
// the end, because most calls never wait.
type callCtx struct {
	context.Context
	life context.Context

	mu      sync.Mutex
	merged  context.Context // ends with both; nil until somebody waits
	unmerge func()
}

// freedContext is the merged context of a callCtx that was freed before anybody waited.
var freedContext = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (b *callCtx) free() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged == nil {
		b.merged = freedContext
	} else if b.unmerge != nil {
		b.unmerge()
	}
}

func (b *callCtx) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged == nil {
		b.merged, b.unmerge = both(b.Context, b.life)
	}
	return b.merged.Done()
}

func (b *callCtx) Err() error {
	if err := b.current().Err(); err != nil || b.life.Err() == nil {
		return err
	}
	return context.Canceled
}

func (b *callCtx) Value(key any) any { return b.current().Value(key) }

// current returns the merged context, or the parent if nobody waits yet.
func (b *callCtx) current() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged == nil {
		return b.Context
	}
	return b.merged
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

// inSession calls fn with the current session, under a context that also ends with the manager, and returns the final
// form of fn's error.
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

// failFastLimit returns how long an acquire with fail-fast waits for a lease.
func (a *attempt) failFastLimit() time.Duration { return max(failFastTimeout, 4*a.m.rtt.Timeout()) }

// explain returns the final form of a call's error. ctx is the caller's own. If the end of the manager caused the
// error, explain returns the reason of this end.
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

// followConnection returns a function that ends the manager when its connection is closed permanently. Holds stay valid
// until their deadlines, because nobody can get the locks before.
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
