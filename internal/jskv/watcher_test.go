package jskv

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// settle lets the hub do all immediate work, such as urgent reads and openings,
// but no poll.
func settle() {
	time.Sleep(20 * time.Millisecond)
	synctest.Wait()
}

func TestWatchDeliversStateThenChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		var a, b journal
		h.Watch("a", a.add)
		h.Watch("b", b.add)
		settle()
		a.want(t, "a1")
		b.want(t, "absent")
		s.put("a", "a2")
		s.put("b", "b1")
		synctest.Wait()
		a.want(t, "a1 a2")
		b.want(t, "absent b1")
	})
}

func TestSecondRegistrationOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		var first, second journal
		stopFirst := h.Watch("a", first.add)
		settle()
		s.put("a", "a2")
		synctest.Wait()
		reads := s.get(func(s *fakeStream) int { return s.reads })
		stopSecond := h.Watch("a", second.add)
		synctest.Wait() // no time passes: the state is known
		second.want(t, "a2")
		if s.opened != 1 || s.reads != reads {
			t.Errorf("%d watchers and %d reads, want 1 and %d", s.opened, s.reads, reads)
		}
		stopFirst()
		stopFirst()
		s.put("a", "a3")
		synctest.Wait()
		first.want(t, "a1 a2")
		second.want(t, "a2 a3")
		if st := h.Stats(); st.Keys != 1 || st.Registrations != 1 {
			t.Errorf("stats %+v, want one key and one registration", st)
		}
		stopSecond()
		if st := h.Stats(); st.Keys != 0 || st.Registrations != 0 {
			t.Errorf("stats %+v, want no key and no registration", st)
		}
		time.Sleep(groupIdle + time.Millisecond)
		synctest.Wait()
		if st := h.Stats(); st.Watchers != 0 || len(s.watchers) != 0 {
			t.Errorf("%d watchers open without keys", len(s.watchers))
		}
	})
}

func TestSilentWatcherIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		s.put("b", "b1")
		h := s.hub(t)
		var a, b journal
		h.Watch("a", a.add)
		h.Watch("b", b.add)
		settle()
		s.putSilently("a", "a2")
		time.Sleep(DefaultPollInterval*5/4 + time.Millisecond)
		a.want(t, "a1 a2") // the poll delivers at once
		time.Sleep(watchGrace + 10*time.Millisecond)
		synctest.Wait()
		st := h.Stats()
		if st.Missed != 1 || st.Reopened != 1 || st.Watchers > 2 {
			t.Errorf("stats %+v, want one missed entry and one watcher replaced", st)
		}
		s.put("b", "b2")
		synctest.Wait()
		b.want(t, "b1 b2")
	})
}

// An entry that is only late does not cost a watcher.
func TestLateWatcherIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		var a journal
		h.Watch("a", a.add)
		settle()
		s.putSilently("a", "a2")
		for a.String() == "a1" {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(watchGrace - 10*time.Millisecond)
		s.replay(s.entries["a"])
		time.Sleep(DefaultPollInterval)
		a.want(t, "a1 a2")
		if st := h.Stats(); st.Reopened != 0 || st.Missed != 0 {
			t.Errorf("stats %+v, want the watcher kept", st)
		}
	})
}

func TestEndedWatcherIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		var a journal
		h.Watch("a", a.add)
		settle()
		s.end()
		s.put("a", "a2")
		settle()
		a.want(t, "a1 a2")
		if st := h.Stats(); st.Reopened != 1 || st.Watchers != 1 {
			t.Errorf("stats %+v, want one watcher replaced", st)
		}
		// One that ends again and again is not opened in a tight loop.
		begin := s.opened
		until := time.Now().Add(10 * time.Second)
		for time.Now().Before(until) {
			s.end()
			time.Sleep(time.Millisecond)
		}
		if n := s.opened - begin; n > 20 {
			t.Errorf("%d watchers opened in 10 s", n)
		}
	})
}

func TestStopAndWatchInsideFn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		var stop func()
		var inner journal
		calls := 0
		assigned := make(chan struct{})
		stop = h.Watch("a", func(Entry) {
			<-assigned
			calls++
			stop()
			h.Watch("a", inner.add)
		})
		close(assigned)
		settle()
		s.put("a", "a2")
		synctest.Wait()
		if calls != 1 {
			t.Errorf("%d calls after stop, want 1 in all", calls)
		}
		inner.want(t, "a1 a2")
	})
}

// While fn runs, entries pile up to one call, of the newest, and calls of one
// registration never overlap.
func TestBusyFnGetsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		var a, other journal
		running := false
		h.Watch("a", func(e Entry) {
			if running {
				t.Error("two calls at a time")
			}
			running = true
			time.Sleep(100 * time.Millisecond)
			a.add(e)
			running = false
		})
		h.Watch("a", other.add)
		time.Sleep(200 * time.Millisecond)
		for i := range 5 {
			s.put("a", fmt.Sprint(i))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		a.want(t, "absent 0 4")
		other.want(t, "absent 0 1 2 3 4") // nor does a slow one hold up others
	})
}

// A registration that waits for a dispatcher when it is stopped is not called.
func TestStoppedInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		for range dispatchers {
			h.Watch("a", func(Entry) { time.Sleep(time.Second) })
		}
		settle()
		var late journal
		stop := h.Watch("a", late.add)
		synctest.Wait()
		stop()
		time.Sleep(5 * time.Second)
		late.want(t, "")
	})
}

func TestStopAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		var a journal
		stop := h.Watch("a", a.add)
		settle()
		h.Close()
		stop()
		s.put("a", "a1")
		time.Sleep(time.Minute)
		a.want(t, "absent")
		if st := h.Stats(); st.Registrations != 0 || st.Keys != 0 || st.Watchers != 0 {
			t.Errorf("stats %+v of a closed hub", st)
		}
	})
}

// nats.go delivers from a goroutine that blocks while the channel is full, also
// after Stop: a hub that did not read on would leave it behind.
func TestStoppedWatcherIsReadToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.inFlight = 5000
		h := s.hub(t)
		h.Watch("a", func(Entry) {})
		settle()
		h.Close()
	})
}
