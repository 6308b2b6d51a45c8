package fabric

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

const (
	updateTries = 5 // without a lock

	// behindPatience is how often a read may answer with less than was read before until it is taken for
	// a key that has vanished, rather than for a leader that is behind.
	behindPatience = 20
)

// errBeaten says that another update was quicker. Nothing was written, nor will be.
var errBeaten = errors.New("another update was quicker")

// updates counts for Stats, and has the buckets that were looked at.
type updates struct {
	tries, done, fallbacks atomic.Uint64
	buckets                sync.Map // name → *jskv.UserBucket
}

type update struct {
	m           *Manager
	caller, ctx context.Context
	bucket, key string
	id          string
	fn          func(old []byte) ([]byte, error)
}

// Update changes a value in a KV bucket of the user's, on the manager's connection: it reads the value, calls fn, and writes
// fn's result if nothing was written meanwhile, else begins again; it returns the revision. old is nil if there is no value. If
// fn returns nil nothing is written, and if it returns an error that is Update's. fn may be
// called many times, so it must do nothing but compute.
//
// After five updates by others that came first (WithTries) it goes on under the exclusive lock "update/<bucket>/<key>", in which those
// who want the same key queue. Nobody has to hold that lock to write: no write replaces what fn has not seen. Without others
// an Update is one read and one write, and after five lost tries an acquire and a release more.
//
// A result is written at most once, and nil says that it was, also where answers are lost: each message lists, in its
// header Lockfabric-Update, the updates of the key before it, up to 8. ErrUncertain says that it may have been written, or may yet
// be: ctx ended too early, or a write that was no Update, or more than 7 others, came after the try and hides what became of it. So it is also the answer, as a
// rule, where such a write comes between the read and the write. In buckets whose delete markers expire (limit markers) it is the answer
// to any doubt about the first write of a key; in others delete markers must not be purged while updates are under way.
//
// Errors: ErrInvalidOption for a bucket that doesn't exist, whose values expire (max age) or are dropped when it is full, that is a mirror or
// has locks, which is looked at once for each manager, and for a key or a value that it never takes; ErrInvalidName if the lock's
// name is none; fn's; ErrUncertain; those of Acquire; and where nothing was written ctx's, ErrClosed, and ErrUnavailable, for a
// manager with WithFailFast at once.
func (m *Manager) Update(ctx context.Context, bucket, key string, fn func(old []byte) ([]byte, error), opts ...OptimisticOption) (rev uint64, err error) {
	o, err := newOptimistic(updateTries, opts)
	if err != nil {
		return 0, err
	}
	lock := "update/" + bucket + "/" + key
	if _, err := kv.EncodeName(lock); err != nil {
		return 0, err
	}
	if err := m.endReason(); err != nil {
		return 0, err
	}
	bound, done := m.callContext(ctx)
	defer done()
	u := &update{m: m, caller: ctx, ctx: bound, bucket: bucket, key: key, id: nuid.Next(), fn: fn}
	rev, err = u.run(o.tries)
	if !errors.Is(err, errBeaten) {
		return rev, err
	}
	m.updates.fallbacks.Add(1)
	l, err := m.Acquire(ctx, lock)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Release(ctx) }() // if it is lost others come in between, which costs tries only
	return u.run(0)
}

// run tries until it is done, or errBeaten came so many times, 0 = any number.
func (u *update) run(most int) (uint64, error) {
	for n, beaten := 1, 0; ; n++ {
		rev, again, err := u.try()
		if !again {
			return rev, err
		}
		if errors.Is(err, errBeaten) {
			if beaten++; beaten == most {
				return 0, err
			}
			err = nil
		}
		if !u.pause(n) {
			return 0, u.m.explain(u.caller, fmt.Errorf("update of %q in bucket %q: %w", u.key, u.bucket, errors.Join(context.Cause(u.ctx), err)))
		}
	}
}

func (u *update) fail(kind, err error) error {
	return fmt.Errorf("%w: update of %q in bucket %q: %w", kind, u.key, u.bucket, err)
}

