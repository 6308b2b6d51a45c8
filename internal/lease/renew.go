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

// run renews until the lease is lost or its renewals are used up.
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
		if l.byHand.Load() {
			return
		}
		// Returns on success, on loss, or when there is no renewal left.
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

// Renew renews the lease once, now. It tries through any error until ctx ends or the lease is lost, and counts
// against MaxRenewals when it succeeds. The error is ErrRenewalsUsedUp (the lease stays valid until its deadline),
// the reason of the loss, or wraps the context's error: the lease is then as it was, although the renewal may still
// come to pass and count, as a later one will find out, which then renews once more.
func (l *Lease) Renew(ctx context.Context) error { return l.renew(ctx, false) }

// renew is Renew, or with ifDue does nothing when another renewal was faster.
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
		return nil // one by hand, which must not be counted twice
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
	var unanswered silence
	for pauses := newBackoff(l.cfg.TTL); ; {
		err := l.attempt(ctx, &unanswered)
		if over, err := l.renewalOver(began, base, ifDue); over {
			return err
		}
		l.cfg.Logger.Debug("lease not renewed yet", "lease", l.who.ID, "error", err)
		goOn := pauses.wait(ctx, err, l.back)
		// The watch can have shown meanwhile that it was renewed after all.
		if over, err := l.renewalOver(began, base, ifDue); over {
			return err
		}
		if !goOn {
			return fmt.Errorf("lease: renew: %w; last attempt: %w", context.Cause(ctx), err)
		}
	}
}

// Limit starts the limits of a lease that was renewed freely so far: from now on it is renewed by hand only if
// autoRenew is false, and at most maxRenewals times (0 = no limit). What its Config said on either is replaced. A
// renewal that was sent before is none of those. A lease whose goroutine has ended is not renewed by it again.
func (l *Lease) Limit(autoRenew bool, maxRenewals int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg.MaxRenewals, l.renewals = maxRenewals, 0
	for nonce, a := range l.attempts {
		a.free = true
		l.attempts[nonce] = a
	}
	if maxRenewals > 0 {
		l.due = l.ValidUntil() - l.cfg.TTL + l.cfg.Margin + l.cfg.interval() // not early any more
		pause.Wake(l.wake)
	}
	if !autoRenew {
		l.byHand.Store(true)
		l.due = l.cfg.Clock.Now() // the goroutine wakes to find out
		pause.Wake(l.wake)
	}
}

// beginRenewal registers what cancels the renewal when the lease is lost, and returns
// when it began and at which revision.
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

// renewalOver reports whether there is nothing left to do for a renewal, and how it
// ended. An attempt from before it began that turns out to have been committed is not
// what was asked for, unless that was only that the lease is renewed when it is due.
func (l *Lease) renewalOver(began time.Duration, base uint64, ifDue bool) (over bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.checkLocked():
		return true, l.err
	case l.rev > base && l.ValidUntil() >= began+l.cfg.TTL-l.cfg.Margin:
		return true, nil
	case ifDue && (l.byHand.Load() || l.due > l.cfg.Clock.Now()):
		return true, nil
	case l.usedUpLocked():
		return true, ErrRenewalsUsedUp
	}
	return false, nil
}

