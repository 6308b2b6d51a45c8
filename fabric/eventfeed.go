package fabric

import (
	"fmt"
	"sync"
	"time"
)

// maxEvents is how many events wait for the hook at most.
const maxEvents = 1 << 16

// feed carries events to the hook. push never waits for it, so that it may be
// called with a lock held, which is what keeps the events of a hold in order.
// A nil feed takes nothing and costs nothing.
type feed struct {
	hook func(Event)
	wake chan struct{} // has the goroutine look
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // innermost: nothing is called with it held
	started bool
	queue   []Event
	behind  int    // events in queue, and those that the goroutine has taken and not delivered
	dropped uint64 // since the last event that was taken
	owed    int    // events that somebody has announced and not pushed yet
	closing bool   // ends when there is nothing left
	cut     bool   // ends after the call under way
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
func (f *feed) push(ev Event) {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.add(ev)
	f.mu.Unlock()
	signal(f.wake)
}

// announce makes close wait, within its bound, for one push of an event that is
// sure to come but not yet known.
func (f *feed) announce() {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.owed++
	f.mu.Unlock()
}

// deliver pushes an event that was announced.
func (f *feed) deliver(ev Event) {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.owed--
	f.add(ev)
	f.mu.Unlock()
	signal(f.wake)
}

// add is called with mu held.
func (f *feed) add(ev Event) {
	if f.behind >= maxEvents || f.cut {
		f.dropped++
		return
	}
	ev.Dropped, f.dropped = f.dropped, 0
	f.queue = append(f.queue, ev)
	f.behind++
}

func (f *feed) run() {
	defer close(f.done) // also when the hook ends the goroutine
	var batch []Event
	for {
		f.mu.Lock()
		clear(batch) // what it refers to
		batch, f.queue = f.queue, batch[:0]
		over := f.cut || f.closing && f.owed == 0 && len(batch) == 0
		f.mu.Unlock()
		if over {
			return
		}
		for _, ev := range batch {
			f.hook(ev)
			f.mu.Lock()
			f.behind--
			cut := f.cut
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

// close waits until every event is delivered, within the limit, and ends the
// goroutine. A hook that does not return by then is not waited for; nothing is
// delivered after it.
func (f *feed) close(limit time.Duration) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	f.closing = true
	started := f.started
	f.mu.Unlock()
	signal(f.wake)
	if started {
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-f.done:
		case <-t.C:
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = true
	signal(f.wake) // never waits
	if left := uint64(max(f.behind+f.owed, 0)) + f.dropped; left > 0 {
		return fmt.Errorf("%w: %d of them", ErrEventsDropped, left)
	}
	return nil
}
