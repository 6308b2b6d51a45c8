package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/record"
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

// granted is what a hold has of its entry in the record.
type granted struct {
	id, owner string
	permits   int
	meta      map[string]string
	letTurn   bool
	mode      record.Mode // guarded by the hold's mu, like token
	token     uint64
}

func grantOf(e *record.Entry) granted {
	return granted{e.ID, e.Owner, e.Permits, e.Meta, e.LetTurn, e.Mode, e.Token}
}

// Hold is what was granted: a lock, permits of a semaphore, a membership. It is a single-use handle: after Release,
// or after a loss, it can do nothing to whoever holds next. It is safe for concurrent use.
//
// Every method that tells about the hold looks at the clock first, so a process
// that was stopped past its lease learns it from the first call after waking.
type Hold struct {
	s    *session
	slot *slot
	key  string // name as given
	enc  string // encoded
	granted
	failFast, posted bool
	set              *Set          // that it is a member of, or nil
	lock             bool          // it is of a lock
	unit             *unit         // that acquired it; nil: it was acquired by itself
	intent           *sharedIntent // that it is the entry of, or nil
	keep             keep          // whether its entry may be kept
	uses             uint64        // holds that the entry was, this one included, where it may be kept
	byTurn           uint64        // the ticket of one that holds by a turn

	mu            sync.Mutex
	rev           uint64          // at which entry was read
	err           error           // nil while held; ErrReleased or a *LostError
	since         time.Time       // when it was handed out; zero before
	releaseBegan  time.Time       // when its release began
	keptState     int             // of the entry of one that may be kept
	listed        bool            // a document about waits says that it is held
	converting    bool            // a Convert is under way
	convertCalled bool            // one was
	released      error           // what Release returned
	releasing     bool            // by Release or the like, which has turn meanwhile
	releaseMu     sync.Mutex      // taken before mu is let go, by one only
	lost          chan struct{}   // made on demand
	ctx           context.Context // made on demand
	posting       chan struct{}   // made on demand; holds one element while a post is under way
	cancel        context.CancelCauseFunc
	unwatch       func()
}

// Key returns the name of what is held.
func (h *Hold) Key() string { return h.key }

// Token returns the fencing token: larger than that of every earlier conflicting hold of this name. Hand it to the
// resource with every write; see [Guard] and [Register]. It changes only when Convert is granted a mode that excludes
// more.
func (h *Hold) Token() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.token
}

// ID returns the hold's id, as inspection shows it.
func (h *Hold) ID() string { return h.id }

// Permits returns how many permits of a semaphore were granted, and 0 for other kinds.
func (h *Hold) Permits() int { return h.permits }

// Owner returns the explicit owner, or the hold's id if there is none.
func (h *Hold) Owner() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cmp.Or(h.owner, h.id)
}

// Lost returns a channel that is closed when the hold is lost: by this process's own clock before anybody else can
// get the lock, and within a second when an operator takes it away. It is not closed by Release.
func (h *Hold) Lost() <-chan struct{} {
	h.check()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == nil {
		if isLost(h.err) {
			return closedChan
		}
		h.lost = make(chan struct{})
	}
	return h.lost
}

// Context returns a context that ends with the hold: its cause is a *LostError,
// which is ErrLost, after a loss, and ErrReleased after Release.
func (h *Hold) Context() context.Context {
	h.check()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx == nil {
		h.ctx, h.cancel = context.WithCancelCause(context.Background())
		h.ctx = &holdContext{h.ctx, h.holding()}
		if h.err != nil {
			h.cancel(h.err)
		}
	}
	return h.ctx
}

// Within returns a context that ends when ctx does or when the hold ends, with the cause of
// [Hold.Context] then. Call done when the work is over.
func (h *Hold) Within(ctx context.Context) (_ context.Context, done func()) {
	return within(ctx, h.Context(), h)
}

// within returns a context for work under these holds that ends with ctx or with held.
func within(ctx, held context.Context, holds ...*Hold) (_ context.Context, done func()) {
	return both(context.WithValue(ctx, unitKey{}, whileHolding(unitIn(ctx), holds...)), held)
}

