package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// EventType is the type of an event.
type EventType string

// The types of events.
const (
	// EventQueued: an acquire or a conversion waits. Position and Blocker are set.
	EventQueued EventType = "queued"
	// EventWithdrawn: a queued acquire or conversion ended without a grant, for Reason: its context ended, or its lease
	// was lost and it queues again under a new id. A conversion whose hold ends has no such event.
	EventWithdrawn EventType = "withdrawn"
	// EventGranted: an acquire got the lock, after Waited.
	EventGranted EventType = "granted"
	// EventPassed: a wait ended, after Waited, and there is nothing to release: a barrier tripped, or a latch is open.
	EventPassed EventType = "passed"
	// EventConverted: Convert was granted. Mode and Token are the new ones.
	EventConverted EventType = "converted"
	// EventReleased: a hold ended by Release, after Held. Reason is set if it was not confirmed; see ErrUnconfirmed.
	EventReleased EventType = "released"
	// EventLost: a hold ended before it was released, after Held, for Reason; also if Release finds that it is gone.
	EventLost EventType = "lost"
	// EventEvicted: this process removed entries of dead leases from the lock. Leases and Entries are set.
	EventEvicted EventType = "evicted"
	// EventTakeover: this process declared the lease Lease dead, because it had seen no renewal for the TTL and the
	// margin. Key is empty, because one lease can belong to many locks.
	EventTakeover EventType = "takeover"
)

// Event is something that happened to a lock, as seen by this manager. Fields that the type does not mention are zero.
type Event struct {
	Type EventType
	Time time.Time // when it happened, by this process's clock
	Key  string    // the lock's name

	// Of a hold or a waiter: queued, withdrawn, granted, converted, released, lost.

	ID    string // "<lease>.<sequence>", as inspection shows it; for a conversion, the hold's id
	Lease string // lease of the hold or waiter
	Owner string // the explicit owner, or the id
	Mode  Mode   // held, or requested
	Token uint64 // fencing token; 0 before the first grant

	Metadata map[string]string // from WithMetadata; read only

	Conversion bool          // queued and withdrawn: it is a conversion
	Position   int           // queued: 1 is the next; estimated if more than 16 acquires of the manager wait; 0 for a conversion, which stands before the queue
	Blocker    string        // queued: owner of one of the blocking entries
	Queued     bool          // granted and converted: an EventQueued came before
	Waited     time.Duration // granted, converted, withdrawn: since Acquire or Convert was called
	Held       time.Duration // released and lost: since the caller got the grant
	Reason     error         // lost: ErrExpired or another reason; withdrawn, released: see there

	BlockerMetadata map[string]string // queued: metadata of Blocker; read only

	Leases  []string // evicted: the dead leases
	Entries int      // evicted: number of removed entries

	// Dropped is the number of events that were dropped right before this one, because the hook was more than 65,536
	// events behind.
	Dropped uint64
}

// WithEvents makes the manager call hook for every event; see [EventType].
//
// One goroutine calls the hook, one event after another, with no lock of the library held. So the hook may call
// everything except Manager.Close, which waits for it. The hook delays nothing: Lost is closed, leases are renewed and
// locks are granted while it runs. To stop work in time, use Lost or Context, since an event tells what was true at its
// Time.
//
// The events of one hold come in order: queued, granted, any number of converted, and last one of released or lost. If
// the lease ended at the moment of the grant, and the caller did not get the hold, there is no granted event. To order
// events of different holds, use Time. A released event comes when the result is known, but its Time is when Release was
// called, before the next holder could be granted; so it is with a conversion to a weaker mode. If a hold was taken away
// with ForceNow, its lost event comes up to a second later, when the next holder may already have the lock.
//
// If the hook is more than 65,536 events behind, new events are dropped, and the next event has their number in Dropped.
// Close delivers the remaining events for up to three seconds, and else returns ErrEventsDropped.
//
// A panic of the hook is not recovered.
func WithEvents(hook func(Event)) ManagerOption {
	return func(c *config) error { return set(&c.hook, hook, hook != nil, "the event hook is nil") }
}

// report sends an event to the hook and to the log. No lock is held.
func (m *Manager) report(ev Event) {
	m.feed.push(ev)
	m.logEvent(&ev)
}

