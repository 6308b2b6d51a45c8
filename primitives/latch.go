package primitives

import (
	"context"

	"github.com/lockfabric/lockfabric/fabric"
)

// Latch makes processes wait until something has happened a number of times. It counts down and opens permanently at 0.
// It is safe for concurrent use.
//
// A count stays when its process dies, and changes the latch exactly once, even if the request is repeated. While the
// latch is closed, the record notes which processes have counted. With a count over 8,192 and as many processes, the
// record can become full, which is [fabric.ErrQueueFull].
//
// An open latch stays open until [Latch.Delete] removes its record, or one day after it opened.
type Latch struct {
	resource
	count int
}

// NewLatch returns the latch with this name, which opens after count counts, at least one. All users must agree on the
// count; others get [fabric.ErrSizeMismatch]. The options apply to each wait.
func NewLatch(m *fabric.Manager, name string, count int, opts ...fabric.AcquireOption) *Latch {
	return &Latch{resource: newResource(m, name, fabric.KindLatch, opts), count: count}
}

// CountDown counts once. See CountDownN.
func (l *Latch) CountDown(ctx context.Context) error { return l.CountDownN(ctx, 1) }

// CountDownN counts n times at once, down to 0. On an open latch it changes nothing and returns nil. Every error except
// [fabric.ErrUncertain] means that nothing was counted. Errors are those of [fabric.Manager.Post].
func (l *Latch) CountDownN(ctx context.Context, n int) error { return l.change(ctx, "count", n) }

// Add increases the count by n. On an open latch the error is [fabric.ErrFinished]. Errors are as in CountDownN.
func (l *Latch) Add(ctx context.Context, n int) error { return l.change(ctx, "add", n) }

func (l *Latch) change(ctx context.Context, verb string, n int) error {
	if err := validCounts(l.count, n); err != nil {
		return err
	}
	return l.based(ctx, func(info fabric.Info) (p fabric.Post, needed bool) {
		return fabric.Post{Verb: verb, N: n, Limit: l.count, Base: info.Revision, Life: info.Life}, true
	})
}

// Wait waits until the latch is open or ctx ends. On an open latch it writes nothing. Errors: [fabric.ErrDeleted] if
// the latch was deleted in the meantime, open or not; and those of [fabric.Manager.Acquire].
func (l *Latch) Wait(ctx context.Context) error {
	if err := validCounts(l.count); err != nil {
		return &fabric.NotAcquiredError{Key: l.name, Cause: err}
	}
	info, err := l.m.Read(ctx, l.name)
	if err != nil {
		return err
	}
	_, _, err = l.await(ctx, fabric.Claim{Verb: "await", Limit: l.count, Life: info.Life})
	return err
}

// Count returns how many counts are missing; 0 means that the latch is open. It makes one read.
func (l *Latch) Count(ctx context.Context) (int, error) {
	info, err := l.read(ctx)
	switch {
	case err != nil:
		return 0, err
	case info.Kind == "":
		return l.count, nil
	}
	return info.Count, nil
}

// Delete removes the latch's record, open or not. While somebody waits, the error is [fabric.ErrHeld]. Without a
// record, Delete returns nil.
func (l *Latch) Delete(ctx context.Context) error { return l.remove(ctx) }
