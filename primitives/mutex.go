package primitives

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/lockfabric/lockfabric/fabric"
)

// Mutex is a lock with one holder at a time, granted first come, first served. It is safe for concurrent use, and one
// value serves any number of holders.
type Mutex struct{ resource }

// NewMutex returns the mutex with this name. The options apply to each acquire.
func NewMutex(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *Mutex {
	return &Mutex{newResource(m, name, fabric.KindLock, opts)}
}

// Lock waits until the mutex is granted or ctx ends. Its errors are those of [fabric.Manager.Acquire].
func (mu *Mutex) Lock(ctx context.Context) (*Lock, error) {
	return locked(mu.m.Acquire(ctx, mu.name, mu.with(fabric.Exclusive)...))
}

// TryLock locks the mutex if no holder and no waiter is in the way. Otherwise it leaves nothing behind and returns
// [fabric.ErrHeld], as [fabric.Manager.TryAcquire] does.
func (mu *Mutex) TryLock(ctx context.Context) (*Lock, error) {
	return locked(mu.m.TryAcquire(ctx, mu.name, mu.with(fabric.Exclusive)...))
}

// Do locks the mutex, calls fn and unlocks the mutex, also if fn panics; see [fabric.Manager.Do].
func (mu *Mutex) Do(ctx context.Context, fn func(ctx context.Context, l *Lock) error) error {
	if fn == nil {
		return errNilFunction
	}
	return mu.m.Do(ctx, mu.name, func(ctx context.Context, l *fabric.Lock) error { return fn(ctx, &Lock{l}) }, mu.with(fabric.Exclusive)...)
}

// Locker returns a sync.Locker. Its Lock waits through failures until the mutex is granted. Its methods cannot report an
// error or a loss. Lock panics if the mutex can never be granted: for an invalid name or option, and if the manager is
// closed. Unlock of a Locker that is not locked is a run-time error, as with a sync.Mutex.
func (mu *Mutex) Locker() sync.Locker { return &locker{mu: mu} }

func (mu *Mutex) with(mode fabric.Mode) []fabric.AcquireOption {
	return append(slices.Clip(mu.opts), fabric.WithMode(mode))
}

// Lock is a hold of a Mutex or a RWMutex. It is a single-use handle, see [fabric.Hold].
type Lock struct{ *fabric.Lock }

func locked(l *fabric.Lock, err error) (*Lock, error) {
	if err != nil {
		return nil, err
	}
	return &Lock{l}, nil
}

// Upgrade makes the hold exclusive without releasing it, before everybody in the queue. The hold then has a new token.
// If two read locks are upgraded, one gets [fabric.ErrConvertDeadlock] at once and must release; an update lock
// ([RWMutex.ULock]) never gets it. Errors, and the mode after them, are those of [fabric.Lock.Convert].
func (l *Lock) Upgrade(ctx context.Context) error { return l.Convert(ctx, fabric.Exclusive) }

// Downgrade makes the hold a read lock, so that other readers can be granted. The token stays. Errors are those of
// [fabric.Lock.Convert].
func (l *Lock) Downgrade(ctx context.Context) error { return l.Convert(ctx, fabric.Shared) }

// lockPause is the time between two tries of a Locker.
const lockPause = 100 * time.Millisecond

type locker struct {
	mu *Mutex
	// local separates goroutines even if the mutex was lost and granted again.
	local sync.Mutex
	held  *Lock
}

func (l *locker) Lock() {
	l.local.Lock()
	for {
		held, err := l.mu.Lock(context.Background())
		switch {
		case err == nil:
			l.held = held
			return
		case errors.Is(err, fabric.ErrClosed), errors.Is(err, fabric.ErrInvalidName), errors.Is(err, fabric.ErrInvalidOption):
			l.local.Unlock()
			panic(err)
		}
		time.Sleep(lockPause)
	}
}

func (l *locker) Unlock() {
	held := l.held
	l.held = nil
	if held != nil {
		_ = held.Release(context.Background()) // an unconfirmed release continues in the background
	}
	l.local.Unlock()
}

// RWMutex is a lock for many readers or one writer, granted first come, first served: a reader waits behind a writer that
// came before it, so readers can't block a writer forever. It is safe for concurrent use.
type RWMutex struct{ mu Mutex }

// NewRWMutex returns the reader-writer mutex with this name. The options apply to each acquire.
func NewRWMutex(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *RWMutex {
	return &RWMutex{*NewMutex(m, name, opts...)}
}

// RLock waits for a read lock. Other read locks and one update lock can be held at the same time. Errors are those of
// [fabric.Manager.Acquire].
func (rw *RWMutex) RLock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Shared) }

// Lock waits for the write lock. No other lock is held at the same time. Errors are those of [fabric.Manager.Acquire].
func (rw *RWMutex) Lock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Exclusive) }

// ULock waits for the update lock. It is for reading, at the same time as read locks, but only one is held at a time. It
// can be upgraded without a deadlock. Errors are those of [fabric.Manager.Acquire].
func (rw *RWMutex) ULock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Update) }