// wantsEvents reports whether the hook or the log uses events.
func (m *Manager) wantsEvents() bool {
	return m.feed != nil || m.cfg.logger.Enabled(context.Background(), slog.LevelDebug)
}

// logEvent writes the log record of an event. No lock is held.
func (m *Manager) logEvent(ev *Event) {
	ctx, log := context.Background(), m.cfg.logger
	if ev.Type == EventLost {
		log.LogAttrs(ctx, slog.LevelWarn, "lock lost", slog.String("key", ev.Key), slog.String("id", ev.ID),
			slog.Uint64("token", ev.Token), slog.Duration("held", ev.Held), slog.Any("reason", ev.Reason))
		return
	}
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	key, id := slog.String("key", ev.Key), slog.String("id", ev.ID)
	mode, token := slog.String("mode", string(ev.Mode)), slog.Uint64("token", ev.Token)
	switch ev.Type {
	case EventQueued:
		log.LogAttrs(ctx, slog.LevelDebug, "queued", key, id, slog.String("owner", ev.Owner), mode,
			slog.Int("position", ev.Position), slog.String("blocker", ev.Blocker))
	case EventWithdrawn:
		log.LogAttrs(ctx, slog.LevelDebug, "withdrawn", key, id, mode, slog.Duration("waited", ev.Waited), slog.Any("reason", ev.Reason))
	case EventGranted:
		log.LogAttrs(ctx, slog.LevelDebug, "granted", key, id, slog.String("owner", ev.Owner), mode, token, slog.Duration("waited", ev.Waited))
	case EventPassed:
		log.LogAttrs(ctx, slog.LevelDebug, "passed", key, id, slog.Duration("waited", ev.Waited))
	case EventConverted:
		log.LogAttrs(ctx, slog.LevelDebug, "converted", key, id, mode, token, slog.Duration("waited", ev.Waited))
	case EventReleased:
		log.LogAttrs(ctx, slog.LevelDebug, "released", key, id, token, slog.Duration("held", ev.Held), slog.Any("error", ev.Reason))
	case EventEvicted:
		log.LogAttrs(ctx, slog.LevelDebug, "entries of dead leases removed", key, slog.Any("leases", ev.Leases), slog.Int("entries", ev.Entries))
	}
	// The observer logs takeovers.
}

// maxEvents is the maximum number of events that wait for the hook.
const maxEvents = 1 << 16

// feed delivers events to the hook. push never waits for the hook, so it may be called with a lock held. This keeps the
// events of a hold in order. A nil feed does nothing.
type feed struct {
	hook func(Event)
	wake chan struct{} // wakes the goroutine
	done chan struct{} // closed when the goroutine has ended

	mu        sync.Mutex // innermost: nothing is called while it is held
	started   bool
	queue     []Event
	behind    int    // events in queue, plus events that the goroutine has taken but not delivered
	dropped   uint64 // since the last accepted event
	announced int    // events that were announced and not pushed yet
	closing   bool   // run ends when no event is left
	aborted   bool   // run ends after the current call of the hook
}

