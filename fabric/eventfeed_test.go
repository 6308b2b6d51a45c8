package fabric

import (
	"errors"
	"log/slog"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

func TestFeedCountsWhatItDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate, total := make(chan struct{}), 0
		var dropped, last uint64
		f := newFeed(func(e Event) {
			<-gate
			total++
			dropped += e.Dropped
			if e.Token <= last {
				t.Errorf("event %d after event %d", e.Token, last)
			}
			last = e.Token
		})
		f.start()
		const more = 100
		for i := range maxEvents + more {
			f.push(Event{Token: uint64(i + 1)})
		}
		close(gate)
		synctest.Wait()
		if total != maxEvents || dropped != 0 {
			t.Errorf("%d delivered, %d dropped before them", total, dropped)
		}
		f.push(Event{Token: maxEvents + more + 1})
		if err := f.close(closeLimit); err != nil {
			t.Error(err)
		}
		if total != maxEvents+1 || dropped != more {
			t.Errorf("%d delivered, %d dropped, want one more and %d", total, dropped, more)
		}
	})
}

func TestFeedTellsAtCloseWhatWasDroppedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		f := newFeed(func(Event) { <-gate })
		f.start()
		for range maxEvents + 1 {
			f.push(Event{})
		}
		close(gate)
		synctest.Wait()
		if err := f.close(closeLimit); !errors.Is(err, ErrEventsDropped) {
			t.Error(err)
		}
	})
}

func TestFeedClosesWithinItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate, calls := make(chan struct{}), 0
		f := newFeed(func(Event) { calls++; <-gate })
		f.start()
		f.push(Event{})
		f.push(Event{})
		start := time.Now()
		if err := f.close(closeLimit); !errors.Is(err, ErrEventsDropped) {
			t.Error(err)
		}
		if took := time.Since(start); took != closeLimit {
			t.Errorf("close took %v", took)
		}
		close(gate)
		<-f.done
		if calls != 1 {
			t.Errorf("%d calls, one of them after close", calls)
		}
	})
}

func TestFeedWaitsForWhatIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := newFeed(func(Event) { n++ })
		f.start()
		f.announce()
		time.AfterFunc(time.Second, func() { f.deliver(Event{}) })
		if err := f.close(closeLimit); err != nil || n != 1 {
			t.Errorf("%d events, %v", n, err)
		}
	})
}

func TestFeedOfAHookThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(func(Event) { runtime.Goexit() })
		f.start()
		f.push(Event{})
		if err := f.close(closeLimit); !errors.Is(err, ErrEventsDropped) {
			t.Error(err)
		}
	})
}

// Without a hook an event is not even kept.
func TestNoHookNoAllocation(t *testing.T) {
	m := &Manager{cfg: config{logger: slog.New(slog.DiscardHandler)}, feed: newFeed(nil)}
	l := &Hold{handle: handle{share: &leaseShare{s: &session{m: m}, id: "L"}}, s: &session{m: m}, key: "k"}
	a := &attempt{m: m, key: "k", share: l.share, id: "L.1"}
	if m.wantsEvents() || a.whenQueued() != nil || (&conversion{l: &Lock{l}}).whenQueued() != nil {
		t.Error("somebody listens")
	}
	if n := testing.AllocsPerRun(1000, func() {
		l.since = time.Time{}
		_ = a.whenQueued()
		l.handOut(a)
		ev := l.endEvent(EventReleased)
		m.feed.announce()
		l.reportReleased(ev)
	}); n != 0 {
		t.Errorf("%v allocations for a grant and a release", n)
	}
}

func BenchmarkEvents(b *testing.B) {
	for name, hook := range map[string]func(Event){"no hook": nil, "hook": func(Event) {}} {
		b.Run(name, func(b *testing.B) {
			m := &Manager{cfg: config{logger: slog.New(slog.DiscardHandler)}, feed: newFeed(hook)}
			m.feed.start()
			l := &Hold{handle: handle{share: &leaseShare{id: "L"}}, s: &session{m: m}, key: "k"}
			a := &attempt{m: m, key: "k", share: l.share, id: "L.1"}
			b.ReportAllocs()
			for b.Loop() {
				l.handOut(a)
				ev := l.endEvent(EventReleased)
				m.feed.announce()
				l.reportReleased(ev)
			}
			_ = m.feed.close(closeLimit)
		})
	}
}
