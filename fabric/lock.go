package fabric

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Lock is the hold of a lock, with its mode. Like every [Hold] it is a single-use handle.
type Lock struct{ *Hold }

// Mode returns the mode held, which Convert changes: a weaker one at once, a stronger one when it is granted.
func (l *Lock) Mode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return modeOf(l.mode)
}

// Convert changes the mode of the hold without letting it go in between.
//
// To a mode that excludes nobody else than the present one (see the table at [Mode]) it is granted at once and keeps
// its token. The handle is weaker from the moment Convert is called, whatever it returns. As with Release, ctx is
// looked at only before; it takes at most ten seconds, and goes on in the background then.
//
// To any other mode it waits until no other holder is in the way, before everybody in the queue, and nobody new is
// granted meanwhile. Once it is granted the hold has a new, larger token: use that from then on. The mode is exactly
// the one asked for: Shared becomes SharedIntentExclusive to go on reading, not IntentExclusive.
//
// Every error is a *ConvertError (ErrNotConverted), which says what is held then: the old mode, or where the new one
// excludes less in some way, what both have in common. What a request that was given up may still write is taken back
// in the background. Its causes: the context's error; ErrConvertDeadlock at once, when another holder waits for this
// one to give way; ErrConverting while another Convert of this handle is under way; ErrLost or ErrReleased when the
// hold ends before; ErrInvalidOption; ErrUnconfirmed; ErrMalformedRecord; ErrNewerSchema; kv.ErrFull; kv.ErrRejected;
// and ErrUnavailable with WithFailFast.
func (l *Lock) Convert(ctx context.Context, mode Mode) error {
	if l.set != nil {
		return l.set.Convert(ctx, l.key, mode)
	}
	return l.convertAlone(ctx, mode)
}

func (l *Lock) convertAlone(ctx context.Context, mode Mode) error {
	op, err := l.beginConvert(ctx, mode)
	if err == nil {
		bound, done := l.s.m.callContext(ctx)
		c := &conversion{l: l, to: mode, began: time.Now()}
		if u := unitIn(ctx); u != nil || l.unit != nil {
			c.unit = whileHolding(u, l.Hold)
		}
		err = l.convert(bound, op, c)
		done()
		if err != nil {
			err = l.s.m.explain(ctx, err)
		}
		l.mu.Lock()
		l.converting = false
		l.mu.Unlock()
	}
	if err == nil {
		return nil
	}
	failed := &ConvertError{Key: l.key, To: mode, Cause: err}
	if l.Err() == nil {
		failed.Held = l.Mode()
	}
	return failed
}

// beginConvert makes the handle as weak as it may be until the outcome is known.
func (l *Lock) beginConvert(ctx context.Context, mode Mode) (record.Op, error) {
	to, err := mode.record()
	if err != nil {
		return record.Op{}, err
	}
	l.check()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return record.Op{}, l.err
	case l.converting:
		return record.Op{}, ErrConverting
	case ctx.Err() != nil:
		return record.Op{}, ctx.Err()
	}
	op := record.Op{
		Kind: record.KindLock, Verb: record.OpConvert, ID: l.slot.lease.NextOp(), Lease: l.slot.id, Holder: l.id, From: l.mode, Mode: to,
	}
	l.converting, l.convertCalled = true, true
	// Before anything is sent: as soon as it is, others may be let in.
	l.mode = record.Meet(op.From, to)
	return op, nil
}

func (l *Lock) convert(ctx context.Context, op record.Op, c *conversion) (err error) {
	defer func() {
		if err != nil {
			c.reportWithdrawn(err)
		}
	}()
	known := l.revision()
	w := l.s.waiting(c.unit, l.slot, l.enc, &op)
	defer func() { _ = w.end(nil) }()
	opt := engine.Options{FailFast: l.failFast, Stop: l.Context().Done(), Queued: w.queued(c.whenQueued()), AtLeast: known}
	weaker := op.From.Covers(op.Mode)
	if weaker {
		opt = engine.Options{Bound: releaseTimeout, AtLeast: known}
	}
	for n := 1; ; n++ {
		out, err := engine.Do(ctx, l.s.shard(l.enc).doer, l.enc, op, opt)
		if err == nil {
			return l.converted(op, out, weaker, c)
		}
		if v := w.stopped(err); v != nil {
			return l.stopConverting(op, c, v)
		}
		if !errors.Is(err, engine.ErrGone) {
			var refused *engine.RefusedError
			switch isRefused := errors.As(err, &refused); {
			case isRefused && refused.Verdict == record.ConvertDeadlock: // the handle is as before
			case n > 1 && !isRefused, !weaker:
				// The engine knows of this attempt, not of those before. And the handle counts on
				// less since it asked, also where nothing was written: the record follows.
				l.s.shard(l.enc).doer.UndoInBackground(l.enc, op, known)
			}
			return l.notConverted(ctx, op, err)
		}
		// The hold is gone, or was revoked, or the reads that said so are those of a
		// deposed leader. In the last case the same operation goes on as it was.
		if !l.IsValid(ctx) {
			return l.Err()
		}
		if !pauseBeforeRetry(ctx, n) {
			l.s.shard(l.enc).doer.UndoInBackground(l.enc, op, known)
			if weaker {
				return fmt.Errorf("%w: %w", ErrUnconfirmed, ctx.Err())
			}
			return ctx.Err()
		}
	}
}

