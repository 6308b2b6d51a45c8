package primitives

import (
	"context"

	"github.com/lockfabric/lockfabric/fabric"
)

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
