package jskv

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"
)

// crowd is a set of registered keys whose deliveries are checked.
type crowd struct {
	stream *fakeStream
	hub    *Hub
	stops  map[string]func()
	values map[string]*journal
}

func newCrowd(s *fakeStream, h *Hub) *crowd {
	return &crowd{stream: s, hub: h, stops: make(map[string]func()), values: make(map[string]*journal)}
}

func (c *crowd) join(key string) {
	if c.stops[key] == nil {
		j := &journal{}
		c.values[key] = j
		c.stops[key] = c.hub.Watch(key, j.add)
	}
}

func (c *crowd) follow(key string) {
	j := &journal{}
	c.values[key] = j
	c.stops[key] = c.hub.Follow(key, j.add)
}

func (c *crowd) leave(key string) {
	if stop := c.stops[key]; stop != nil {
		stop()
		delete(c.stops, key)
		delete(c.values, key)
	}
}

// unheard writes every key and returns one that its watcher did not deliver, if any.
// No time passes, so no poll delivers it.
func (c *crowd) unheard(value string) string {
	for key := range c.stops {
		c.stream.put(key, value)
	}
	synctest.Wait()
	for key, j := range c.values {
		if !strings.HasSuffix(j.String(), value) {
			return key
		}
	}
	return ""
}

func key(i int) string { return fmt.Sprintf("k%d", i) }

func TestKeysShareWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		c := newCrowd(s, h)
		for i := range 2000 {
			c.join(key(i))
			if i%7 == 0 {
				time.Sleep(openTime / 2) // some arrive while a watcher is being opened
			}
		}
		settle()
		if k := c.unheard("x"); k != "" {
			t.Errorf("no watcher on %s", k)
		}
		if st := h.Stats(); st.Watchers > maxGroups || st.Wide {
			t.Errorf("stats %+v, want at most %d watchers", st, maxGroups)
		}
		if s.most > maxGroups+maxGroups {
			t.Errorf("%d watchers at a time", s.most)
		}
	})
}

// Keys that come one by one are merged into few watchers.
func TestSmallGroupsAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		c := newCrowd(s, h)
		for i := range 100 {
			c.join(key(i))
			settle()
			if k := c.unheard(fmt.Sprint(i)); k != "" {
				t.Fatalf("after %d keys: no watcher on %s", i+1, k)
			}
		}
		if st := h.Stats(); st.Watchers > maxGroups || s.most > maxGroups+1 {
			t.Errorf("%d watchers, at one time %d, want at most %d and %d", st.Watchers, s.most, maxGroups, maxGroups+1)
		}
	})
}

// Watchers that would just fill one another are not merged for a key that finds no
// room in them then.
func TestMergingLeavesRoom(t *testing.T) {
	for _, live := range []int{1, groupKeys / 4, groupKeys / 3, groupKeys / 2, groupKeys - 1, groupKeys} {
		h := newHub(&Bucket{nc: &nats.Conn{}})
		for n := range maxGroups {
			g := &group{filters: make(map[string]bool)}
			for i := range live {
				k := h.addKey(key(n*groupKeys + i))
				g.filters[k.name] = true
				h.attach(k, g)
			}
			h.groups = append(h.groups, g)
		}
		h.pending = []*watchedKey{h.addKey("late")}
		o := h.planPending()
		if full := live == groupKeys; o.wholeBucket != full {
			t.Errorf("%d watchers of %d keys and another key: one for the whole bucket: %v", maxGroups, live, o.wholeBucket)
		} else if !full && (!slices.Contains(o.keys, "late") || len(o.keys) > groupKeys || len(o.replaces) == 0) {
			t.Errorf("%d watchers of %d keys and another key: %d keys from %d watchers", maxGroups, live, len(o.keys), len(o.replaces))
		}
	}
}

