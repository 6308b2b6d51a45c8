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

// releaseTimeout limits a release. It is longer than the election of a new leader, which takes 4 to 9 s.
const releaseTimeout = 10 * time.Second

// Hold is what was granted: a lock, permits of a semaphore, or a membership. It is a single-use handle: after Release,
// or after a loss, it cannot affect a later holder. It is safe for concurrent use. Every method that reports the state
// checks the clock first. So a process that was stopped for longer than its lease learns of the loss with its first call.
type Hold struct {
	handle
	s         *session
	key, enc  string // name as given by the caller, and encoded
	id, owner string // this and the following are from the record's entry
	permits   int
	meta      map[string]string
	letTurn   bool
	mode      record.Mode // guarded by mu, like token
	token     uint64

	failFast, posted bool
	set              *Set          // the set of which this is a member, or nil
	lock             bool          // a lock, not another kind
	unit             *unit         // the unit that acquired it; nil = none
	intent           *sharedIntent // the shared intent of which this is the entry, or nil
	keep             time.Duration // how long the entry may be kept; below 0 = not at all
	uses             uint64        // for an entry that may be kept: how many holds it had, this one included
	byTurn           uint64        // the ticket, if the hold was granted by a turn

	// Guarded by mu.
	rev           uint64     // revision at which the entry was read
	since         time.Time  // when the caller got the grant; zero before
	releaseBegan  time.Time  // when the release began
	keptState     int        // of an entry that may be kept: keptNot, keptStays or keptReported
	listed        bool       // deadlock detection has published that this is held
	converting    bool       // a Convert is running
	convertCalled bool       // Convert was called at least once
	released      error      // what Release returned
	releasing     bool       // a release has begun; it holds releaseMu until it has finished
	releaseMu     sync.Mutex // locked before mu is unlocked, by the first release only
	posting       ctxMutex   // made when needed; locked while a post is running
	unwatch       func()
}

func newHold(sl *leaseShare, key, enc string, out engine.Outcome, r *request) *Hold {
	e := out.Entry
	h := &Hold{
		s: sl.s, key: key, enc: enc, rev: out.Revision, failFast: r.failFast, keep: r.keep, uses: out.Uses,
		id: e.ID, owner: e.Owner, permits: e.Permits, meta: e.Meta, letTurn: e.LetTurn, mode: e.Mode, token: e.Token,
	}
	h.share, h.of = sl, h
	return h
}

// Key returns the name of the lock or other resource.
func (h *Hold) Key() string { return h.key }

// Token returns the fencing token. It is larger than the token of every earlier conflicting hold of this name. Pass it
// to the resource with every write; see [Guard] and [Register]. It changes only when Convert is granted a mode that
// excludes additional modes.
func (h *Hold) Token() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.token
}

// ID returns the hold's id, which inspection shows.
func (h *Hold) ID() string { return h.id }

// Permits returns the number of granted permits of a semaphore, and 0 for other kinds.
func (h *Hold) Permits() int { return h.permits }

// Owner returns the explicit owner, or the hold's id if there is none.
func (h *Hold) Owner() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cmp.Or(h.owner, h.id)
}

// IsValid reports whether the hold is valid now. It checks the clock and then reads the leader's record, which shows if an
// operator has removed the entry. If no answer comes before ctx ends, the clock alone decides.
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
		case !ok && rev != 0: // rev 0 means absent, which the watch must confirm first
			h.lose(ErrRemoved)
		}
	}
	return h.Err() == nil
}

