package fabric

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

const (
	updateTries = 5 // without a lock

	// behindPatience is how often the leader may be behind, until the key is assumed to have vanished.
	behindPatience = 20
)

// errBeaten is returned if another update was faster. Nothing was written and nothing will be.
var errBeaten = errors.New("another update was quicker")

type update struct {
	m           *Manager
	caller, ctx context.Context
	bucket, key string
	id          string
	fn          func(old []byte) ([]byte, error)
}

// Update changes a value in a KV bucket of the application, on the manager's connection. It reads the value, calls fn,
// and writes fn's result if nothing was written in the meantime. Otherwise it starts again. It returns the revision.
// old is nil if there is no value. If fn returns nil, nothing is written. If fn returns an error, Update returns this
// error. fn may be called many times, so it must only compute.
//
// If five other updates were faster (WithTries), Update continues under the exclusive lock "update/<bucket>/<key>". The
// lock is not needed for safety: no write replaces a value that fn has not seen. Without conflicts, an Update costs one
// read and one write; the lock costs one acquire and one release more.
//
// A result is written at most once, even if answers are lost. If the error is nil, it was written. For this, each
// message lists the last updates of the key, up to 8, in its header Lockfabric-Update. ErrUncertain means that the
// result may have been written or may still be: ctx ended too early, or a write that was not an Update, or more than 7
// other updates, hide its outcome. If the bucket's delete markers expire (limit markers), any doubt about the first write
// of a key is ErrUncertain. In other buckets, do not purge delete markers while updates are running.
//
// Errors: ErrInvalidOption for a bucket that does not exist, that is a mirror, that contains locks, or whose values
// expire (max age) or are dropped when it is full (each manager checks a bucket once), and for a key or value that the
// bucket can never store; ErrInvalidName if the name of the lock is invalid; fn's error; ErrUncertain; those of
// Acquire. If nothing was written: ctx's error, ErrClosed, and ErrUnavailable with WithFailFast.
func (m *Manager) Update(ctx context.Context, bucket, key string, fn func(old []byte) ([]byte, error), opts ...OptimisticOption) (rev uint64, err error) {
	if fn == nil {
		return 0, errNilFunction
	}
	most, err := triesOf(opts, updateTries)
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
	rev, err = u.run(int(most))
	if !errors.Is(err, errBeaten) {
		return rev, err
	}
	m.updateFallbacks.Add(1)
	l, err := m.Acquire(ctx, lock)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Release(ctx) }() // if the lock is lost, other updates may be faster, which costs only tries
	return u.run(0)
}

// run tries until the update is done, or until most other updates were faster; 0 = no limit.
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

func (u *update) request(n int) (context.Context, context.CancelFunc) {
	return context.WithTimeout(u.ctx, pause.Doubled(u.m.rtt.Timeout(), n-1, 5*time.Second))
}

func (u *update) open() (*jskv.UserBucket, error) {
	if b, ok := u.m.userBuckets.Load(u.bucket); ok {
		return b.(*jskv.UserBucket), nil
	}
	b, err := jskv.OpenUser(u.ctx, u.m.nc, u.m.cfg.buckets.Request, u.bucket)
	if err == nil {
		u.m.userBuckets.Store(u.bucket, b)
	}
	return b, err
}

// try reads, calls fn and writes once. If again is true, nothing was or will be written, and it can be repeated.
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
		u.m.userBuckets.Delete(u.bucket)
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
	u.m.updateTries.Add(1)
	rev, again, err = u.write(b, value, was)
	if err == nil {
		u.m.updatesDone.Add(1)
	}
	return rev, again, err
}

// unwritten is the result of a try whose request reached no server.
func (u *update) unwritten(err error) (uint64, bool, error) {
	if u.m.cfg.failFast || u.m.endReason() != nil {
		return 0, false, u.m.explain(u.caller, err)
	}
	return 0, true, err
}

// write writes a value over the one that was read. It may send the message several times, but all of them expect the
// same revision, which never comes back, so at most one is stored. Without an acknowledgement it reads the outcome.
func (u *update) write(b *jskv.UserBucket, value []byte, was jskv.UserEntry) (_ uint64, again bool, err error) {
	doubt := false // it may have been written, or may still be
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
		case !doubt && errors.Is(err, jskv.ErrNotSent) && !errors.Is(err, jskv.ErrConnectionClosed): // a closed connection also ends a message that was sent
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
