package jskv

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestPollsCarryOnWhileNoWatcherOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		s.openErr = errors.New("maximum consumers limit reached")
		h := s.hub(t)
		var a, b, late journal
		h.Watch("a", a.add)
		time.Sleep(openTime / 2) // the next one comes while a watcher is being opened
		h.Watch("b", b.add)
		settle()
		a.want(t, "a1")
		b.want(t, "absent")
		h.Watch("late", late.add) // while none is tried
		settle()
		late.want(t, "absent")
		s.put("a", "a2")
		time.Sleep(3 * DefaultPollInterval) // a look at the stream, then a read, each a quarter later at worst
		a.want(t, "a1 a2")
		st := h.Stats()
		if st.OpenFailures == 0 || st.OpenFailures > 20 || !st.Failing {
			t.Errorf("stats %+v, want some failures", st)
		}
		s.set(func(s *fakeStream) { s.openErr = nil })
		time.Sleep(2 * maxOpenRetry)
		s.put("b", "b1")
		synctest.Wait()
		b.want(t, "absent b1")
		if h.Stats().Failing {
			t.Error("it is still failing")
		}
	})
}

func TestReadErrorsOfAnUnknownKeyAreRetriedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.readErr = nats.ErrTimeout
		h := s.hub(t)
		var a journal
		h.Watch("a", a.add)
		time.Sleep(firstPoll * 3 / 2)
		a.want(t, "")
		s.set(func(s *fakeStream) { s.readErr = nil })
		time.Sleep(2 * readRetry)
		a.want(t, "absent")
	})
}

func TestReadRateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t, WithReadRate(50), WithPollInterval(100*time.Millisecond))
		for i := range 500 {
			key := fmt.Sprintf("k%d", i)
			s.put(key, "1")
			h.Watch(key, func(Entry) {})
		}
		time.Sleep(time.Second)
		before := s.get(func(s *fakeStream) int { return s.reads })
		for range 200 { // others write, so that nothing is known by the state of the stream
			s.put("another", "1")
			time.Sleep(100 * time.Millisecond)
		}
		n := s.get(func(s *fakeStream) int { return s.reads }) - before
		if n < 900 || n > 1010 {
			t.Errorf("%d reads in 20 s, want 50 a second", n)
		}
		if st := h.Stats(); st.Missed != 0 {
			t.Errorf("%d entries missed", st.Missed)
		}
	})
}

func TestEachSightOfAGoneBucketIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		var doubts atomic.Int64
		h := s.hub(t, WithDoubt(func() { doubts.Add(1) }))
		var a journal
		h.Watch("a", a.add)
		h.Watch("b", func(Entry) {})
		settle()
		notFound := &jetstream.APIError{Code: 404, ErrorCode: jetstream.JSErrCodeStreamNotFound}
		for round := 1; round <= 2; round++ {
			s.set(func(s *fakeStream) { s.readErr, s.openErr = notFound, nats.ErrStreamNotFound })
			s.end()
			// Whoever looked after the first report may have been told something else.
			for range 3 {
				before := doubts.Load()
				time.Sleep(2 * maxOpenRetry)
				synctest.Wait()
				if doubts.Load() == before {
					t.Fatalf("round %d: not reported any more, after %d reports", round, before)
				}
			}
			s.set(func(s *fakeStream) { s.readErr, s.openErr = nil, nil })
			s.put("a", fmt.Sprintf("again%d", round))
			time.Sleep(2 * maxOpenRetry)
			synctest.Wait()
			before := doubts.Load()
			time.Sleep(2 * maxOpenRetry)
			synctest.Wait()
			if n := doubts.Load() - before; n > 0 {
				t.Errorf("%d reports of a bucket that is there", n)
			}
		}
		a.want(t, "a1 again1 again2")
	})
}