func newFeed(hook func(Event)) *feed {
	if hook == nil {
		return nil
	}
	return &feed{hook: hook, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// start starts the goroutine that calls the hook; close ends it.
func (f *feed) start() {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.started = true
	f.mu.Unlock()
	go f.run()
}

// push adds an event, or counts it as dropped. A queued acquire announces the event that ends its wait.
func (f *feed) push(ev Event) {
	owed := 0
	switch {
	case ev.Conversion:
	case ev.Type == EventQueued:
		owed = 1
	case ev.Type == EventWithdrawn, ev.Queued && (ev.Type == EventGranted || ev.Type == EventPassed):
		owed = -1
	}
	f.update(owed, &ev)
}

// announce makes close wait, within its limit, for one later push. The event is certain to come, but not known yet.
func (f *feed) announce() { f.update(1, nil) }

func (f *feed) retract() { f.update(-1, nil) }

func (f *feed) deliver(ev Event) { f.update(-1, &ev) }

// update adds an event (nil = none) and changes the number of announced events.
func (f *feed) update(owed int, ev *Event) {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.announced += owed
	switch {
	case ev == nil:
	case f.behind >= maxEvents || f.aborted:
		f.dropped++
	default:
		ev.Dropped, f.dropped = f.dropped, 0
		f.queue = append(f.queue, *ev)
		f.behind++
	}
	f.mu.Unlock()
	pause.Wake(f.wake)
}

func (f *feed) run() {
	defer close(f.done) // also if the hook ends the goroutine (runtime.Goexit)
	var batch []Event
	for {
		f.mu.Lock()
		clear(batch) // releases the events' references
		batch, f.queue = f.queue, batch[:0]
		over := f.aborted || f.closing && f.announced == 0 && len(batch) == 0
		f.mu.Unlock()
		if over {
			return
		}
		for _, ev := range batch {
			f.hook(ev)
			f.mu.Lock()
			f.behind--
			cut := f.aborted
			f.mu.Unlock()
			if cut {
				return
			}
		}
		if len(batch) == 0 {
			<-f.wake
		}
	}
}

// close waits until every event is delivered, at most for limit. No event is delivered after it.
func (f *feed) close(limit time.Duration) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	f.closing = true
	started := f.started
	f.mu.Unlock()
	pause.Wake(f.wake)
	if started {
		select {
		case <-f.done:
		case <-time.After(limit):
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aborted = true
	pause.Wake(f.wake) // does not block
	if left := uint64(max(f.behind+f.announced, 0)) + f.dropped; left > 0 {
		return fmt.Errorf("%w: %d of them", ErrEventsDropped, left)
	}
	return nil
}

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
	h.s.m.feed.push(ev)
	h.mu.Unlock()
	h.s.m.logEvent(&ev)
	return true
}

func (h *Hold) reportReleased(ev Event) {
	ev.Reason = h.released
	if lost, ok := errors.AsType[*LostError](h.released); ok {
		ev.Type, ev.Reason = EventLost, lost.Reason
	}
	h.s.m.feed.deliver(ev)
	h.s.m.logEvent(&ev)
}

// waiterEvent makes an event about the last round.
func (a *attempt) waiterEvent(t EventType) Event {
	return Event{
		Type: t, Time: time.Now(), Key: a.key, ID: a.id, Lease: a.share.id,
		Owner: cmp.Or(a.req.owner, a.id), Mode: modeOf(a.op.Mode), Metadata: a.op.Meta,
	}
}

// whenQueued returns the function that the engine calls when the acquire must wait, and nil if nobody wants events.
func (a *attempt) whenQueued() func(record.Place) {
	a.queued = nil
	if !a.m.wantsEvents() {
		return nil
	}
	// The function does not refer to a, because a would then be allocated on the heap for every acquire.
	m, queued, ev := a.m, new(bool), a.waiterEvent(EventQueued)
	a.queued = queued
	return func(p record.Place) {
		*queued = true
		ev.Time, ev.Position = time.Now(), p.Position
		ev.setBlocker(&p.Blocker)
		m.report(ev)
	}
}

// reportPassed reports that a wait has ended and nothing must be released.
func (a *attempt) reportPassed() {
	if a.m.wantsEvents() {
		ev := a.waiterEvent(EventPassed)
		ev.Queued, ev.Waited = wasQueued(a.queued), ev.Time.Sub(a.began)
		a.m.report(ev)
	}
	a.queued = nil
}

func wasQueued(queued *bool) bool { return queued != nil && *queued }

// reportWithdrawn reports that a queued acquire is no longer queued.
func (a *attempt) reportWithdrawn(err error) {
	if !wasQueued(a.queued) {
		return
	}
	a.queued = nil
	switch {
	case a.session.endReason() != nil: // the lease ended with the session
		err = a.session.endReason()
	case errors.Is(err, engine.ErrStopped), errors.Is(err, errAgain):
		err = lossReason(a.share.lease.Err())
	case errors.Is(err, engine.ErrGone):
		err = ErrRemoved
	default:
		err = translate(err)
	}
	ev := a.waiterEvent(EventWithdrawn)
	ev.Waited, ev.Reason = ev.Time.Sub(a.began), err
	a.m.report(ev)
}

func (ev *Event) setBlocker(e *record.Entry) {
	if e.ID != "" {
		ev.Blocker, ev.BlockerMetadata = e.OwnerID(), e.Meta
	}
}
