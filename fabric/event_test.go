package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// recorder is an event hook that keeps what it is told.
type recorder struct {
	mu   sync.Mutex
	all  []fabric.Event
	gate chan struct{} // the hook waits for it, if set
}

func (r *recorder) hook(e fabric.Event) {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, e)
}

func (r *recorder) events() []fabric.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

func (r *recorder) of(types ...fabric.EventType) []fabric.Event {
	return slices.DeleteFunc(r.events(), func(e fabric.Event) bool { return !slices.Contains(types, e.Type) })
}

func (r *recorder) await(t testing.TB, typ fabric.EventType) fabric.Event {
	t.Helper()
	eventually(t, "an event "+string(typ), func() bool { return len(r.of(typ)) > 0 })
	return r.of(typ)[0]
}

// check holds all events against the promise of order and completeness.
func (r *recorder) check(t testing.TB) {
	t.Helper()
	type hold struct{ queued, granted, ended bool }
	holds := map[string]*hold{}
	for i, e := range r.events() {
		if e.Dropped != 0 || e.Time.IsZero() {
			t.Fatalf("event %d: %+v", i, e)
		}
		h := holds[e.ID]
		if h == nil {
			h = &hold{}
			holds[e.ID] = h
		}
		var bad bool
		switch e.Type {
		case fabric.EventQueued:
			if e.Conversion {
				bad = !h.granted || h.ended
			} else {
				bad, h.queued = h.queued || h.granted || h.ended, true
			}
		case fabric.EventWithdrawn:
			if e.Conversion {
				bad = !h.granted || h.ended
			} else {
				bad, h.ended = !h.queued || h.granted || h.ended, true
			}
		case fabric.EventGranted:
			bad, h.granted = h.granted || h.ended || e.Queued != h.queued || e.Token == 0, true
		case fabric.EventConverted:
			bad = !h.granted || h.ended
		case fabric.EventReleased, fabric.EventLost:
			bad, h.ended = !h.granted || h.ended || e.Token == 0, true
			if e.Type == fabric.EventLost && e.Reason == nil {
				t.Errorf("lost without a reason: %+v", e)
			}
		default:
			continue
		}
		if bad || e.ID == "" || e.Key == "" || e.Owner == "" || e.Lease != leaseOf(e.ID) || e.Mode == "" {
			t.Errorf("event %d is out of order or incomplete: %+v", i, e)
		}
	}
	for id, h := range holds {
		if id != "" && !h.ended {
			t.Errorf("%s has no end: %+v", id, *h)
		}
	}
}

func TestEventsUnderContention(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const workers, rounds = 8, 200
		var rec recorder
		m := s.manager(t, fabric.WithEvents(rec.hook))
		keys := []string{s.key(t), s.key(t)}
		var wg sync.WaitGroup
		var gaveUp int
		var mu sync.Mutex
		for w := range workers {
			wg.Go(func() {
				for i := range rounds {
					key := keys[(w+i)%2]
					opts := []fabric.AcquireOption{fabric.WithOwner(fmt.Sprintf("w%d", w))}
					if i%10 == 9 {
						opts = append(opts, fabric.WithWaitLimit(time.Millisecond))
					}
					if i%3 == 0 {
						opts = append(opts, fabric.WithMode(fabric.Shared))
					}
					l, err := m.Acquire(waitContext(t), key, opts...)
					if err != nil {
						if !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("acquire: %v", err)
						}
						mu.Lock()
						gaveUp++
						mu.Unlock()
						continue
					}
					if i%6 == 0 {
						cctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
						_ = l.Convert(cctx, fabric.Exclusive)
						cancel()
					}
					if err := l.Release(t.Context()); err != nil {
						t.Errorf("release: %v", err)
					}
				}
			})
		}
		wg.Wait()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		rec.check(t)
		granted, ended := len(rec.of(fabric.EventGranted)), len(rec.of(fabric.EventReleased))+len(rec.of(fabric.EventLost))
		if granted != workers*rounds-gaveUp || granted != ended {
			t.Errorf("%d acquires of which %d gave up; %d granted, %d ended", workers*rounds, gaveUp, granted, ended)
		}
		if len(rec.of(fabric.EventQueued)) == 0 {
			t.Error("nobody ever queued")
		}
		expectNoOverlap(t, rec.events())
	})
}

// expectNoOverlap looks at the times of exclusive holds without conversions.
func expectNoOverlap(t testing.TB, events []fabric.Event) {
	t.Helper()
	converted := map[string]bool{}
	for _, e := range events {
		converted[e.ID] = converted[e.ID] || e.Type == fabric.EventConverted || e.Conversion
	}
	slices.SortStableFunc(events, func(a, b fabric.Event) int { return a.Time.Compare(b.Time) })
	holder := map[string]string{}
	for _, e := range events {
		if e.Mode != fabric.Exclusive || converted[e.ID] {
			continue
		}
		switch e.Type {
		case fabric.EventGranted:
			if other := holder[e.Key]; other != "" {
				t.Errorf("%s is granted while %s holds", e.ID, other)
			}
			holder[e.Key] = e.ID
		case fabric.EventReleased, fabric.EventLost:
			delete(holder, e.Key)
		}
	}
}

