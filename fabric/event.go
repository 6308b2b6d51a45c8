package fabric

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
)

// EventType says what happened.
type EventType string

// The events.
const (
	// EventQueued: an acquire, or a conversion, waits. It has Position and Blocker.
	EventQueued EventType = "queued"
	// EventWithdrawn: one that was queued ended without a grant, for Reason: its context ended, or its lease was lost
	// and it queues again under a new id. A conversion that waits when its hold ends has no such event: it ends with
	// the hold.
	EventWithdrawn EventType = "withdrawn"
	// EventGranted: an acquire got the lock, after Waited.
	EventGranted EventType = "granted"
	// EventPassed: a wait is over, after Waited, that leaves nothing to release: a barrier tripped, a latch is open.
	EventPassed EventType = "passed"
	// EventConverted: Convert was granted. Mode and Token are those from now on.
	EventConverted EventType = "converted"
	// EventReleased: a hold ended by Release, after Held. Reason is set when that
	// was not confirmed: see ErrUnconfirmed.
	EventReleased EventType = "released"
	// EventLost: a hold ended before it was released, after Held, for Reason. Of a
	// hold that Release finds gone, it comes instead of EventReleased.
	EventLost EventType = "lost"
	// EventEvicted: this process removed entries of dead leases from the lock. It has Leases and Entries.
	EventEvicted EventType = "evicted"
	// EventTakeover: this process declared the lease Lease dead, after it had seen no renewal for its TTL and the
	// margin. It has no Key: one lease can stand behind many locks.
	EventTakeover EventType = "takeover"
)

// Event is one thing that happened to a lock, seen from this manager. Fields that its type does not name are zero.
type Event struct {
	Type EventType
	Time time.Time // when it happened, by this process's clock
	Key  string    // the lock's name

	// Of a hold or a waiter: queued, withdrawn, granted, converted, released, lost.

	ID    string // "<lease>.<sequence>", as inspection shows it; of a conversion, the hold's
	Lease string // the lease it stands under
	Owner string // the explicit owner, or the id
	Mode  Mode   // held, or asked for
	Token uint64 // fencing token; 0 before the first grant

	Metadata map[string]string // what WithMetadata gave; read only

	Conversion bool          // queued and withdrawn: it is a Convert
	Position   int           // queued: 1 is the next, expected where more than 16 of the manager wait; 0 for a conversion, which stands before the queue
	Blocker    string        // queued: owner of one of those in the way
	Queued     bool          // granted and converted: there was an EventQueued before
	Waited     time.Duration // granted, converted, withdrawn: since Acquire or Convert was called
	Held       time.Duration // released and lost: since the grant was handed out
	Reason     error         // lost: ErrExpired and its like; withdrawn, released: see there

	BlockerMetadata map[string]string // queued: that of Blocker; read only

	Leases  []string // evicted: the dead leases
	Entries int      // evicted: how many entries of theirs were removed

	// Dropped is how many events were dropped right before this one, because the
	// hook was more than 65,536 events behind.
	Dropped uint64
}

// WithEvents has the manager call hook for every event: see [EventType].
//
// The hook is called from one goroutine of the manager, one event after the other. No lock of the library is held, so
// it may call what it likes but Manager.Close, which waits for it. It delays nothing: Lost is closed, leases are
// renewed and locks are granted whether or not it returns. So an event tells what was true at its Time; to stop work
// in time, use Lost or Context.
//
// Events of one hold come in order: queued, granted, converted any number of times, then released or lost, exactly
// one of them and nothing after it. A grant that was not handed out, as its lease ended at that moment, has no event.
// Between holds go by Time: a release is told when its outcome is known, and its Time is when Release was called,
// before the next one can be granted. Likewise with a Convert that only gives up something. A hold that was taken
// away with ForceNow is told as lost up to a second later, when others may have it.
//
// None is dropped while the hook is less than 65,536 events behind. Beyond that a queue without a bound would only
// move the failure into the process's memory: new events are dropped then, and the next one that is not says how many
// in Dropped. Close delivers what is outstanding; if that takes longer than three seconds it gives up and returns
// ErrEventsDropped.
//
// A panic of the hook is not recovered.
func WithEvents(hook func(Event)) ManagerOption {
	return func(c *config) error { return set(&c.hook, hook, hook != nil, "the event hook is nil") }
}

// report hands an event to the hook and to the log. No lock is held.
func (m *Manager) report(ev Event) {
	m.feed.push(ev)
	m.logEvent(&ev)
}

// wantsEvents reports whether anybody wants to know of events.
func (m *Manager) wantsEvents() bool {
	return m.feed != nil || m.cfg.logger.Enabled(context.Background(), slog.LevelDebug)
}

// logEvent writes the log's line for an event. No lock is held.
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
	// A takeover is logged by the observer.
}

// evicted is told by the engine.
func (s *session) evicted(enc string, leases []string, entries int) {
	s.m.report(Event{Type: EventEvicted, Time: time.Now(), Key: nameOf(enc), Leases: leases, Entries: entries})
}

// tookOver is told by the observer.
func (s *session) tookOver(id string) {
	s.m.report(Event{Type: EventTakeover, Time: time.Now(), Lease: id})
}

// maxEvents is how many events wait for the hook at most.
const maxEvents = 1 << 16

// feed carries events to the hook. push never waits for it, so that it may be called with a lock held, which is what
// keeps the events of a hold in order. A nil feed takes nothing and costs nothing.
type feed struct {
	hook func(Event)
	wake chan struct{} // has the goroutine look
	done chan struct{} // closed when the goroutine has ended

	mu        sync.Mutex // innermost: nothing is called with it held
	started   bool
	queue     []Event
	behind    int    // events in queue, and those that the goroutine has taken and not delivered
	dropped   uint64 // since the last event that was taken
	announced int    // events that somebody has announced and not pushed yet
	closing   bool   // ends when there is nothing left
	aborted   bool   // ends after the call under way
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

// push adds an event, or counts it as dropped.
func (f *feed) push(ev Event) { f.update(0, &ev) }

// announce makes close wait, within its bound, for one push of an event that is sure to come but not yet known.
func (f *feed) announce() { f.update(1, nil) }

// retract says that an announced event does not come.
func (f *feed) retract() { f.update(-1, nil) }

// deliver pushes an event that was announced.
func (f *feed) deliver(ev Event) { f.update(-1, &ev) }

// update adds an event, nil is none, and changes how many are owed.
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
	defer close(f.done) // also when the hook ends the goroutine
	var batch []Event
	for {
		f.mu.Lock()
		clear(batch) // what it refers to
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

// close waits until every event is delivered, within the limit, and ends the goroutine. A hook that does not return
// by then is not waited for; nothing is delivered after it.
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
	pause.Wake(f.wake) // never waits
	if left := uint64(max(f.behind+f.announced, 0)) + f.dropped; left > 0 {
		return fmt.Errorf("%w: %d of them", ErrEventsDropped, left)
	}
	return nil
}