// Err returns nil while the hold is valid, a *LostError (ErrLost) once it is
// lost, and ErrReleased once it was released. It asks no server.
func (h *Hold) Err() error {
	h.check()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// ValidUntil returns the instant up to which the hold is certainly ours if nothing more is heard from the server.
// Renewal moves it on. It is the zero time when the hold has ended.
func (h *Hold) ValidUntil() time.Time {
	if h.Err() != nil {
		return time.Time{}
	}
	return time.Now().Add(h.slot.lease.Remaining())
}

// IsValid reports whether the hold is valid now. It looks at the clock, then asks the stream's leader whether the
// entry still stands, which shows an operator's interference at once. A leader that does not answer before ctx ends
// changes nothing: the clock decides.
func (h *Hold) IsValid(ctx context.Context) bool {
	if h.Err() != nil {
		return false
	}
	ctx, done := h.s.m.callContext(ctx)
	defer done()
	known := h.revision()
	rec, rev, err := h.s.shard(h.enc).engine.Read(ctx, h.enc)
	if err == nil && (rev == 0 || rev >= known) {
		revoked, ok := rec.Held(h.id, h.byTurn)
		switch {
		case ok && revoked:
			h.lose(ErrRevoked)
		case !ok && rev != 0: // rev 0, absence, is confirmed by the watch first
			h.lose(ErrRemoved)
		}
	}
	return h.Err() == nil
}

// Renew renews the hold's lease now, for holds without automatic renewal. It counts against WithMaxRenewals. Errors:
// a *LostError when the hold is lost, ErrRenewalsUsedUp, or ErrUnavailable, in which case the hold stays valid as
// long as ValidUntil says.
func (h *Hold) Renew(ctx context.Context) error {
	if err := h.Err(); err != nil {
		return err
	}
	caller := ctx
	ctx, done := h.s.m.callContext(ctx)
	defer done()
	err := h.slot.lease.Renew(ctx)
	switch {
	case err == nil:
		return nil
	case h.s.m.endReason() != nil && caller.Err() == nil:
		return h.s.m.endReason()
	case h.Err() != nil:
		return h.Err()
	case errors.Is(err, lease.ErrRenewalsUsedUp):
		return fmt.Errorf("%w: %w", ErrRenewalsUsedUp, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Release ends the hold and hands the lock to the next in the queue. The handle is invalid from the moment Release is
// called, whatever it returns. A lock has to be released whether or not the work's context has ended, so Release does
// not look at ctx; it takes at most ten seconds.
//
// Errors: ErrLost when the hold was lost before, in which case nobody else's
// hold is touched; ErrUnconfirmed when no leader confirmed it in time, in which
// case it goes on in the background. Releasing again returns the same. See [WithPostedRelease].
func (h *Hold) Release(context.Context) error {
	if h.set != nil {
		return h.member()
	}
	ended, first, err := h.invalidate()
	switch {
	case !first:
		return err
	case h.keep.on && h.keepEntry(ended.Held):
		h.s.m.feed.retract()
		h.releaseMu.Unlock()
	case h.posted:
		h.post(ended)
		return nil
	default:
		h.releaseDone(ended, h.release())
	}
	return h.released
}

// finish invalidates the handle and then has it ended, once, by end. Whoever comes later gets what that one got.
func (h *Hold) finish(end func() error) error {
	ended, first, err := h.invalidate()
	if !first {
		return err
	}
	h.releaseDone(ended, end())
	return h.released
}

// invalidate begins to release: the handle is invalid from here on. The caller sends what ends the hold and calls
// finished, if it is the first; else err is what Release returns.
func (h *Hold) invalidate() (ended Event, first bool, err error) {
	h.check()
	h.mu.Lock()
	switch {
	case h.releasing:
		h.mu.Unlock()
		h.releaseMu.Lock()
		defer h.releaseMu.Unlock()
		return ended, false, h.released
	case h.err != nil:
		defer h.mu.Unlock()
		return ended, false, h.err
	}
	h.releasing = true
	h.releaseMu.Lock()
	h.end(ErrReleased)
	ended = h.endEvent(EventReleased)
	h.releaseBegan = ended.Time
	h.s.m.feed.announce()
	h.mu.Unlock()
	return ended, true, nil
}

// releaseDone ends a release with its outcome.
func (h *Hold) releaseDone(ended Event, err error) {
	h.released = err
	h.reportReleased(ended)
	h.slot.drop(h)
	h.releaseMu.Unlock()
}

// supersede invalidates the handle, whose entry goes with the write of what takes its place. Until that
// write is known the entry is this process's own, and not one that came back; the caller drops it then.
func (h *Hold) supersede() error {
	h.check()
	h.mu.Lock()
	if h.err != nil {
		defer h.mu.Unlock()
		return h.err
	}
	h.releasing = true
	h.end(ErrReleased)
	ended := h.endEvent(EventReleased)
	h.s.m.feed.push(ended)
	h.mu.Unlock()
	h.s.m.logEvent(&ended)
	return nil
}

func (h *Hold) release() error {
	op := releaseOp(h)
	opt := engine.Options{Bound: releaseTimeout, Stop: h.s.m.gone, AtLeast: h.revision(), Held: h.passesTurn(&op)}
	return h.releaseError(engine.Do(context.Background(), h.s.shard(h.enc).doer, h.enc, op, opt))
}

// post sends the release and returns: see WithPostedRelease.
func (h *Hold) post(ended Event) {
	q := &engine.Request{Key: h.enc, Op: releaseOp(h), AtLeast: h.revision()}
	q.Held = h.passesTurn(&q.Op)
	late := time.AfterFunc(releaseTimeout, func() { h.s.shard(h.enc).doer.Withdraw(q, context.DeadlineExceeded) }) // it goes on, as owed
	q.Done = func(out engine.Outcome, err error) {
		late.Stop()
		h.releaseDone(ended, h.releaseError(out, err))
	}
	h.s.shard(h.enc).doer.Submit(q)
}

// releaseError is what Release returns after a release that ended with out and err.
func (h *Hold) releaseError(out engine.Outcome, err error) error {
	switch {
	case err == nil && out.Existed:
		return nil
	case err == nil:
		return &LostError{Key: h.key, Token: h.Token(), Reason: h.whyGone()}
	case errors.Is(h.s.endReason(), ErrBucketGone):
		return &LostError{Key: h.key, Token: h.Token(), Reason: ErrBucketGone} // and the entry with it
	case errors.Is(err, engine.ErrStopped):
		return fmt.Errorf("%w: %q: %w", ErrUnconfirmed, h.key, h.s.m.endReason())
	case !errors.Is(err, engine.ErrUnconfirmed):
		// It ended for good, as on a record that can't be read and that somebody may restore with the entry in it.
		h.s.shard(h.enc).doer.ReleaseInBackground(h.enc, h.slot.id, h.id, h.revision())
	}
	return fmt.Errorf("%w: %q: %w", ErrUnconfirmed, h.key, translate(err))
}

func releaseOp(h *Hold) record.Op {
	op := record.Op{Verb: record.OpRelease, ID: h.id, Lease: h.slot.id}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.since.IsZero() { // else nobody ever had it
		op.Hold, op.Token = h.heldFor(), h.token
	}
	return op
}

// passesTurn reports whether a turn can follow the release.
func (h *Hold) passesTurn(op *record.Op) bool {
	return op.Token != 0 && !h.convertCalled && !h.letTurn && !h.s.m.cfg.noTurns
}

// revision is the newest at which the hold was seen in the record.
func (h *Hold) revision() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rev
}

// whyGone is why the entry is not in the record any more: it was evicted, if the
// lease is over, or else somebody removed it.
func (h *Hold) whyGone() error {
	if !h.slot.lease.Valid() {
		return h.slot.whyLost()
	}
	return ErrRemoved
}

// check ends the hold when the clock says that its lease is over.
func (h *Hold) check() {
	if !h.slot.lease.Valid() {
		h.lose(h.slot.whyLost())
	}
}

// lose ends the hold with a loss, unless it has ended already.
func (h *Hold) lose(reason error) {
	h.mu.Lock()
	if h.err != nil {
		h.mu.Unlock()
		return
	}
	token := h.token
	h.end(&LostError{Key: h.key, Token: token, Reason: reason})
	mine := !h.since.IsZero() // nobody has a handle of a grant that is not handed out
	ended := h.endEvent(EventLost)
	ended.Reason = reason
	if mine {
		h.s.m.feed.push(ended) // before the lock is let go, so that nothing comes in between
	}
	h.mu.Unlock()
	if mine {
		h.s.m.logEvent(&ended)
	}
	if errors.Is(reason, ErrRevoked) || errors.Is(reason, ErrRemoved) {
		// A revoked entry blocks until its holder lets go, and one that seems to be gone may stand: the reads that
		// said so can be those of a deposed leader. Nothing may be left under a lease that lives.
		h.s.shard(h.enc).doer.ReleaseInBackground(h.enc, h.slot.id, h.id, h.revision())
	}
	h.slot.drop(h)
}

// end makes the handle invalid. Called with h.mu held and h.err nil.
func (h *Hold) end(err error) {
	h.err = err
	switch {
	case !isLost(err):
	case h.set != nil:
		h.set.lose(err)
	case h.intent != nil:
		h.intent.lose(err)
	}
	if h.lost != nil && isLost(err) {
		close(h.lost)
	}
	if h.cancel != nil {
		h.cancel(err)
	}
	h.unit.drop(h)
	h.s.detection.changed()
	if h.unwatch != nil {
		h.unwatch() // never waits for a call of lose that is under way
		h.unwatch = nil
	}
}

// watch has the engine report when the entry is revoked or removed.
func (h *Hold) watch() {
	h.mu.Lock()
	over, rev := h.err != nil, h.rev
	h.mu.Unlock()
	if over {
		return
	}
	stop := h.s.shard(h.enc).engine.WatchHold(h.enc, h.id, h.byTurn, rev, func(err error) {
		if errors.Is(err, engine.ErrRevoked) {
			h.lose(ErrRevoked)
		} else {
			h.lose(h.whyGone())
		}
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		stop()
		return
	}
	h.unwatch = stop
}

func isLost(err error) bool { return errors.Is(err, ErrLost) }
