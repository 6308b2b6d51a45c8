package jskv

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// cost is what a hub has asked of its stream.
type cost struct{ reads, looks, opened int }

func costOf(s *fakeStream) cost {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cost{s.reads, s.looks, s.opened}
}

// requests counts the closing of the watchers that others replace, too.
func (c cost) requests(since cost) int {
	return c.reads - since.reads + c.looks - since.looks + 2*(c.opened-since.opened)
}

func followMany(s *fakeStream, h *Hub, n int) *crowd {
	c := newCrowd(s, h)
	for i := range n {
		s.put(key(i), "1")
		c.follow(key(i))
	}
	return c
}

func TestFollowedKeysCostNothingAtRest(t *testing.T) {
	for _, n := range []int{1, 2, 3, 300, 2000, 10_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newFakeStream()
				c := followMany(s, s.hub(t), n)
				time.Sleep(15 * time.Minute) // each watcher is opened once more, for what changed while it was opened
				before := costOf(s)
				time.Sleep(10 * time.Minute)
				after := costOf(s)
				most := 2.0 // requests a minute
				if n <= fewKeys {
					most = 9
				}
				if per := float64(after.requests(before)) / 10; per > most {
					t.Errorf("%v requests a minute at rest: %+v, %+v", per, before, after)
				}
				if after.opened != before.opened || n > fewKeys && after.reads != before.reads {
					t.Errorf("%+v, then %+v: keys were read although nothing had changed", before, after)
				}
				for range 600 {
					time.Sleep(time.Second)
					s.put("another", "1")
				}
				busy := costOf(s)
				if per := busy.requests(after) / 10; per > 10 {
					t.Errorf("%d requests a minute while others write: %+v, %+v", per, after, busy)
				}
				if n > fewKeys && busy.opened == after.opened {
					t.Errorf("no watcher was opened anew in 10 min while others wrote")
				}
				c.values[key(n-1)].want(t, "1")
			})
		})
	}
}

// A purge of one subject sends nothing to a watcher. The hub may have heard the request.
func TestRemovalWithoutAMarkerIsNoticed(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3, 300, 2000, 10_000} {
		for _, c := range []struct {
			name   string
			heard  bool
			after  time.Duration // from the request to the removal
			within time.Duration
		}{
			{"unheard", false, 0, quietFactor * DefaultRestInterval},
			{"heard", true, 0, watchGrace},
			{"heard, and done late", true, 2 * watchGrace, DefaultRestInterval},
		} {
			if c.heard && n > 300 {
				continue
			}
			if n <= fewKeys {
				c.within = min(c.within, DefaultRestInterval)
			}
			t.Run(fmt.Sprint(n, " keys, ", c.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { removalIsNoticed(t, n, c.heard, c.after, c.within) })
			})
		}
	}
}

func removalIsNoticed(t *testing.T, n int, heard bool, after, within time.Duration) {
	s := newFakeStream()
	c := followMany(s, s.hub(t), n)
	for _, gone := range slices.Compact([]int{0, n / 2, n - 1}) {
		time.Sleep(10 * time.Minute) // until the credit of the time before is back
		k := key(gone)
		s.put(k, "2")
		synctest.Wait()
		if heard {
			c.hub.purgeRequested()
		}
		time.Sleep(after)
		s.vanish(k)
		time.Sleep(within*5/4 + time.Second)
		if got := c.values[k].String(); got != "1 2 absent" && got != "1 2 absent 2 absent" {
			t.Fatalf("%s was told %q, want that it is absent", k, got)
		}
		c.leave(k)
	}
}

func TestKeysThatAreWaitedForAreReadAfterAChangeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		c := newCrowd(s, h)
		for i := range 50 {
			s.put(key(i), "1")
			c.join(key(i))
		}
		time.Sleep(time.Minute)
		before := costOf(s)
		time.Sleep(10 * time.Minute)
		after := costOf(s)
		if after.reads != before.reads {
			t.Errorf("%d reads although nothing had changed", after.reads-before.reads)
		}
		s.putSilently(key(7), "2")
		time.Sleep(2 * DefaultPollInterval)
		c.values[key(7)].want(t, "1 2")
		synctest.Wait()
		if st := h.Stats(); st.Missed != 1 {
			t.Errorf("%d watchers replaced that missed an entry, want 1", st.Missed)
		}
	})
}

// One key with a waiter among many followed ones: only its own reads are in time.
func TestOneThatWaitsAmongManyThatFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		c := followMany(s, s.hub(t), 300)
		s.put("one", "1")
		c.follow("one")
		stop := c.hub.Watch("one", func(Entry) {})
		time.Sleep(20 * time.Minute)
		s.putSilently("one", "2")
		time.Sleep(DefaultPollInterval*5/4 + time.Second)
		c.values["one"].want(t, "1 2")
		stop()
		time.Sleep(20 * time.Minute)
		before := costOf(s)
		time.Sleep(10 * time.Minute)
		if n := costOf(s).reads - before.reads; n > 0 {
			t.Errorf("%d reads after nobody waited any more", n)
		}
	})
}

func TestFollowedKeysAreReadWhileNoWatcherOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 50
		s := newFakeStream()
		c := followMany(s, s.hub(t), keys)
		time.Sleep(time.Minute)
		s.set(func(s *fakeStream) { s.openErr = fmt.Errorf("maximum consumers limit reached") })
		s.end()
		time.Sleep(time.Minute)
		s.put(key(7), "2")
		time.Sleep(2*DefaultPollInterval + keys*time.Second/DefaultReadRate) // each in its time, and one after the other
		c.values[key(7)].want(t, "1 2")
	})
}

func TestBucketCreatedAgainOrSetBackIsReportedByItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		var doubts atomic.Int32
		followMany(s, s.hub(t, WithDoubt(func() { doubts.Add(1) })), 300)
		for n, change := range []func(*fakeStream){
			func(s *fakeStream) { s.created = time.Now() },
			func(s *fakeStream) { s.revision-- },
		} {
			time.Sleep(time.Minute)
			s.set(change)
			time.Sleep(quietFactor*DefaultRestInterval*5/4 + time.Second)
			synctest.Wait()
			if got := int(doubts.Load()); got != n+1 {
				t.Errorf("reported %d times after change %d, want once each", got, n+1)
			}
		}
	})
}
