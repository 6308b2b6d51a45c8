package fabric

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// releaseTimeout bounds a release, whatever the caller's context says. It is longer than
// electing a new leader takes, 4 to 9 s, and many round trips of any link.
const releaseTimeout = 10 * time.Second

// closedChan is what Lost returns for a lock that is lost before anybody asked.
var closedChan = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Lock is one granted hold. It is a single-use handle: after Release, or after a
// loss, it can do nothing to whoever holds the lock next. It is safe for
// concurrent use.
//
// Every method that tells about the hold looks at the clock first, so a process
// that was stopped past its lease learns it from the first call after waking.
type Lock struct {
	s        *session
	slot     *slot
	key      string       // name as given
	enc      string       // encoded
	entry    record.Entry // its Mode and Token change, and are guarded by mu
	failFast bool

	mu         sync.Mutex
	rev        uint64    // at which entry was read
	err        error     // nil while held; ErrReleased or a *LostError
	since      time.Time // when it was handed out; zero before
	converting bool      // a Convert is under way
	released   error     // what Release returned
	releasing  chan struct{}
	lost       chan struct{}   // made on demand
	ctx        context.Context // made on demand
	cancel     context.CancelCauseFunc
	unwatch    func()
}

// Key returns the lock's name.
func (l *Lock) Key() string { return l.key }

// Token returns the fencing token: larger than that of every earlier
// conflicting hold of this name. Hand it to the resource with every write; see
// [Guard] and [Register]. It changes only when Convert is granted a mode that
// excludes more.
func (l *Lock) Token() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entry.Token
}

// ID returns the hold's id, as inspection shows it.
func (l *Lock) ID() string { return l.entry.ID }

// Owner returns the explicit owner, or the hold's id if there is none.
func (l *Lock) Owner() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entry.OwnerID()
}

// Mode returns the mode held, which Convert changes: a weaker one at once, a
// stronger one when it is granted.
func (l *Lock) Mode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Mode(l.entry.Mode.String())
}

// Lost returns a channel that is closed when the hold is lost: by this process's
// own clock before anybody else can get the lock, and within a second when an
// operator takes it away. It is not closed by Release.
func (l *Lock) Lost() <-chan struct{} {
	l.check()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost == nil {
		if isLost(l.err) {
			return closedChan
		}
		l.lost = make(chan struct{})
	}
	return l.lost
}

// Context returns a context that ends with the hold: its cause is a *LostError,
// which is ErrLost, after a loss, and ErrReleased after Release.
func (l *Lock) Context() context.Context {
	l.check()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancelCause(context.Background())
		if l.err != nil {
			l.cancel(l.err)
		}
	}
	return l.ctx
}

