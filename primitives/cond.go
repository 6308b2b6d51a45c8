package primitives

import (
	"context"
	"fmt"
	"unicode/utf8"

	"github.com/lockfabric/lockfabric/fabric"
)

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

// Wait gives the mutex up and waits for a signal, both in one write: a signal of whoever holds the mutex next
// finds it. It returns when the mutex is held again, by another handle with a new token. l, which has to
// hold the mutex, is invalid from then on: use what Wait returns, which is held whatever the error says,
// unless it is nil.
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