// Renew renews the hold's lease now, for holds without automatic renewal. It counts against WithMaxRenewals. Errors: a
// *LostError, ErrRenewalsUsedUp, ErrClosed, or ErrUnavailable; the hold then stays valid until ValidUntil.
func (h *Hold) Renew(ctx context.Context) error {
	if err := h.Err(); err != nil {
		return err
	}
	caller := ctx
	ctx, done := h.s.m.callContext(ctx)
	defer done()
	err := h.share.lease.Renew(ctx)
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

// Release ends the hold and hands the lock to the next waiter. The handle is invalid from the moment of the call,
// whatever Release returns. It ignores ctx, since a lock must be released even if the context of the work has ended, and
// takes at most ten seconds.
//
// Errors: ErrLost if the hold was lost before. ErrUnconfirmed if no leader confirmed the release in time; it then
// continues in the background. ErrMember if the hold is a member of a [Set]. A second call returns the same as the first.
// See [WithPostedRelease].
func (h *Hold) Release(context.Context) error {
	if h.set != nil {
		return h.member()
	}
	ended, first, err := h.invalidate()
	switch {
	case !first:
		return err
	case h.keep >= 0 && h.keepEntry(ended.Held):
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

// invalidate begins a release: it makes the handle invalid. If first is true, the caller must send the operation that
// ends the hold and then call releaseDone. Otherwise err is the result of Release.
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

func (h *Hold) releaseDone(ended Event, err error) {
	h.released = err
	h.reportReleased(ended)
	h.share.drop(h)
	h.releaseMu.Unlock()
}

// supersede invalidates the handle because a claim with From replaces the hold in one write. Until this write is known,
// the entry must not look like an orphan, so the hold stays registered; the caller drops it afterwards.
func (h *Hold) supersede() error {
	ended, first, err := h.invalidate()
	if !first {
		return cmp.Or(err, ErrReleased)
	}
	h.reportReleased(ended)
	h.releaseMu.Unlock()
	return nil
}

func (h *Hold) release() error {
	op := releaseOp(h)
	opt := engine.Options{Bound: releaseTimeout, Stop: h.s.m.gone, AtLeast: h.revision(), Held: h.passesTurn(&op)}
	return h.releaseError(engine.Do(context.Background(), h.s.shard(h.enc).doer, h.enc, op, opt))
}

// post sends the release and returns at once; see WithPostedRelease.
func (h *Hold) post(ended Event) {
	q := &engine.Request{Key: h.enc, Op: releaseOp(h), AtLeast: h.revision()}
	q.Held = h.passesTurn(&q.Op)
	late := time.AfterFunc(releaseTimeout, func() { h.s.shard(h.enc).doer.Withdraw(q, context.DeadlineExceeded) }) // the release continues in the background
	q.Done = func(out engine.Outcome, err error) {
		late.Stop()
		h.releaseDone(ended, h.releaseError(out, err))
	}
	h.s.shard(h.enc).doer.Submit(q)
}

// releaseError returns the result of Release for a release with this outcome.
func (h *Hold) releaseError(out engine.Outcome, err error) error {
	switch {
	case err == nil && out.Existed:
		return nil
	case err == nil:
		return &LostError{Key: h.key, Token: h.Token(), Reason: h.whyGone()}
	case errors.Is(h.s.endReason(), ErrBucketGone):
		return &LostError{Key: h.key, Token: h.Token(), Reason: ErrBucketGone} // the entry is gone with the bucket
	case errors.Is(err, engine.ErrStopped):
		return fmt.Errorf("%w: %q: %w", ErrUnconfirmed, h.key, h.s.m.endReason())
	case !errors.Is(err, engine.ErrUnconfirmed):
		// For example because the record is unreadable. Somebody may restore it with the entry in it.
		h.releaseInBackground()
	}
	return fmt.Errorf("%w: %q: %w", ErrUnconfirmed, h.key, translate(err))
}

// releaseInBackground releases the entry when no caller waits for it.
func (h *Hold) releaseInBackground() {
	h.s.shard(h.enc).doer.ReleaseInBackground(h.enc, h.share.id, h.id, h.revision())
}

func releaseOp(h *Hold) record.Op {
	op := record.Op{Verb: record.OpRelease, ID: h.id, Lease: h.share.id}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.since.IsZero() { // otherwise no caller ever had the grant
		op.Hold, op.Token = h.heldFor(), h.token
	}
	return op
}

// passesTurn reports whether a turn can follow this release.
func (h *Hold) passesTurn(op *record.Op) bool {
	return op.Token != 0 && !h.convertCalled && !h.letTurn && h.s.m.cfg.turns
}

func (h *Hold) revision() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rev
}

// whyGone returns why the entry is gone: it was evicted if the lease has ended; otherwise somebody removed it.
func (h *Hold) whyGone() error {
	if !h.share.lease.Valid() {
		return h.share.whyLost()
	}
	return ErrRemoved
}

func (h *Hold) check() {
	if !h.share.lease.Valid() {
		h.lose(h.share.whyLost())
	}
}

// lose ends the hold with a loss, unless it has already ended.
func (h *Hold) lose(reason error) {
	h.mu.Lock()
	if h.err != nil {
		h.mu.Unlock()
		return
	}
	h.end(&LostError{Key: h.key, Token: h.token, Reason: reason})
	mine := !h.since.IsZero() // if the grant was not handed out, no caller has a handle
	ended := h.endEvent(EventLost)
	ended.Reason = reason
	if mine {
		h.s.m.feed.push(ended) // before mu is unlocked, so that no other event comes in between
	}
	h.mu.Unlock()
	if mine {
		h.s.m.logEvent(&ended)
	}
	if errors.Is(reason, ErrRevoked) || errors.Is(reason, ErrRemoved) {
		// A revoked entry blocks others. One that seems to be gone may exist: a deposed leader may have answered.
		h.releaseInBackground()
	}
	h.share.drop(h)
}

// end makes the handle invalid. Called with h.mu held and h.err nil.
func (h *Hold) end(err error) {
	h.finish(err)
	switch {
	case !isLost(err):
	case h.set != nil:
		h.set.end(err)
	case h.intent != nil:
		h.intent.lose(err)
	}
	h.unit.drop(h)
	h.s.detection.changed()
	if h.unwatch != nil {
		h.unwatch() // does not wait for a running call of lose
		h.unwatch = nil
	}
}

// watch makes the engine report when the entry is revoked or removed.
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
