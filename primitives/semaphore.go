package primitives

import (
	"context"
	"fmt"
	"sync"

	"github.com/lockfabric/lockfabric/fabric"
)

// Semaphore has a number of permits, which holders share. It serves requests first come, first served: a request for
// more permits than are free waits, and no later request overtakes it. It is safe for concurrent use, and one value
// serves any number of holders.
//
// If a process dies, its permits become free when its lease has ended, so never more permits are in use than the size.
// Tokens identify holds, but do not order holds that exist at the same time. A semaphore that nobody uses has no record;
// the next user sets the size, unless Resize has set another one than the first.
type Semaphore struct {
	resource
	size int
}

// NewSemaphore returns the semaphore with this name, with at least one permit. All users must agree on the size, until
// it is resized. The options apply to each acquire.
func NewSemaphore(m *fabric.Manager, name string, size int, opts ...fabric.AcquireOption) *Semaphore {
	return &Semaphore{resource: newResource(m, name, fabric.KindSemaphore, opts), size: size}
}

// Acquire waits for one permit. See AcquireN.
func (s *Semaphore) Acquire(ctx context.Context) (*Permit, error) { return s.AcquireN(ctx, 1) }

// AcquireN waits until n permits are granted together, or until ctx ends. If n is more than the size, or if the size
// becomes less than n while it waits, the error is [fabric.ErrTooLarge] at once. Other errors:
// [fabric.ErrSizeMismatch], and those of [fabric.Manager.Acquire].
func (s *Semaphore) AcquireN(ctx context.Context, n int) (*Permit, error) {
	return s.permits(ctx, "acquire", n)
}

// TryAcquireN takes n permits if they are free and nobody waits. Otherwise it leaves nothing behind and returns
// [fabric.ErrHeld], as [fabric.Manager.TryAcquire] does.
func (s *Semaphore) TryAcquireN(ctx context.Context, n int) (*Permit, error) {
	return s.permits(ctx, "try", n)
}

// Drain takes all free permits, as one handle. If no permit is free, or somebody waits, the error is [fabric.ErrHeld].
func (s *Semaphore) Drain(ctx context.Context) (*Permit, error) { return s.permits(ctx, "drain", 1) }

func (s *Semaphore) permits(ctx context.Context, verb string, n int) (*Permit, error) {
	if err := validCounts(s.size, n); err != nil {
		return nil, &fabric.NotAcquiredError{Key: s.name, Cause: err}
	}
	h, err := s.claim(ctx, fabric.Claim{Verb: verb, Permits: n, Limit: s.size})
	if err != nil {
		return nil, err
	}
	return &Permit{Hold: h, left: h.Permits()}, nil
}

// Resize sets the size for all users of the semaphore. A larger size grants waiters at once. With a smaller size,
// holders keep their permits, and nothing is granted until enough permits were released. The size stays until the next
// Resize or Delete, and users no longer have to agree with it.
//
// The error is [fabric.ErrUncertain] if the outcome is unknown, for example because somebody else resized after it.
// Other errors are those of [fabric.Manager.Post].
func (s *Semaphore) Resize(ctx context.Context, n int) error {
	if err := validCounts(s.size, n); err != nil {
		return err
	}
	return s.based(ctx, func(info fabric.Info) (p fabric.Post, needed bool) {
		return fabric.Post{Verb: "resize", N: n, Limit: s.size, Base: info.Sized, Life: info.Life}, true
	})
}

// State returns the size, how many permits are in use, the holders and the waiters. It makes one read.
func (s *Semaphore) State(ctx context.Context) (fabric.Info, error) { return s.read(ctx) }

// Delete removes the semaphore's record, and the size that was set with Resize. While somebody holds or waits, the
// error is [fabric.ErrHeld]. Without a record, Delete returns nil.
func (s *Semaphore) Delete(ctx context.Context) error { return s.remove(ctx) }

// Permit is one permit or several, a single-use handle; see [fabric.Hold].
type Permit struct {
	*fabric.Hold

	mu   sync.Mutex
	left int
}

// Permits returns the number of permits of the handle, and 0 if it has ended.
func (p *Permit) Permits() int {
	if p.Err() != nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// ReleaseN releases n permits, which are no longer the caller's from the moment of the call. If no permit is left, it is
// the same as Release. It also works under a context that has ended.
//
// Errors: [fabric.ErrLost] and [fabric.ErrReleased] if the hold has ended; [fabric.ErrUncertain] if no leader confirmed
// it in time. It then continues in the background.
func (p *Permit) ReleaseN(ctx context.Context, n int) error {
	p.mu.Lock()
	if n < 1 || n > p.left {
		defer p.mu.Unlock()
		return fmt.Errorf("%w: %d permits to be released of %d", fabric.ErrInvalidOption, n, p.left)
	}
	p.left -= n
	left := p.left
	p.mu.Unlock()
	if left == 0 {
		return p.Release(ctx)
	}
	ctx, cancel := confirming(ctx)
	defer cancel()
	_, err := p.Post(ctx, fabric.Post{Kind: fabric.KindSemaphore, Verb: "reduce", N: left})
	return err
}
