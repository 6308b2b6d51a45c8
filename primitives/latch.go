package primitives

import (
	"context"
	"slices"

	"github.com/lockfabric/lockfabric/fabric"
)

// Latch has processes wait until something was done a number of times: it counts down, and opens at 0, for
// good. It is safe for concurrent use.
//
// What was counted stays counted when its process dies. Each count changes the latch once, whatever is
// retried. The record notes who counted while the latch is closed, one place for each process: with a count
// over 8,192 and as many processes it can get full, which is [fabric.ErrQueueFull].
//
// An open latch stays open. Its record goes with [Latch.Delete], or a day after it opened; the name is free for a new one then.
type Latch struct {
	m     *fabric.Manager
	name  string
	count int
	opts  []fabric.AcquireOption
}

// NewLatch returns the latch with this name, which opens after count counts, at least one. All who use it have to agree on
// the number; others get [fabric.ErrSizeMismatch]. The options are those of each wait.
func NewLatch(m *fabric.Manager, name string, count int, opts ...fabric.AcquireOption) *Latch {
	return &Latch{m: m, name: name, count: count, opts: slices.Clone(opts)}
}

// CountDown counts once. See CountDownN.
func (l *Latch) CountDown(ctx context.Context) error { return l.CountDownN(ctx, 1) }

// CountDownN counts n times at once, down to 0. On an open latch it changes nothing, and is no error.
//
// An error says that it did not count, but [fabric.ErrUncertain], which comes beside another cause: it is not known whether it
// did. Errors are those of [fabric.Manager.Post].
func (l *Latch) CountDownN(ctx context.Context, n int) error { return l.change(ctx, "count", n) }

// Add has the latch wait for n counts more. On an open one it is [fabric.ErrFinished]. Errors are as in CountDownN.
func (l *Latch) Add(ctx context.Context, n int) error { return l.change(ctx, "add", n) }

func (l *Latch) change(ctx context.Context, verb string, n int) error {
	if err := validCounts(l.count, n); err != nil {
		return err
	}
	return based(ctx, l.m, l.name, func(info fabric.Info) (p fabric.Post, needed bool) {
		return fabric.Post{Kind: fabric.KindLatch, Verb: verb, N: n, Limit: l.count, Base: info.Revision, Life: info.Life}, true
	})
}

// Wait waits until the latch is open or ctx ends. On an open one it writes nothing. Errors: [fabric.ErrDeleted] when the latch
// was deleted meanwhile, open or not; and those of [fabric.Manager.Acquire].
func (l *Latch) Wait(ctx context.Context) error {
	if err := validCounts(l.count); err != nil {
		return err
	}
	info, err := l.m.Read(ctx, l.name)
	if err != nil {
		return err
	}
	_, _, err = l.m.Await(ctx, l.name, fabric.Claim{Kind: fabric.KindLatch, Verb: "await", Limit: l.count, Life: info.Life}, l.opts...)
	return err
}

// Count returns how many counts are missing, 0 when the latch is open. It is one read.
func (l *Latch) Count(ctx context.Context) (int, error) {
	info, err := read(ctx, l.m, l.name, fabric.KindLatch)
	switch {
	case err != nil:
		return 0, err
	case info.Kind == "":
		return l.count, nil
	}
	return info.Count, nil
}

// Delete removes the latch's record, whether it is open or not. While somebody waits it is [fabric.ErrHeld]. Without a record
// it is nil.
func (l *Latch) Delete(ctx context.Context) error { return remove(ctx, l.m, l.name, fabric.KindLatch) }