// attempt is one compare-and-set on the lease's own revision and, if that does not tell, one read.
func (l *Lease) attempt(ctx context.Context, unanswered *silence) error {
	info := l.who
	info.Nonce = nuid.Next()
	info.Seen = l.cfg.Seen()
	value := info.encode()

	l.mu.Lock()
	base := l.rev
	// Before sending, and before anything that can block: an observer cannot see this attempt earlier than that.
	started := time.Now()
	l.attempts[info.Nonce] = try{sent: l.cfg.Clock.Now()}
	actx, cancelWait := context.WithCancel(ctx)
	defer cancelWait()
	l.awaitedNonce, l.cancelWait = info.Nonce, cancelWait
	resends := l.resends
	l.resends = nil
	l.mu.Unlock()
	defer closeAll(resends)

	wctx, cancel := l.bounded(actx, *unanswered)
	rev, err := l.b.Update(wctx, l.who.ID, value, base, gcAfter(l.cfg.TTL))
	cancel()
	unanswered.took(ctx, &l.cfg, started, false, err)
	switch {
	case err == nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.adoptLocked(info.Nonce, rev)
		return nil
	case l.gaveUp(info.Nonce, started, base):
		return err
	case errors.Is(err, jskv.ErrBusy), errors.Is(err, jskv.ErrNotSent), errors.Is(err, kv.ErrRejected):
		return err // not written, and nothing learned about the revision
	case actx.Err() != nil:
		return err // to be sent again at once
	}
	// A conflict can be with an attempt of ours whose answer was lost.
	started = time.Now()
	rctx, cancel := l.bounded(actx, *unanswered)
	defer cancel()
	e, readErr := l.b.Get(rctx, l.who.ID)
	unanswered.took(ctx, &l.cfg, started, true, readErr)
	if readErr != nil {
		return fmt.Errorf("%w; %w", err, readErr)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judgeLocked(e, false)
	return err
}

// gaveUp notes that an attempt was not answered in time. It reports whether a
// watch has shown meanwhile that it, or one before it, renewed the lease.
func (l *Lease) gaveUp(nonce string, started time.Time, base uint64) (renewed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rev > base {
		return true
	}
	a := l.attempts[nonce]
	a.abandoned = started
	l.attempts[nonce], l.awaitedNonce = a, ""
	return false
}

// bounded returns the context of one request of a renewal.
func (l *Lease) bounded(ctx context.Context, unanswered silence) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.cfg.patience(l.ValidUntil()-l.cfg.Clock.Now(), unanswered))
}

// Saw tells the lease what a watch of its key delivered, so that a tombstone by another ends it at once and not at
// its next renewal. Without a watch nothing unsafe happens.
func (l *Lease) Saw(e jskv.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Deleted && e.Revision == 0 {
		// A watch may have started before the key was written. The next renewal knows.
		l.due = l.cfg.Clock.Now()
		pause.Wake(l.wake)
		return
	}
	l.judgeLocked(e, true)
}

// judgeLocked draws the conclusions from an entry of the lease's key that was read, or delivered by the watch.
func (l *Lease) judgeLocked(e jskv.Entry, watched bool) {
	absent := e.Deleted && e.Revision == 0
	switch {
	case l.err != nil:
		return
	case e.Revision < l.rev && !absent:
		return // a stale read
	case e.Revision == l.rev:
		// Nothing is proved: what we sent may still commit. All attempts since
		// are at this revision, so at most one of them ever will.
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
	if watched && !at.abandoned.IsZero() {
		// The link is slower than the answer was waited for, and this is how much.
		l.cfg.RTT.Observe(time.Since(at.abandoned))
	}
	l.adoptLocked(info.Nonce, e.Revision)
}

// adoptLocked notes that the attempt was committed at rev. The lease is extended from when *that attempt* was sent:
// an observer may have seen it a moment later, and counts from there.
func (l *Lease) adoptLocked(nonce string, rev uint64) {
	if rev <= l.rev {
		return // a watch was faster than the answer
	}
	at, ok := l.attempts[nonce]
	l.rev = rev
	// All the others were at the revision before and can not commit any more.
	clear(l.attempts)
	if l.cancelWait != nil && l.awaitedNonce != nonce {
		l.cancelWait() // the next renewal may be due already
	}
	// First the clock: the deadline may have passed while the answer was on its way, and then nothing is revived.
	if !l.checkLocked() || !ok {
		return
	}
	l.validUntil.Store(int64(at.sent + l.cfg.TTL - l.cfg.Margin))
	l.due = at.sent + l.cfg.interval()
	if !at.free {
		l.renewals++
	}
}

// renewing marks the context of a renewal.
type renewing struct{}

// Renewing reports whether a request with this context is part of a renewal, which goes before everything else.
func Renewing(ctx context.Context) bool { return ctx.Value(renewing{}) != nil }

// Resend has a renewal that is under way sent again at once: what was sent on a connection that is gone may be lost,
// or its answer. It returns when the repetition is answered or given up, the renewal has ended, or ctx has. Where no
// renewal is under way there is nothing to do.
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
	pause.Wake(l.back)
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