// stopConverting gives the handle back what it had, once it is certain that the conversion waits no more.
func (l *Lock) stopConverting(op record.Op, c *conversion, why error) error {
	stop := record.Op{Kind: record.KindLock, Verb: record.OpStopWaiting, ID: op.ID, Lease: op.Lease}
	out, err := engine.Do(context.Background(), l.s.shard(l.enc).doer, l.enc, stop, engine.Options{Bound: releaseTimeout, AtLeast: l.revision()})
	switch {
	case err != nil:
		l.s.shard(l.enc).engine.UndoInBackground(l.enc, op, l.revision())
	case out.Record.Granted(op.ID, op.Holder):
		now, _ := out.Record.Holder(op.Holder)
		out.Entry = &now
		return l.converted(op, out, false, c)
	default:
		l.mu.Lock()
		if l.err == nil {
			l.mode = op.From
		}
		l.mu.Unlock()
	}
	return why
}

// converted takes over what was acknowledged.
func (l *Lock) converted(op record.Op, out engine.Outcome, weaker bool, c *conversion) error {
	if out.Entry.Revoked {
		l.lose(ErrRevoked)
	}
	l.check() // the lease may have ended while the conversion waited
	l.mu.Lock()
	if err := l.err; err != nil {
		l.mu.Unlock()
		return err
	}
	l.rev = max(l.rev, out.Revision)
	if !weaker {
		l.mode, l.token = op.Mode, out.Entry.Token
	}
	ev := l.event(EventConverted)
	ev.Queued, ev.Waited = wasQueued(c.queued), ev.Time.Sub(c.began)
	if weaker {
		ev.Time = c.began // others may have been let in before this was confirmed
	}
	l.s.m.feed.push(ev)
	l.mu.Unlock()
	l.s.m.logEvent(&ev)
	return nil
}

// notConverted gives a failure its final form.
func (l *Lock) notConverted(ctx context.Context, op record.Op, err error) error {
	var refused *engine.RefusedError
	switch {
	case l.Err() != nil:
		return l.Err()
	case errors.As(err, &refused):
		return l.convertRefused(op, refused)
	case errors.Is(err, engine.ErrUnconfirmed):
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("%w (%w)", ctx.Err(), translate(err))
	}
	return translate(err)
}

func (l *Lock) convertRefused(op record.Op, refused *engine.RefusedError) error {
	switch refused.Verdict {
	case record.ConvertRevoked:
		l.lose(ErrRevoked)
		return l.Err()
	case record.ConvertDeadlock:
		// A refusal acknowledges that nothing has changed.
		l.mu.Lock()
		if l.err == nil {
			l.mode = op.From
		}
		l.mu.Unlock()
		b := refused.Blocker
		return fmt.Errorf("%w: %s holds %s and waits to convert to %s", ErrConvertDeadlock, b.OwnerID(), b.Mode, b.Convert.Mode)
	case record.ConvertPending:
		return ErrConverting
	case record.WrongKind:
		return kindMismatch(l.key, refused.Record, record.KindLock)
	}
	return fmt.Errorf("fabric: conversion refused: %v", refused.Verdict)
}

// Mode says what else may be held beside a hold:
//
//	                        IS   IX   S    SIX  U    X
//	IntentShared            yes  yes  yes  yes  yes  -
//	IntentExclusive         yes  yes  -    -    -    -
//	Shared                  yes  -    yes  -    yes  -
//	SharedIntentExclusive   yes  -    -    -    -    -
//	Update                  yes  -    yes  -    -    -
//	Exclusive               -    -    -    -    -    -
//
// The intent modes are for a resource that contains others: whoever locks a part announces it on the whole first, so
// that a lock on the whole and locks on its parts keep each other out without looking at every part. They say nothing
// about the parts; those have locks of their own.
//
// [Lock.Convert] goes from any mode to any other. It never has to wait downwards: from X to SIX to U or IX; from U to
// S; from S or IX to IS; and further along these.
type Mode string

// The modes that Acquire grants and Convert changes to.
const (
	// IntentShared announces Shared locks on parts of this resource.
	IntentShared Mode = "IS"
	// IntentExclusive announces Exclusive locks on parts of this resource.
	IntentExclusive Mode = "IX"
	// Shared reads, beside other readers.
	Shared Mode = "S"
	// SharedIntentExclusive reads all of this resource and announces Exclusive locks on parts.
	SharedIntentExclusive Mode = "SIX"
	// Update reads and may want to write: others may read meanwhile, but nobody else holds Update, so converting to
	// Exclusive waits for readers only and can't meet another holder who wants the same.
	Update Mode = "U"
	// Exclusive writes, with nobody beside it.
	Exclusive Mode = "X"
)

func (m Mode) record() (record.Mode, error) {
	r, err := record.ParseMode(string(m))
	if err != nil {
		return record.None, fmt.Errorf("%w: mode %q: use one of IS, IX, S, SIX, U, X", ErrInvalidOption, string(m))
	}
	return r, nil
}

// modeOf is the mode of an entry; "" where its kind has none.
func modeOf(m record.Mode) Mode {
	if m == record.None {
		return ""
	}
	return Mode(m.String())
}
