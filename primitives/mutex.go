package primitives

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

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

// RWMutex is a lock that many readers or one writer hold. It is first come first served: a reader behind a
// writer that waits, waits as well, so that readers can't keep a writer out. It is safe for
// concurrent use.
type RWMutex struct{ mu Mutex }

// NewRWMutex returns the reader-writer mutex with this name. The options are those of each acquire.
func NewRWMutex(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *RWMutex {
	return &RWMutex{*NewMutex(m, name, opts...)}
}

// RLock waits for a read lock, which is held beside others and beside one update lock. Errors are those
// of [fabric.Manager.Acquire].
func (rw *RWMutex) RLock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Shared) }

// Lock waits for the write lock, beside which nobody holds anything. Errors are those of
// [fabric.Manager.Acquire].
func (rw *RWMutex) Lock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Exclusive) }

// ULock waits for the update lock: it reads beside readers, is held by one at a time, and can be upgraded to
// the write lock without a deadlock. Errors are those of [fabric.Manager.Acquire].
func (rw *RWMutex) ULock(ctx context.Context) (*Lock, error) { return rw.lock(ctx, fabric.Update) }

func (rw *RWMutex) lock(ctx context.Context, mode fabric.Mode) (*Lock, error) {
	return locked(rw.mu.m.Acquire(ctx, rw.mu.name, rw.mu.with(mode)...))
}