// Err returns nil while the hold is valid, a *LostError (ErrLost) once it is
// lost, and ErrReleased once it was released. It asks no server.
func (l *Lock) Err() error {
	l.check()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// ValidUntil returns the instant up to which the hold is certainly ours if
// nothing more is heard from the server. Renewal moves it on. It is the zero time
// when the hold has ended.
func (l *Lock) ValidUntil() time.Time {
	if l.Err() != nil {
		return time.Time{}
	}
	return time.Now().Add(l.slot.lease.Remaining())
}

// IsValid reports whether the hold is valid now. It looks at the clock, then asks
// the stream's leader whether the entry still stands, which shows an
// operator's interference at once. A leader that does not answer before ctx ends
// changes nothing: the clock decides.
func (l *Lock) IsValid(ctx context.Context) bool {
	if l.Err() != nil {
		return false
	}
	ctx, done := l.s.m.bind(ctx)
	defer done()
	known := l.revision()
	rec, rev, err := l.s.engine.Read(ctx, l.enc)
	if err == nil && (rev == 0 || rev >= known) {
		e, ok := find(rec, l.entry.ID)
		switch {
		case ok && e.Revoked:
			l.lose(ErrRevoked)
		case !ok && rev != 0: // rev 0, absence, is confirmed by the watch first
			l.lose(ErrRemoved)
		}
	}
	return l.Err() == nil
}

func find(rec *record.Record, id string) (record.Entry, bool) {
	if rec == nil {
		return record.Entry{}, false
	}
	return rec.Holder(id)
}

// Renew renews the hold's lease now, for holds without automatic renewal. It
// counts against WithMaxRenewals. Errors: a *LostError when the hold is lost,
// ErrRenewalsUsedUp, or ErrUnavailable, in which case the hold stays valid as
// long as ValidUntil says.
func (l *Lock) Renew(ctx context.Context) error {
	if err := l.Err(); err != nil {
		return err
	}
	caller := ctx
	ctx, done := l.s.m.bind(ctx)
	defer done()
	err := l.slot.lease.Renew(ctx)
	switch {
	case err == nil:
		return nil
	case l.s.m.over() != nil && caller.Err() == nil:
		return l.s.m.over()
	case l.Err() != nil:
		return l.Err()
	case errors.Is(err, lease.ErrRenewalsUsedUp):
		return fmt.Errorf("%w: %w", ErrRenewalsUsedUp, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Release ends the hold and hands the lock to the next in the queue. The handle
// is invalid from the moment Release is called, whatever it returns. A lock has
// to be released whether or not the work's context has ended, so Release does not
// look at ctx; it takes at most ten seconds.
//
// Errors: ErrLost when the hold was lost before, in which case nobody else's
// hold is touched; ErrUnconfirmed when no leader confirmed it in time, in which
// case it goes on in the background. Releasing again returns the same.
func (l *Lock) Release(context.Context) error {
	l.check()
	l.mu.Lock()
	switch {
	case l.releasing != nil:
		l.mu.Unlock()
		<-l.releasing
		return l.released
	case l.err != nil:
		l.mu.Unlock()
		return l.err
	}
	l.releasing = make(chan struct{})
	l.end(ErrReleased)
	ended := l.ending(EventReleased)
	l.s.m.feed.announce()
	l.mu.Unlock()

	l.released = l.release()
	l.noteReleased(ended)
	l.slot.drop(l)
	close(l.releasing)
	return l.released
}

func (l *Lock) release() error {
	out, err := l.s.engine.Do(context.Background(), l.enc, releaseOp(l), engine.Options{Detached: releaseTimeout, Stop: l.s.m.gone, Known: l.revision()})
	switch {
	case err == nil && out.Existed:
		return nil
	case err == nil:
		return &LostError{Key: l.key, Token: l.Token(), Reason: l.whyGone()}
	case errors.Is(l.s.why(), ErrBucketGone):
		return &LostError{Key: l.key, Token: l.Token(), Reason: ErrBucketGone} // and the entry with it
	case errors.Is(err, engine.ErrStopped):
		return fmt.Errorf("%w: lock %q: %w", ErrUnconfirmed, l.key, l.s.m.over())
	case !errors.Is(err, engine.ErrUnconfirmed):
		// It ended for good, as on a record that can't be read and that somebody
		// may restore with the entry in it.
		l.s.engine.Forget(l.enc, l.slot.id, l.entry.ID, l.revision())
	}
	return fmt.Errorf("%w: lock %q: %w", ErrUnconfirmed, l.key, err)
}

func releaseOp(l *Lock) record.Op {
	op := record.Op{Kind: record.KindLock, Verb: record.OpRelease, ID: l.entry.ID, Lease: l.slot.id}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.since.IsZero() {
		op.Hold, op.Token = time.Since(l.since), l.entry.Token
	}
	return op
}

// revision is the newest at which the hold was seen in the record.
func (l *Lock) revision() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rev
}

// whyGone is why the entry is not in the record any more: it was evicted, if the
// lease is over, or else somebody removed it.
func (l *Lock) whyGone() error {
	if !l.slot.lease.Valid() {
		return l.slot.whyLost()
	}
	return ErrRemoved
}

// check ends the hold when the clock says that its lease is over.
func (l *Lock) check() {
	if !l.slot.lease.Valid() {
		l.lose(l.slot.whyLost())
	}
}

// lose ends the hold with a loss, unless it has ended already.
func (l *Lock) lose(reason error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	token := l.entry.Token
	l.end(&LostError{Key: l.key, Token: token, Reason: reason})
	mine := !l.since.IsZero() // nobody has a handle of a grant that is not handed out
	ended := l.ending(EventLost)
	ended.Reason = reason
	if mine {
		l.s.m.feed.push(ended) // before the lock is let go, so that nothing comes in between
	}
	l.mu.Unlock()
	if mine {
		l.s.m.logEvent(&ended)
	}
	if errors.Is(reason, ErrRevoked) || errors.Is(reason, ErrRemoved) {
		// A revoked entry blocks until its holder lets go, and one that seems to be
		// gone may stand: the reads that said so can be those of a deposed leader.
		// Nothing may be left under a lease that lives.
		l.s.engine.Forget(l.enc, l.slot.id, l.entry.ID, l.revision())
	}
	l.slot.drop(l)
}

// end makes the handle invalid. Called with l.mu held and l.err nil.
func (l *Lock) end(err error) {
	l.err = err
	if l.lost != nil && isLost(err) {
		close(l.lost)
	}
	if l.cancel != nil {
		l.cancel(err)
	}
	if l.unwatch != nil {
		l.unwatch() // never waits for a call of lose that is under way
		l.unwatch = nil
	}
}

// watch has the engine report when the entry is revoked or removed.
func (l *Lock) watch() {
	l.mu.Lock()
	over, token := l.err != nil, l.entry.Token
	l.mu.Unlock()
	if over {
		return
	}
	stop := l.s.engine.WatchHold(l.enc, l.entry.ID, token, func(err error) {
		if errors.Is(err, engine.ErrRevoked) {
			l.lose(ErrRevoked)
		} else {
			l.lose(l.whyGone())
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		stop()
		return
	}
	l.unwatch = stop
}

func isLost(err error) bool { return errors.Is(err, ErrLost) }

// lossReason gives the end of a lease this package's name.
func lossReason(err error) error {
	switch {
	case errors.Is(err, lease.ErrRenewalsUsedUp):
		return ErrRenewalsUsedUp
	case errors.Is(err, lease.ErrDead):
		return ErrTakenOver
	case errors.Is(err, lease.ErrClosed):
		return ErrClosed
	}
	return ErrExpired
}

// translate gives an error of the engine, or of the layers under it, this
// package's name.
func translate(err error) error {
	switch {
	case errors.Is(err, engine.ErrUnavailable), errors.Is(err, kv.ErrUnavailable), errors.Is(err, kv.ErrBucketGone),
		errors.Is(err, kv.ErrUnknown), errors.Is(err, kv.ErrNotSent), errors.Is(err, kv.ErrBusy), errors.Is(err, kv.ErrConflict):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, engine.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case errors.Is(err, record.ErrNewerSchema), errors.Is(err, kv.ErrNewerSchema):
		return fmt.Errorf("%w: %w", ErrNewerSchema, err)
	case errors.Is(err, record.ErrMalformed):
		return fmt.Errorf("%w: %w", ErrMalformedRecord, err)
	}
	return err
}