// What is attached to a hold and to a waiter is in their events, and a waiter is told what is attached
// to the one in the way, also where another process does the writing.
func TestEventsTellMetadata(t *testing.T) {
	t.Parallel()
	for _, s := range []*site{singleSite, coalescedSite} {
		onSite(t, s, func(t *testing.T, s *site) {
			key := s.key(t)
			first := acquire(t, s.manager(t), key, fabric.WithMetadata(map[string]string{"job": "first"}))
			var rec recorder
			wait := queue(t, waitContext(t), s.manager(t, fabric.WithEvents(rec.hook)), key,
				fabric.WithMetadata(map[string]string{"job": "other", "a": "1"}), fabric.WithMetadata(map[string]string{"job": "second"}))
			want := map[string]string{"a": "1", "job": "second"}
			if q := rec.await(t, fabric.EventQueued); q.BlockerMetadata["job"] != "first" || !maps.Equal(q.Metadata, want) {
				t.Errorf("%+v", q)
			}
			release(t, first)
			release(t, granted(t, wait))
			for _, typ := range []fabric.EventType{fabric.EventGranted, fabric.EventReleased} {
				if e := rec.await(t, typ); !maps.Equal(e.Metadata, want) || e.BlockerMetadata != nil {
					t.Errorf("%+v", e)
				}
			}
		})
	}
}

func TestEventsOfOneHold(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		key := s.key(t)
		first := acquire(t, s.manager(t), key, fabric.WithOwner("alice"))
		var rec recorder
		m := s.manager(t, fabric.WithEvents(rec.hook))
		wait := queue(t, waitContext(t), m, key, fabric.WithOwner("bob"))
		q := rec.await(t, fabric.EventQueued)
		if q.Key != key || q.Owner != "bob" || q.Position != 1 || q.Blocker != "alice" || q.Mode != fabric.Exclusive || q.Token != 0 || q.Conversion {
			t.Errorf("%+v", q)
		}
		release(t, first)
		l := granted(t, wait)
		g := rec.await(t, fabric.EventGranted)
		if g.ID != l.ID() || g.ID != q.ID || g.Token != l.Token() || !g.Queued || g.Waited <= 0 || g.Owner != "bob" {
			t.Errorf("%+v", g)
		}
		if err := l.Convert(waitContext(t), fabric.Shared); err != nil {
			t.Fatal(err)
		}
		if c := rec.await(t, fabric.EventConverted); c.Mode != fabric.Shared || c.Token != l.Token() || c.Queued {
			t.Errorf("%+v", c)
		}
		other := acquire(t, s.manager(t), key, fabric.WithMode(fabric.Shared), fabric.WithOwner("carol"))
		cctx, cancel := context.WithCancel(waitContext(t))
		failed := make(chan error, 1)
		go func() { failed <- l.Convert(cctx, fabric.Exclusive) }()
		eventually(t, "a queued conversion", func() bool { return len(rec.of(fabric.EventQueued)) == 2 })
		if q := rec.of(fabric.EventQueued)[1]; !q.Conversion || q.ID != l.ID() || q.Blocker != "carol" || q.Mode != fabric.Exclusive {
			t.Errorf("%+v", q)
		}
		cancel()
		if err := receive(t, failed); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if w := rec.await(t, fabric.EventWithdrawn); !w.Conversion || !errors.Is(w.Reason, context.Canceled) || w.ID != l.ID() {
			t.Errorf("%+v", w)
		}
		go func() { failed <- l.Convert(waitContext(t), fabric.Exclusive) }()
		eventually(t, "a queued conversion", func() bool { return len(rec.of(fabric.EventQueued)) == 3 })
		release(t, other)
		if err := receive(t, failed); err != nil {
			t.Fatal(err)
		}
		release(t, l)
		if r := rec.await(t, fabric.EventReleased); r.ID != l.ID() || r.Held <= 0 || r.Token != l.Token() || r.Reason != nil || r.Mode != fabric.Exclusive {
			t.Errorf("%+v", r)
		}
		if _, err := m.TryAcquire(waitContext(t), key); err != nil {
			t.Fatal(err)
		}
		if err := m.Do(waitContext(t), s.key(t), func(context.Context, *fabric.Lock) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		var types []fabric.EventType
		for _, e := range rec.events() {
			types = append(types, e.Type)
		}
		want := []fabric.EventType{
			"queued", "granted", "converted", "queued", "withdrawn", "queued", "converted", "released",
			"granted", "granted", "released", "lost",
		}
		if !slices.Equal(types, want) {
			t.Errorf("got %v, want %v", types, want)
		}
		rec.check(t)
	})
}
