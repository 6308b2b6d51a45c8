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

// endReason returns nil while the manager works, and then why it does not any more.
func (m *Manager) endReason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	return context.Cause(m.life)
}

// callContext returns a context for one call, which ends with ctx and with the manager. done frees it.
func (m *Manager) callContext(ctx context.Context) (_ context.Context, done func()) {
	b := &callCtx{Context: ctx, life: m.life}
	return b, b.free
}

// callCtx is a context that ends with the one it is made of and with the manager's life. That it does
// is seen to when somebody waits for it: most calls find what they want at once.
type callCtx struct {
	context.Context
	life context.Context

	mu      sync.Mutex
	merged  context.Context // of both; nil until somebody waits
	unmerge func()
}

// freedContext is the whole of a bound context that is freed before anybody waited.
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

// current is the whole, or as long as nobody waits the one that it is made of.
func (b *callCtx) current() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged == nil {
		return b.Context
	}
	return b.merged
}

// callContextFor is bind for a call that lasts no longer than limit, if that is above 0.
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

// inSession calls fn with the session that there is now, under a context that ends with
// the manager, too, and gives its error the final form.
func (m *Manager) inSession(caller context.Context, fn func(ctx context.Context, s *session) error) error {
	ctx, done := m.callContext(caller)
	defer done()
	s, err := m.session(ctx)
	if err == nil {
		err = fn(ctx, s)
	}
	return m.explain(caller, err)
}

// both returns a context that ends with either of two. done frees it.
func both(ctx, other context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() {
		unhook()
		cancel(nil)
	}
}

// do calls fn while h is held and releases it. Its error is that of Do.
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

// translate gives an error of the engine, or of the layers under it, this package's name.
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

// failFastLimit is how long to wait for a lease where the acquire is to fail fast.
func (a *attempt) failFastLimit() time.Duration { return max(failFastTimeout, 4*a.m.rtt.Timeout()) }

// explain gives an error of a call its final form. ctx is the caller's own. What
// came of the end of the manager has that as its reason.
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

// followConnection returns what ends the manager when its connection is closed for
// good. Holds stay valid until their deadlines: nobody can get them before.
func (m *Manager) followConnection(closed chan nats.Status) func() {
	return func() {
		defer m.nc.RemoveStatusListener(closed)
		if !m.nc.IsClosed() { // it may have been before there was a listener
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
