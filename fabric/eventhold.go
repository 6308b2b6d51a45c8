package fabric

import (
	"cmp"
	"errors"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// The events of one hold are pushed to the feed while the hold's mu is held, together with the change of state that
// they describe. So no event can come after the event that ends the hold, whoever ends it.

// event makes an event about the hold. Called with h.mu held.
func (h *Hold) event(t EventType) Event {
	return Event{
		Type: t, Time: time.Now(), Key: h.key, ID: h.id, Lease: h.share.id,
		Owner: cmp.Or(h.owner, h.id), Mode: modeOf(h.mode), Token: h.token, Metadata: h.meta,
	}
}

// endEvent makes the event of the hold's end. Called with h.mu held.
func (h *Hold) endEvent(t EventType) Event {
	ev := h.event(t)
	if !h.since.IsZero() {
		ev.Held = ev.Time.Sub(h.since)
	}
	return ev
}

// handOut gives the grant to the caller, unless the hold has already ended.
func (h *Hold) handOut(a *attempt) bool {
	h.mu.Lock()
	if h.err != nil {
		h.mu.Unlock()
		return false
	}
	ev := h.event(EventGranted)
	h.since = ev.Time
	ev.Queued, ev.Waited = wasQueued(a.queued), ev.Time.Sub(a.began)
	if ev.Queued {
		h.s.m.feed.deliver(ev)
	} else {
		h.s.m.feed.push(ev)
	}
	h.mu.Unlock()
	h.s.m.logEvent(&ev)
	return true
}

// reportReleased reports the result of a release.
func (h *Hold) reportReleased(ev Event) {
	ev.Reason = h.released
	if lost, ok := errors.AsType[*LostError](h.released); ok {
		ev.Type, ev.Reason = EventLost, lost.Reason
	}
	h.s.m.feed.deliver(ev)
	h.s.m.logEvent(&ev)
}

func (a *attempt) waiterEvent(t EventType, sl *leaseShare, id string) Event {
	ev := Event{Type: t, Time: time.Now(), Key: a.key, ID: id, Lease: sl.id, Owner: a.req.owner, Mode: modeOf(a.op.Mode), Metadata: a.op.Meta}
	ev.Owner = cmp.Or(ev.Owner, id)
	return ev
}

// whenQueued returns the function that the engine calls when the acquire must wait, and nil if nobody wants events.
func (a *attempt) whenQueued(sl *leaseShare, id string) func(record.Place) {
	a.queued = nil
	if !a.m.wantsEvents() {
		return nil
	}
	// The function does not refer to a, because a would then be allocated on the heap for every acquire.
	m, queued, ev := a.m, new(bool), a.waiterEvent(EventQueued, sl, id)
	a.queued = queued
	return func(p record.Place) {
		*queued = true
		m.feed.announce() // a granted or withdrawn event will follow
		ev.Time, ev.Position = time.Now(), p.Position
		ev.setBlocker(&p.Blocker)
		m.report(ev)
	}
}

// reportPassed reports that a wait has ended and nothing must be released.
func (a *attempt) reportPassed(sl *leaseShare, id string) {
	if a.m.wantsEvents() {
		ev := a.waiterEvent(EventPassed, sl, id)
		ev.Queued, ev.Waited = wasQueued(a.queued), ev.Time.Sub(a.began)
		if ev.Queued {
			a.m.feed.deliver(ev)
		} else {
			a.m.feed.push(ev)
		}
		a.m.logEvent(&ev)
	}
	a.queued = nil
}

func wasQueued(queued *bool) bool { return queued != nil && *queued }

// reportWithdrawn reports that a queued acquire is no longer queued.
func (a *attempt) reportWithdrawn(sl *leaseShare, id string, err error) {
	if !wasQueued(a.queued) {
		return
	}
	a.queued = nil
	switch {
	case a.session.endReason() != nil: // the lease ended with the session
		err = a.session.endReason()
	case errors.Is(err, engine.ErrStopped), errors.Is(err, errAgain):
		err = lossReason(sl.lease.Err())
	case errors.Is(err, engine.ErrGone):
		err = ErrRemoved
	default:
		err = translate(err)
	}
	ev := a.waiterEvent(EventWithdrawn, sl, id)
	ev.Waited, ev.Reason = ev.Time.Sub(a.began), err
	a.m.feed.deliver(ev)
	a.m.logEvent(&ev)
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

// reportWithdrawn reports that the conversion failed.
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

func (ev *Event) setBlocker(e *record.Entry) {
	if e.ID != "" {
		ev.Blocker, ev.BlockerMetadata = e.OwnerID(), e.Meta
	}
}