func TestManyKeysTakeOneWideWatcher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		s.put("stranger", "x")
		h := s.hub(t)
		c := newCrowd(s, h)
		for i := range maxKeys {
			c.join(key(i))
		}
		settle()
		if st := h.Stats(); st.Wide || st.Watchers > maxGroups {
			t.Fatalf("stats %+v with %d keys, want no wide watcher", st, maxKeys)
		}
		c.join(key(maxKeys))
		settle()
		if st := h.Stats(); !st.Wide || st.Watchers != 1 {
			t.Fatalf("stats %+v, want one wide watcher", st)
		}
		c.join("late")
		settle()
		if k := c.unheard("wide"); k != "" {
			t.Errorf("the wide watcher does not deliver %s", k)
		}
		for i := leaveWholeBucket - 1; i <= maxKeys; i++ {
			c.leave(key(i))
		}
		time.Sleep(groupIdle + 100*time.Millisecond)
		if st := h.Stats(); !st.Wide || st.Watchers != 1 {
			t.Errorf("stats %+v, want the wide watcher kept with %d keys", st, leaveWholeBucket)
		}
		c.leave("late")
		time.Sleep(groupIdle + 100*time.Millisecond)
		if k := c.unheard("groups"); k != "" {
			t.Errorf("no watcher on %s", k)
		}
		if st := h.Stats(); st.Wide || st.Watchers > maxGroups {
			t.Errorf("stats %+v, want groups again", st)
		}
	})
}

// Whatever keys come and go, every key has a watcher soon, and there are few watchers.
func TestEveryKeyIsCovered(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		type step struct{ first, keys, leave int }
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				first: rapid.IntRange(0, 600).Draw(rt, "first"),
				keys:  rapid.SampledFrom([]int{1, 2, 5, 100, 300}).Draw(rt, "keys"),
				leave: rapid.SampledFrom([]int{0, 1, 2, 3}).Draw(rt, "leave"),
			}
		}), 1, 15).Draw(rt, "steps")
		pause := time.Duration(rapid.SampledFrom([]int{0, 1, 20, 3000}).Draw(rt, "pause")) * time.Millisecond
		ends := rapid.Bool().Draw(rt, "ends")
		long := rapid.SampledFrom([]int{0, 100, 1500}).Draw(rt, "long")

		problem := ""
		synctest.Test(t, func(t *testing.T) {
			s := newFakeStream()
			h := s.hub(t)
			c := newCrowd(s, h)
			for n, step := range steps {
				for i := step.first; i < step.first+step.keys; i++ {
					k := key(i) + strings.Repeat("x", long)
					if step.leave > 0 && i%step.leave == 0 {
						c.leave(k)
					} else {
						c.join(k)
					}
				}
				if ends && n%5 == 4 {
					s.end()
				}
				time.Sleep(pause)
			}
			settle()
			time.Sleep(2 * time.Second) // penalties for watchers that ended
			if k := c.unheard("last"); k != "" {
				problem = "no watcher on " + k
			}
			if st := h.Stats(); st.Watchers > maxGroups+1 || st.Keys != len(c.stops) || st.Registrations != len(c.stops) {
				problem = fmt.Sprintf("stats %+v with %d keys", st, len(c.stops))
			}
		})
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// A key that the old watcher knows, and that comes back while a new one
// replaces it, must not stay behind with the old one.
func TestKeyReturnsWhileItsGroupIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStream()
		h := s.hub(t)
		c := newCrowd(s, h)
		c.join("first")
		time.Sleep(openTime / 2)
		c.join("a") // both wait for the opening, so they share the next watcher
		c.join("b")
		settle()
		c.leave("b")
		h.mu.Lock()
		for _, g := range h.groups {
			if g.filters["b"] {
				h.breakGroup(g, 0)
			}
		}
		h.mu.Unlock()
		time.Sleep(openTime / 2)
		c.join("b")
		settle()
		if k := c.unheard("x"); k != "" {
			t.Errorf("no watcher on %s", k)
		}
	})
}
