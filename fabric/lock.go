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

// Mode returns the mode that is held. Convert changes it: to a weaker mode at once, to a stronger mode when it is
// granted.
func (l *Lock) Mode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return modeOf(l.mode)
}

// Convert changes the mode of the hold without releasing the lock.
//
// A conversion to a mode that excludes no additional modes (see the table at [Mode]) is granted at once and keeps the
// token. The handle has the weaker mode from the moment of the call, whatever Convert returns. As with Release, ctx is
// checked only at the start; after ten seconds the conversion continues in the background.
//
// Any other conversion waits until no other holder is in the way, before the whole queue. Then the hold has a new, larger
// token, which must be used from then on. The mode is exactly the requested one: a Shared holder that wants to continue
// reading converts to SharedIntentExclusive, not to IntentExclusive.
//
// Every error is a *ConvertError (ErrNotConverted), which tells the mode that is held: the old mode, or, if the new one
// is weaker in some respect, what both modes have in common. If a request that was given up is still written later, it
// is undone in the background. Causes: the context's error; ErrConvertDeadlock, at once, if another holder waits for
// this hold to become weaker; ErrDeadlock in a unit of work; ErrConverting while another Convert of this handle is
// running; ErrLost or ErrReleased if the hold ends first; ErrInvalidOption; ErrUnconfirmed; ErrMalformedRecord;
// ErrNewerSchema; ErrClosed; kv.ErrFull; kv.ErrRejected; and ErrUnavailable with WithFailFast.
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
		err = l.s.m.explain(ctx, l.convert(bound, op, c))
		done()
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

// beginConvert makes the handle as weak as the old and the new mode allow, until the outcome is known.
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
		Kind: record.KindLock, Verb: record.OpConvert, ID: l.share.lease.NextOp(), Lease: l.share.id, Holder: l.id, From: l.mode, Mode: to,
	}
	l.converting, l.convertCalled = true, true
	// This must happen before the request is sent, because others may be granted from then on.
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
	w := l.s.waiting(c.unit, l.share, l.enc, &op)
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
			case isRefused && refused.Verdict == record.ConvertDeadlock: // the handle is unchanged
			case n > 1 && !isRefused, !weaker:
				// The engine knows this attempt only. The handle is weaker since the call, so the record must be too.
				l.s.shard(l.enc).doer.UndoInBackground(l.enc, op, known)
			}
			return l.notConverted(ctx, op, err)
		}
		// Only if a deposed leader answered the reads, the hold is valid, and the operation continues.
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

// stopConverting restores the old mode of the handle, when it is certain that the conversion no longer waits.
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

// converted applies an acknowledged conversion to the handle.
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
		ev.Time = c.began // others may have been granted before this was confirmed
	}
	l.s.m.feed.push(ev)
	l.mu.Unlock()
	l.s.m.logEvent(&ev)
	return nil
}

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
		// A refusal confirms that nothing has changed.
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

// conversion is a Convert that may have to wait. Only the goroutine in Convert uses its fields.
type conversion struct {
	l      *Lock
	to     Mode
	began  time.Time
	queued *bool // whether EventQueued was sent; nil if nobody wants events
	unit   *unit // unit of work that waits; nil = only the hold itself
}

// whenQueued returns the function that the engine calls when the conversion must wait, and nil if nobody wants events.
func (c *conversion) whenQueued() func(record.Place) {
	if !c.l.s.m.wantsEvents() {
		return nil
	}
	l, to, queued := c.l, c.to, new(bool)
	c.queued = queued
	return func(p record.Place) {
		if !*queued { // otherwise the operation was sent again with the same id
			*queued = l.reportConversion(EventQueued, to, func(ev *Event) { ev.setBlocker(&p.Blocker) })
		}
	}
}

func (c *conversion) reportWithdrawn(err error) {
	if wasQueued(c.queued) {
		c.l.reportConversion(EventWithdrawn, c.to, func(ev *Event) { ev.Waited, ev.Reason = ev.Time.Sub(c.began), err })
	}
}

// reportConversion reports an event of a conversion, unless the hold has ended.
func (h *Hold) reportConversion(t EventType, to Mode, complete func(*Event)) bool {
	h.mu.Lock()
	if h.err != nil {
		h.mu.Unlock()
		return false
	}
	ev := h.event(t)
	ev.Mode, ev.Conversion = to, true
	complete(&ev)
	h.s.m.feed.push(ev)
	h.mu.Unlock()
	h.s.m.logEvent(&ev)
	return true
}

// Mode is the mode of a lock. The table shows which modes can be held at the same time:
//
//	                        IS   IX   S    SIX  U    X
//	IntentShared            yes  yes  yes  yes  yes  -
//	IntentExclusive         yes  yes  -    -    -    -
//	Shared                  yes  -    yes  -    yes  -
//	SharedIntentExclusive   yes  -    -    -    -    -
//	Update                  yes  -    yes  -    -    -
//	Exclusive               -    -    -    -    -    -
//
// The intent modes are for a resource that contains others. Before a client locks a part, it takes an intent lock on
// the whole. So a lock on the whole and locks on its parts exclude each other, and nobody has to examine every part. An
// intent lock does not protect the parts; these have their own locks.
//
// [Lock.Convert] can change any mode to any other. A conversion to a weaker mode never waits: from X to SIX, from SIX
// to U or IX, from U to S, from S or IX to IS, and combinations of these.
type Mode string

// The modes that Acquire grants and Convert changes to.
const (
	// IntentShared announces Shared locks on parts of this resource.
	IntentShared Mode = "IS"
	// IntentExclusive announces Exclusive locks on parts of this resource.
	IntentExclusive Mode = "IX"
	// Shared is for reading, at the same time as other readers.
	Shared Mode = "S"
	// SharedIntentExclusive is for reading the whole resource, and announces Exclusive locks on parts.
	SharedIntentExclusive Mode = "SIX"
	// Update is for reading with a possible write later, besides Shared holders but no other Update holder. So a
	// conversion to Exclusive waits for readers only, and cannot deadlock with another holder of Update.
	Update Mode = "U"
	// Exclusive is for writing. No other hold exists at the same time.
	Exclusive Mode = "X"
)

func (m Mode) record() (record.Mode, error) {
	r, err := record.ParseMode(string(m))
	if err != nil {
		return record.None, fmt.Errorf("%w: mode %q: use one of IS, IX, S, SIX, U, X", ErrInvalidOption, string(m))
	}
	return r, nil
}

// modeOf returns the mode of an entry, and "" for kinds without modes.
func modeOf(m record.Mode) Mode {
	if m == record.None {
		return ""
	}
	return Mode(m.String())
}