func (u *update) pause(n int) bool {
	return pause.For(u.ctx, pause.Around(pause.Doubled(time.Millisecond, n-1, 100*time.Millisecond)))
}

// request returns the context of one request.
func (u *update) request(n int) (context.Context, context.CancelFunc) {
	return context.WithTimeout(u.ctx, pause.Doubled(u.m.rtt.Timeout(), n-1, 5*time.Second))
}

func (u *update) open() (*jskv.UserBucket, error) {
	if b, ok := u.m.updates.buckets.Load(u.bucket); ok {
		return b.(*jskv.UserBucket), nil
	}
	b, err := jskv.OpenUser(u.ctx, u.m.nc, u.m.cfg.buckets.Trip, u.bucket)
	if err == nil {
		u.m.updates.buckets.Store(u.bucket, b)
	}
	return b, err
}

// try reads, calls fn and writes once. If again is set nothing was written, nor will be, and another try may do better.
func (u *update) try() (rev uint64, again bool, err error) {
	b, err := u.open()
	if errors.Is(err, jskv.ErrUnsuitable) {
		return 0, false, u.fail(ErrInvalidOption, err)
	}
	if err != nil {
		return u.unwritten(err)
	}
	ctx, done := u.request(1)
	was, err := b.Get(ctx, u.key)
	done()
	switch {
	case errors.Is(err, jskv.ErrBucketGone):
		u.m.updates.buckets.Delete(u.bucket)
		return 0, false, u.fail(ErrInvalidOption, err)
	case errors.Is(err, kv.ErrRejected):
		return 0, false, u.fail(ErrInvalidOption, err)
	case err != nil:
		return u.unwritten(err)
	}
	value, err := u.fn(was.Value)
	if err != nil {
		return 0, false, err
	}
	if value == nil {
		return was.Revision, false, nil
	}
	u.m.updates.tries.Add(1)
	rev, again, err = u.write(b, value, was)
	if err == nil {
		u.m.updates.done.Add(1)
	}
	return rev, again, err
}

// unwritten is the result of a try that reached nobody.
func (u *update) unwritten(err error) (uint64, bool, error) {
	if u.m.cfg.failFast || u.m.endReason() != nil {
		return 0, false, u.m.explain(u.caller, err)
	}
	return 0, true, err
}

// write writes a value over what was read, once, however often it is sent: over the same revision only, which never
// comes back. What is not acknowledged is looked for.
func (u *update) write(b *jskv.UserBucket, value []byte, was jskv.UserEntry) (_ uint64, again bool, err error) {
	doubt := false // it may have been written, or may yet be
	behind := 0
	for n := 1; ; n++ {
		ctx, done := u.request(n)
		rev, err := b.Replace(ctx, u.key, value, u.id, was)
		done()
		switch {
		case err == nil:
			return rev, false, nil
		case !doubt && errors.Is(err, kv.ErrRejected):
			return 0, false, u.fail(ErrInvalidOption, err)
		case !doubt && errors.Is(err, jskv.ErrNotSent) && !errors.Is(err, jskv.ErrConnectionClosed): // which also ends what was sent
			return u.unwritten(err)
		}
		doubt = true
		ctx, done = u.request(n)
		now, lookErr := b.Get(ctx, u.key)
		done()
		if lookErr == nil {
			switch o, rev := b.Outcome(now, u.id, was.Revision); {
			case o == jskv.UpdateDone:
				return rev, false, nil
			case o == jskv.UpdateBeaten:
				return 0, true, errBeaten
			case o == jskv.UpdateHidden:
				return 0, false, u.fail(ErrUncertain, err)
			case now.Revision < was.Revision:
				behind++
			}
		}
		lost := behind > behindPatience || lookErr != nil && (u.m.cfg.failFast || errors.Is(lookErr, jskv.ErrBucketGone))
		if lost || !u.pause(n) {
			return 0, false, u.fail(ErrUncertain, errors.Join(context.Cause(u.ctx), err, lookErr))
		}
	}
}