func (rw *RWMutex) lock(ctx context.Context, mode fabric.Mode) (*Lock, error) {
	return locked(rw.mu.m.Acquire(ctx, rw.mu.name, rw.mu.with(mode)...))
}

// MaxCondName is the maximum length of a condition's name, in bytes.
const MaxCondName = 128

// Cond is a condition of a mutex. Holders of the mutex wait for it, in their order, and other holders signal it. A mutex
// can have several conditions with different names. A Cond is safe for concurrent use.
//
// A signal without a waiter has no effect, and a waiter can be woken without a signal. So wait in a loop, or use
// WaitUntil:
//
//	l, err := mu.Lock(ctx)
//	…
//	l, err = notEmpty.WaitUntil(ctx, l, func(ctx context.Context) (bool, error) {
//		return queueHasItems(ctx)
//	})
type Cond struct {
	mu   *Mutex
	name string
}

// NewCond returns the condition of mu with this name, of at most MaxCondName bytes.
func NewCond(mu *Mutex, name string) *Cond { return &Cond{mu: mu, name: name} }

// Wait releases the mutex and starts to wait for a signal in one write, so no signal is missed. It returns when the mutex
// is held again, with a new handle and a new token. l must hold the mutex, and is invalid from the call on. If the
// returned handle is not nil, it holds the mutex, whatever the error is.
//
// Errors with a handle: the context's (Wait then still waits until the mutex is held again, however long this takes);
// [fabric.ErrQueueFull], and the mutex was not released; and [fabric.ErrInvalidOption] if l does not hold this mutex
// exclusively, and the handle is l itself. Errors without a handle: [fabric.ErrLost], if the lease was lost before the
// mutex was held again, and [fabric.ErrClosed].
func (c *Cond) Wait(ctx context.Context, l *Lock) (*Lock, error) {
	if err := c.check(l); err != nil {
		return l, err
	}
	h, _, err := c.mu.m.Await(ctx, c.mu.name, fabric.Claim{Kind: fabric.KindLock, Verb: "wait", Queue: c.name, From: l.Hold, Once: true})
	switch {
	case h != nil:
		return &Lock{&fabric.Lock{Hold: h}}, err
	case l.Err() == nil:
		return l, err // l was not released
	}
	return nil, err
}

// WaitUntil waits until pred is true. It calls pred with the mutex held, first at once and then after each wait. It
// returns the handle that then holds the mutex. Errors are pred's, with the handle, and those of Wait.
func (c *Cond) WaitUntil(ctx context.Context, l *Lock, pred func(ctx context.Context) (bool, error)) (*Lock, error) {
	if pred == nil {
		return l, errNilFunction
	}
	for {
		if ok, err := pred(ctx); ok || err != nil {
			return l, err
		}
		next, err := c.Wait(ctx, l)
		if err != nil {
			return next, err
		}
		l = next
	}
}

// Signal wakes the first waiter, if there is one. The waiter goes to the end of the mutex's queue. If it dies before its
// Wait has returned, the next one is woken instead. l must hold the mutex, and keeps it. Its signals are sent in order.
//
// Errors: [fabric.ErrInvalidOption] if l does not hold this mutex exclusively; [fabric.ErrLost] and
// [fabric.ErrReleased] if it no longer holds the mutex; [fabric.ErrUncertain] if it could not be found out whether a
// waiter was woken; and those of [fabric.Manager.Inspect].
func (c *Cond) Signal(ctx context.Context, l *Lock) error { return c.signal(ctx, l, false) }

// Broadcast is Signal for all waiters, in their order. Waiters that start later are not woken. If a woken waiter dies,
// no other is woken instead.
func (c *Cond) Broadcast(ctx context.Context, l *Lock) error { return c.signal(ctx, l, true) }

func (c *Cond) signal(ctx context.Context, l *Lock, all bool) error {
	if err := c.check(l); err != nil {
		return err
	}
	_, err := l.Post(ctx, fabric.Post{Kind: fabric.KindLock, Verb: "signal", Queue: c.name, All: all})
	return err
}

// check refuses what the record would refuse, before the handle is released for it.
func (c *Cond) check(l *Lock) error {
	switch {
	case c.name == "" || len(c.name) > MaxCondName || !utf8.ValidString(c.name):
		return fmt.Errorf("%w: condition %q: use 1 to %d bytes of text", fabric.ErrInvalidOption, c.name, MaxCondName)
	case l == nil:
		return fmt.Errorf("%w: condition %q without a lock of mutex %q", fabric.ErrInvalidOption, c.name, c.mu.name)
	case l.Err() != nil:
		return l.Err()
	case l.Key() != c.mu.name || l.Mode() != fabric.Exclusive:
		return fmt.Errorf("%w: condition %q of mutex %q with a lock of %q in mode %s", fabric.ErrInvalidOption, c.name, c.mu.name, l.Key(), l.Mode())
	}
	return nil
}
