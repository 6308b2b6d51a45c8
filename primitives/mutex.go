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

// Mutex is a lock that one holds at a time, first come first served. It is safe for concurrent use, and one
// value serves any number of holders.
type Mutex struct {
	m    *fabric.Manager
	name string
	opts []fabric.AcquireOption
}

// NewMutex returns the mutex with this name. The options are those of each acquire.
func NewMutex(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *Mutex {
	return &Mutex{m: m, name: name, opts: slices.Clone(opts)}
}

// Lock waits until the mutex is granted or ctx ends. Its errors are those of [fabric.Manager.Acquire].
func (mu *Mutex) Lock(ctx context.Context) (*Lock, error) {
	return locked(mu.m.Acquire(ctx, mu.name, mu.with(fabric.Exclusive)...))
}

// TryLock locks the mutex if nobody is in the way; else it leaves nothing behind and returns
// [fabric.ErrHeld], as [fabric.Manager.TryAcquire] does.
func (mu *Mutex) TryLock(ctx context.Context) (*Lock, error) {
	return locked(mu.m.TryAcquire(ctx, mu.name, mu.with(fabric.Exclusive)...))
}

// Do locks the mutex, calls fn and unlocks it, also when fn panics. The context given to fn ends when ctx ends
// or the lock is lost. The error is that of Lock, or fn's, joined with [fabric.ErrLost] if the lock
// was lost before fn returned.
func (mu *Mutex) Do(ctx context.Context, fn func(ctx context.Context, l *Lock) error) error {
	return mu.m.Do(ctx, mu.name, func(ctx context.Context, l *fabric.Lock) error { return fn(ctx, &Lock{l}) }, mu.with(fabric.Exclusive)...)
}

// Locker returns a sync.Locker, for code that needs the interface and nothing else: its Lock waits
// through failures until the mutex is granted, and neither of its methods can tell of an error or a loss.
// Lock panics where it could never be granted: for a bad name or option, and when the manager is closed.
// Unlock of one that isn't locked is a run-time error, as of a sync.Mutex.
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

// Upgrade makes the hold exclusive, without letting it go in between. It waits for the others who hold to
// let go, before everybody in the queue; the token is a new one then. Of two read locks that want
// it one gets [fabric.ErrConvertDeadlock] at once and has to release; an update lock ([RWMutex.ULock]) never
// does. Errors, and what is held after them, are those of [fabric.Lock.Convert].
func (l *Lock) Upgrade(ctx context.Context) error { return l.Convert(ctx, fabric.Exclusive) }

// Downgrade makes the hold a read lock and lets readers in beside it. The token stays. Errors are those of
// [fabric.Lock.Convert].
func (l *Lock) Downgrade(ctx context.Context) error { return l.Convert(ctx, fabric.Shared) }

// lockPause is the time between two tries of a Locker.
const lockPause = 100 * time.Millisecond

type locker struct {
	mu *Mutex
	// local keeps goroutines apart also where the mutex was lost and granted again, so that none unlocks
	// the hold of another.
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
		_ = held.Release(context.Background()) // it goes on in the background where it was not confirmed
	}
	l.local.Unlock()
}

// RWMutex is a lock that many readers or one writer hold. It is first come first served: a reader behind a writer
// that waits, waits as well, so that readers can't keep a writer out. It is safe for concurrent use.
type RWMutex struct{ mu Mutex }

// NewRWMutex returns the reader-writer mutex with this name. The options are those of each acquire.
func NewRWMutex(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *RWMutex {
	return &RWMutex{*NewMutex(m, name, opts...)}
}

// RLock waits for a read lock, which is held beside others and beside one update lock. Errors are those
// of [fabric.Manager.Acquire].
func (rw *RWMutex) RLock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Shared) }

// Lock waits for the write lock, beside which nobody holds anything. Errors are those of [fabric.Manager.Acquire].
func (rw *RWMutex) Lock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Exclusive) }

// ULock waits for the update lock: it reads beside readers, is held by one at a time, and can be upgraded to
// the write lock without a deadlock. Errors are those of [fabric.Manager.Acquire].
func (rw *RWMutex) ULock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Update) }

func (rw *RWMutex) lock(ctx context.Context, mode fabric.Mode) (*Lock, error) {
	return locked(rw.mu.m.Acquire(ctx, rw.mu.name, rw.mu.with(mode)...))
}

// MaxCondName bounds the name of a condition, in bytes.
const MaxCondName = 128

// Cond is a condition of a mutex: those who hold the mutex wait for it, and others who hold the mutex
// signal it. A mutex can have several, told apart by their names. Waiters are woken in the order in which
// they began to wait. A Cond is safe for concurrent use.
//
// A signal that meets nobody has no effect, and a waiter can be woken without cause, so wait in a loop, or
// with WaitUntil:
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

// Wait gives the mutex up and waits for a signal, both in one write: a signal of whoever holds the mutex next finds
// it. It returns when the mutex is held again, by another handle with a new token. l, which has to hold the mutex, is
// invalid from then on: use what Wait returns, which is held whatever the error says, unless it is nil.
//
// Errors with a handle: the context's, after which the mutex is waited for all the same, however long that
// takes; [fabric.ErrQueueFull], where the mutex was not given up; and [fabric.ErrInvalidOption] when l
// doesn't hold this mutex exclusively, where the handle is l itself. Errors without: [fabric.ErrLost],
// when the lease was lost before the mutex was held again, and [fabric.ErrClosed].
func (c *Cond) Wait(ctx context.Context, l *Lock) (*Lock, error) {
	if err := c.check(l); err != nil {
		return l, err
	}
	h, _, err := c.mu.m.Await(ctx, c.mu.name, fabric.Claim{Kind: fabric.KindLock, Verb: "wait", Queue: c.name, From: l.Hold, Once: true})
	switch {
	case h != nil:
		return &Lock{&fabric.Lock{Hold: h}}, err
	case l.Err() == nil:
		return l, err // it was not given up
	}
	return nil, err
}

// WaitUntil waits until pred is true. pred is called with the mutex held, first at once and then after each
// wait. It returns the handle that holds the mutex then; errors are pred's, with the handle, and those of Wait.
func (c *Cond) WaitUntil(ctx context.Context, l *Lock, pred func(ctx context.Context) (bool, error)) (*Lock, error) {
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

// Signal wakes the first of those who wait, if there is one: it goes to the end of the mutex's queue, and holds
// the mutex when its turn comes. If it dies before its Wait has returned, the next one is woken instead. l has to
// hold the mutex, and keeps it. The signals of one handle are sent one after the other.
//
// Errors: [fabric.ErrInvalidOption] when l doesn't hold this mutex exclusively, [fabric.ErrLost] and
// [fabric.ErrReleased] when it doesn't any more, [fabric.ErrUncertain] where it could not be found out
// whether one was woken; and those of [fabric.Manager.Inspect].
func (c *Cond) Signal(ctx context.Context, l *Lock) error { return c.signal(ctx, l, false) }

// Broadcast is Signal for all who wait, in their order. Those who begin to wait later are not woken, nor is
// anybody in the place of one that dies.
func (c *Cond) Broadcast(ctx context.Context, l *Lock) error { return c.signal(ctx, l, true) }

func (c *Cond) signal(ctx context.Context, l *Lock, all bool) error {
	if err := c.check(l); err != nil {
		return err
	}
	_, err := l.Post(ctx, fabric.Post{Kind: fabric.KindLock, Verb: "signal", Queue: c.name, All: all})
	return err
}

// check refuses what the record would refuse, before the handle is given up for it.
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
