package jskv

import (
	"testing"
	"testing/synctest"
	"time"
)

// A key that comes back soon joins its old group, whose watcher does not deliver
// a value that was written in between.
func TestReturningKeyReadsItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		h := s.hub(t)
		h.Watch("a", func(Entry) {})()
		stop := h.Watch("a", func(Entry) {})
		settle()
		stop()
		s.put("a", "a2")
		synctest.Wait()
		var again journal
		h.Watch("a", again.add)
		synctest.Wait()
		again.want(t, "a2")
		time.Sleep(10 * time.Second) // the watcher need not deliver a2
		s.put("a", "a3")
		synctest.Wait()
		again.want(t, "a2 a3")
		if st := h.Stats(); s.opened != 1 || st.Missed != 0 {
			t.Errorf("%d watchers opened, %d entries missed, want 1 and 0", s.opened, st.Missed)
		}
	})
}

func TestOlderEntriesAreNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		old := s.entries["a"]
		s.put("a", "a2")
		h := s.hub(t)
		var a journal
		h.Watch("a", a.add)
		settle()
		s.replay(old)
		synctest.Wait()
		a.want(t, "a2")

		// A new watcher on a replica that is behind begins with the old entry.
		s.set(func(s *fakeStream) { s.stale = func(string) []Entry { return []Entry{old} } })
		s.end()
		settle()
		a.want(t, "a2")

		// So does a deposed leader that does not know it.
		current := s.entries["a"]
		s.set(func(s *fakeStream) { s.entries["a"] = old })
		time.Sleep(2 * DefaultPollInterval)
		a.want(t, "a2")

		s.set(func(s *fakeStream) { s.entries["a"], s.stale = current, nil })
		s.put("a", "a3")
		synctest.Wait()
		a.want(t, "a2 a3")
	})
}

func TestAbsenceFoundByARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		e := s.entries["a"]
		h := s.hub(t)
		var a journal
		h.Watch("a", a.add)
		settle()
		s.vanish("a")
		time.Sleep(3 * DefaultPollInterval)
		a.want(t, "a1 absent") // once, whatever the number of polls

		// The same revision from a replica that is behind brings nothing back,
		s.replay(e)
		settle()
		a.want(t, "a1 absent")

		// but a leader read does: the absence was what was stale.
		s.set(func(s *fakeStream) { s.entries["a"] = e })
		time.Sleep(2 * DefaultPollInterval)
		a.want(t, "a1 absent a1")
	})
}

// A key without a first value may exist on the leader: the watcher's replica
// can be behind. Absence comes from the leader only.
func TestAbsenceIsConfirmedByTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("a", "a1")
		s.set(func(s *fakeStream) { s.hidden = func(string) bool { return true } })
		h := s.hub(t)
		var a journal
		h.Watch("a", a.add)
		settle()
		a.want(t, "a1")
	})
}

// A read that began before an entry was delivered can't undo it.
func TestAbsenceOvertakenByAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		var a journal
		wrote := false
		s.onRead = func(key string) {
			if !wrote {
				wrote = true
				s.put(key, "a1")
				time.Sleep(time.Millisecond) // the watcher is faster than the answer
			}
		}
		h.Watch("a", a.add)
		settle()
		time.Sleep(2 * DefaultPollInterval)
		a.want(t, "a1")
	})
}

func TestInvalidKeysAreNeverHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		var none, a journal
		for _, key := range []string{"", "*", ">", "a.*", "a.>", ".a", "a.", "a..b", "a b", "ü"} {
			h.Watch(key, none.add)()
			h.Watch(key, none.add)
		}
		h.Watch("a", a.add)
		s.put("a", "a1")
		settle()
		none.want(t, "")
		a.want(t, "a1")
		h.Close()
		h.Watch("a", none.add)()
		none.want(t, "")
	})
}
