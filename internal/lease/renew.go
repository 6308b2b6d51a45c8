package lease

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

// run renews until the lease is lost or has no renewals left.
func (l *Lease) run() {
	for {
		for d := l.untilDue(); d > 0; d = l.untilDue() {
			select {
			case <-time.After(d):
			case <-l.wake:
			case <-l.lost:
				return
			}
		}
		if l.manualOnly.Load() {
			return
		}
		// renew returns on success, on loss, or when no renewal is left.
		if err := l.renew(context.Background(), true); err != nil {
			return
		}
	}
}

func (l *Lease) untilDue() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.due - l.cfg.Clock.Now()
}

// Renew renews the lease once, now. It retries after any error until ctx ends or the lease is lost. A success counts
// against MaxRenewals. The error is ErrRenewalsUsedUp (the lease stays valid until its deadline), the reason of the loss,
// or wraps the context's error. In the last case the lease is unchanged, but the renewal may still be committed and
// count. A later Renew will find that out, and then renews once more.
func (l *Lease) Renew(ctx context.Context) error { return l.renew(ctx, false) }

// renew is Renew. With ifDue it does nothing if another renewal was faster.
func (l *Lease) renew(ctx context.Context, ifDue bool) error {
	select {
	case l.renewing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("lease: renew: %w", context.Cause(ctx))
	case <-l.lost:
		return l.Err()
	}
	defer func() { <-l.renewing }()
	if ifDue && l.untilDue() > 0 {
		return nil // Renew was faster, and this one must not count, too
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, renewing{}, true))
	defer cancel()
	began, base, err := l.beginRenewal(cancel)
	if err != nil {
		return err
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.abort = nil
		closeAll(l.resends)
		l.resends = nil
	}()
	var unanswered timeouts
	for pauses := (backoff{ttl: l.cfg.TTL}); ; {
		err := l.tryOnce(ctx, &unanswered)
		if over, err := l.renewalDone(began, base, ifDue); over {
			return err
		}
		l.cfg.Logger.Debug("lease not renewed yet", "lease", l.who.ID, "error", err)
		goOn := pauses.wait(ctx, err, l.retryNow)
		// Meanwhile the watch may have shown that the renewal was committed.
		if over, err := l.renewalDone(began, base, ifDue); over {
			return err
		}
		if !goOn {
			return fmt.Errorf("lease: renew: %w; last attempt: %w", context.Cause(ctx), err)
		}
	}
}

// Limit limits a lease that had no limits so far. From now on it is renewed only by Renew if
// autoRenew is false, and at most maxRenewals times (0 = no limit); this replaces the values of its Config. A
// renewal that was sent before does not count. If the lease's goroutine has ended, Limit does not start it again.
func (l *Lease) Limit(autoRenew bool, maxRenewals int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg.MaxRenewals, l.renewals = maxRenewals, 0
	for nonce, a := range l.attempts {
		a.uncounted = true
		l.attempts[nonce] = a
	}
	if maxRenewals > 0 {
		l.due = l.ValidUntil() - l.cfg.TTL + l.cfg.Margin + l.cfg.interval() // from now on without renewing early
		pause.Wake(l.wake)
	}
	if !autoRenew {
		l.manualOnly.Store(true)
		l.due = l.cfg.Clock.Now() // the goroutine wakes, and ends
		pause.Wake(l.wake)
	}
}

// beginRenewal stores cancel, which a loss of the lease calls, and returns
// the time and the revision at the beginning of the renewal.
func (l *Lease) beginRenewal(cancel context.CancelFunc) (began time.Duration, base uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.checkLocked() {
		return 0, 0, l.err
	}
	if l.usedUpLocked() {
		return 0, 0, ErrRenewalsUsedUp
	}
	l.abort = cancel
	return l.cfg.Clock.Now(), l.rev, nil
}

// renewalDone reports whether a renewal has ended, and how. An older attempt that turns out to be committed does not
// end it, since the caller wants a newer one, unless ifDue only wants the lease to be renewed when due.
func (l *Lease) renewalDone(began time.Duration, base uint64, ifDue bool) (over bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.checkLocked():
		return true, l.err
	case l.rev > base && l.ValidUntil() >= began+l.cfg.TTL-l.cfg.Margin:
		return true, nil
	case ifDue && (l.manualOnly.Load() || l.due > l.cfg.Clock.Now()):
		return true, nil
	case l.usedUpLocked():
		return true, ErrRenewalsUsedUp
	}
	return false, nil
}

