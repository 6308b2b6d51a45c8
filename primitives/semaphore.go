package primitives

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/lockfabric/lockfabric/fabric"
)

// Semaphore has a number of permits, of which each holder has some. It is first come, first served: who
// asks for more than is free waits, and nobody behind passes it. It is safe for concurrent use, and
// one value serves any number of holders.
//
// The permits of a process that dies return with its lease, those that others have got meanwhile are
// never more than the size. Tokens tell holds apart; they don't order those that hold at the same time.
//
// A semaphore that nobody uses has no record and no size: the next one who comes sets it, unless Resize
// has set another one than the first.
type Semaphore struct {
	m    *fabric.Manager
	name string
	size int
	opts []fabric.AcquireOption
}

// NewSemaphore returns the semaphore with this name, of at least one permit. All who use it have to agree on the
// size, until it is resized. The options are those of each acquire.
func NewSemaphore(m *fabric.Manager, name string, size int, opts ...fabric.AcquireOption) *Semaphore {
	return &Semaphore{m: m, name: name, size: size, opts: slices.Clone(opts)}
}

// Acquire waits for one permit. See AcquireN.
func (s *Semaphore) Acquire(ctx context.Context) (*Permit, error) { return s.AcquireN(ctx, 1) }

// AcquireN waits until n permits are granted at once, or ctx ends. More than the size is
// [fabric.ErrTooLarge] at once, and so it is for one that waits when the size becomes less than n. Other errors:
// [fabric.ErrSizeMismatch], and those of [fabric.Manager.Acquire].
func (s *Semaphore) AcquireN(ctx context.Context, n int) (*Permit, error) {
	return s.claim(ctx, "acquire", n)
}

// TryAcquireN takes n permits if they are free and nobody waits for some; else it leaves nothing behind and returns
// [fabric.ErrHeld], as [fabric.Manager.TryAcquire] does.
func (s *Semaphore) TryAcquireN(ctx context.Context, n int) (*Permit, error) {
	return s.claim(ctx, "try", n)
}

// Drain takes all permits that are free at this moment, as one. If there is none, or somebody waits, it is
// [fabric.ErrHeld].
func (s *Semaphore) Drain(ctx context.Context) (*Permit, error) { return s.claim(ctx, "drain", 1) }

func (s *Semaphore) claim(ctx context.Context, verb string, n int) (*Permit, error) {
	if err := validCounts(s.size, n); err != nil {
		return nil, err
	}
	h, err := s.m.Claim(ctx, s.name, fabric.Claim{Kind: fabric.KindSemaphore, Verb: verb, Permits: n, Limit: s.size}, s.opts...)
	if err != nil {
		return nil, err
	}
	return &Permit{Hold: h, left: h.Permits()}, nil
}

// Resize sets the size for all who use the semaphore. More lets waiters in; with less, those who hold keep what they
// have, and nobody is let in until enough came back. The size stays until the next Resize or Delete, and nobody
// has to agree with it any more.
//
// It is [fabric.ErrUncertain] when the outcome is not known, also because somebody else resized after it. Other errors are those
// of [fabric.Manager.Post].
func (s *Semaphore) Resize(ctx context.Context, n int) error {
	if err := validCounts(s.size, n); err != nil {
		return err
	}
	return based(ctx, s.m, s.name, func(info fabric.Info) (p fabric.Post, needed bool) {
		return fabric.Post{Kind: fabric.KindSemaphore, Verb: "resize", N: n, Limit: s.size, Base: info.Sized, Life: info.Life}, true
	})
}

// State tells the size, how many permits are out, who holds and who waits. It is one read.
func (s *Semaphore) State(ctx context.Context) (fabric.Info, error) {
	return read(ctx, s.m, s.name, fabric.KindSemaphore)
}

// Delete removes the semaphore's record, and the size that was set with Resize. While somebody holds or waits it
// is [fabric.ErrHeld]. Without a record it is nil.
func (s *Semaphore) Delete(ctx context.Context) error {
	return remove(ctx, s.m, s.name, fabric.KindSemaphore)
}

// Permit is what was granted: one permit or several. It is a single-use handle, see [fabric.Hold].
type Permit struct {
	*fabric.Hold

	mu   sync.Mutex
	left int
}

// Permits returns how many permits the handle stands for, and 0 once it has ended.
func (p *Permit) Permits() int {
	if p.Err() != nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// ReleaseN gives n permits back and keeps the others. They are not the caller's any more from the moment it is
// called, whatever it returns. With the last one it is Release. As Release does, it works under a context that has ended.
//
// Errors: [fabric.ErrLost] and [fabric.ErrReleased] when the hold has ended; [fabric.ErrUncertain] when no leader confirmed it
// in time, in which case it goes on in the background.
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