// tryOnce makes one compare-and-set on the lease's own revision and, if its outcome is unknown, one read.
func (l *Lease) tryOnce(ctx context.Context, unanswered *timeouts) error {
	info := l.who
	info.Nonce = nuid.Next()
	info.Seen = l.cfg.Seen()
	value := info.encode()

	l.mu.Lock()
	base := l.rev
	// Taken before sending, and before anything that can block: no observer can see this attempt earlier.
	started := time.Now()
	l.attempts[info.Nonce] = renewalAttempt{sent: l.cfg.Clock.Now()}
	actx, cancelWait := context.WithCancel(ctx)
	defer cancelWait()
	l.awaitedNonce, l.cancelWait = info.Nonce, cancelWait
	resends := l.resends
	l.resends = nil
	l.mu.Unlock()
	defer closeAll(resends)

	wctx, cancel := l.withPatience(actx, *unanswered)
	rev, err := l.b.Update(wctx, l.who.ID, value, base, liveTTL(l.cfg.TTL))
	cancel()
	unanswered.note(ctx, &l.cfg, started, false, err)
	switch {
	case err == nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.adoptLocked(info.Nonce, rev)
		return nil
	case l.noteGaveUp(info.Nonce, started, base):
		return err
	case errors.Is(err, jskv.ErrBusy), errors.Is(err, jskv.ErrNotSent), errors.Is(err, kv.ErrRejected):
		return err // not written, and nothing learned about the revision
	case actx.Err() != nil:
		return err // Resend asked to send it again at once
	}
	// The conflict may be with an attempt of this lease whose answer was lost.
	started = time.Now()
	rctx, cancel := l.withPatience(actx, *unanswered)
	defer cancel()
	e, readErr := l.b.Get(rctx, l.who.ID)
	unanswered.note(ctx, &l.cfg, started, true, readErr)
	if readErr != nil {
		return fmt.Errorf("%w; %w", err, readErr)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.applyEntryLocked(e, false)
	return err
}

// noteGaveUp notes that no answer to an attempt came in time. renewed is whether a
// watch has shown meanwhile that this attempt, or an earlier one, renewed the lease.
func (l *Lease) noteGaveUp(nonce string, started time.Time, base uint64) (renewed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rev > base {
		return true
	}
	a := l.attempts[nonce]
	a.gaveUpSent = started
	l.attempts[nonce], l.awaitedNonce = a, ""
	return false
}

// withPatience returns the context of one request of a renewal.
func (l *Lease) withPatience(ctx context.Context, unanswered timeouts) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.cfg.patience(l.ValidUntil()-l.cfg.Clock.Now(), unanswered))
}

// Saw passes an entry from a watch of the key to the lease, so that another process's tombstone ends it at once and not
// only at its next renewal. The lease is safe without a watch, too.
func (l *Lease) Saw(e jskv.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Deleted && e.Revision == 0 {
		// The watch may have started before the key was written. The next renewal finds out.
		l.due = l.cfg.Clock.Now()
		pause.Wake(l.wake)
		return
	}
	l.applyEntryLocked(e, true)
}

// applyEntryLocked updates the lease by an entry of its key that was read, or that the watch delivered.
func (l *Lease) applyEntryLocked(e jskv.Entry, watched bool) {
	absent := e.Deleted && e.Revision == 0
	switch {
	case l.err != nil:
		return
	case e.Revision < l.rev && !absent:
		return // a stale read
	case e.Revision == l.rev:
		// This proves nothing: an attempt may still be committed. All attempts since
		// expect this revision, so at most one of them ever will.
		return
	case e.Deleted:
		l.loseLocked(fmt.Errorf("%w: its key was deleted", ErrDead))
		return
	}
	info, err := Decode(l.who.ID, e.Value)
	switch {
	case err != nil:
		l.loseLocked(fmt.Errorf("%w: its key was overwritten: %w", ErrDead, err))
		return
	case info.Dead:
		l.hasTombstone = true
		l.loseLocked(fmt.Errorf("%w: tombstone by %s: %s", ErrDead, info.By, info.Reason))
		return
	}
	at, ours := l.attempts[info.Nonce]
	if !ours {
		l.loseLocked(fmt.Errorf("%w: its key was overwritten", ErrDead))
		return
	}
	if watched && !at.gaveUpSent.IsZero() {
		// The link is slower than the wait was. This is a sample of it.
		l.cfg.RTT.Observe(time.Since(at.gaveUpSent))
	}
	l.adoptLocked(info.Nonce, e.Revision)
}

// adoptLocked notes that the attempt was committed at rev. The new validity counts from when that attempt was sent: an
// observer may have seen it a moment later, and counts from there.
func (l *Lease) adoptLocked(nonce string, rev uint64) {
	if rev <= l.rev {
		return // a watch was faster than the answer
	}
	at, ok := l.attempts[nonce]
	l.rev = rev
	// All other attempts expect the revision before, and can't be committed any more.
	clear(l.attempts)
	if l.cancelWait != nil && l.awaitedNonce != nonce {
		l.cancelWait() // the next renewal may be due already
	}
	// Check the clock first: if the deadline has passed before the answer came, the lease stays lost.
	if !l.checkLocked() || !ok {
		return
	}
	l.validUntil.Store(int64(at.sent + l.cfg.TTL - l.cfg.Margin))
	l.due = at.sent + l.cfg.interval()
	if !at.uncounted {
		l.renewals++
	}
}

// renewing marks the context of a renewal.
type renewing struct{}

// Renewing reports whether a request with this context is part of a renewal, which has priority over all other requests.
func Renewing(ctx context.Context) bool { return ctx.Value(renewing{}) != nil }

// Resend sends a renewal that is under way again at once, since a lost connection may have lost the request
// or its answer. It returns when the new attempt is answered or given up, the renewal has ended, or ctx has. Without
// a renewal under way it does nothing.
func (l *Lease) Resend(ctx context.Context) {
	l.mu.Lock()
	if l.abort == nil {
		l.mu.Unlock()
		return
	}
	over := make(chan struct{})
	l.resends = append(l.resends, over)
	if l.cancelWait != nil {
		l.cancelWait()
	}
	pause.Wake(l.retryNow)
	l.mu.Unlock()
	select {
	case <-over:
	case <-ctx.Done():
	}
}

func closeAll(list []chan struct{}) {
	for _, c := range list {
		close(c)
	}
}
