package jskv

import (
	"container/heap"
	"regexp"
	"strings"
	"time"
)

// watchedKey is what a hub knows about one registered key. Its fields are
// guarded by Hub.mu. It lives from the key's first registration to its last
// stop; a later registration begins anew.
type watchedKey struct {
	name string
	regs map[*registration]struct{}
	hot  int  // registrations that wait
	dead bool // not in Hub.keys any more

	entry   Entry  // last state delivered
	version uint64 // of entry; 0 while nothing is known
	newest  uint64 // highest revision seen, also after entry became absent

	group    *group // covers the key; nil while it waits for one
	watchRev uint64 // highest revision that this group delivered
	joined   bool   // joined a group that was open already and knows no first value of it

	checked   mark      // state of the stream at which a read confirmed what is known
	doubted   bool      // to be read when it is due, whatever the stream's state
	due       time.Time // of the next poll
	heapIndex int
	reading   bool
	urgent    bool // waits in Hub.urgent, or is to be read again when reading ends
}

// addKey starts watching a key. Lock held.
func (h *Hub) addKey(name string) *watchedKey {
	k := &watchedKey{name: name, regs: make(map[*registration]struct{})}
	h.keys[name] = k
	h.schedule(k, firstPoll)
	for _, g := range h.groups {
		if g.accepts(name) {
			// The watcher has been there before: it reports changes from now
			// on, and a read tells what was.
			h.join(k, g)
			return k
		}
	}
	h.pending = append(h.pending, k)
	if h.failures > 0 {
		h.schedule(k, 0) // it may be long before a watcher is tried again
	}
	wake(h.wakeOpener)
	return k
}

// removeKey stops watching a key. Lock held.
func (h *Hub) removeKey(k *watchedKey) {
	if k.dead || h.closed {
		return
	}
	k.dead = true
	delete(h.keys, k.name)
	heap.Remove(&h.polls, k.heapIndex)
	h.detach(k)
	if len(h.keys) == fewKeys { // from now on each is read by itself
		for _, k := range h.keys {
			h.schedule(k, h.pace(k))
		}
	}
}

// heat notes that one more waits for the key. Lock held.
func (h *Hub) heat(k *watchedKey) {
	if k.hot++; k.hot == 1 {
		h.hot++
		if k.version > 0 {
			h.schedule(k, h.interval)
		}
		if h.hot == fewKeys+1 { // from now on the stream is asked, and soon
			h.lookWithin(h.interval)
		}
	}
}

// cool is the opposite of heat. Lock held.
func (h *Hub) cool(k *watchedKey) {
	if k.hot--; k.hot > 0 {
		return
	}
	if h.hot--; h.hot == fewKeys {
		for _, k := range h.keys {
			if k.hot > 0 {
				h.schedule(k, h.interval)
			}
		}
	}
}

// join puts a key into a group that has been open for some time. Lock held.
func (h *Hub) join(k *watchedKey, g *group) {
	h.attach(k, g)
	k.joined = true
	h.urge(k)
}

// attach moves a key to a group. Lock held.
func (h *Hub) attach(k *watchedKey, g *group) {
	h.detach(k)
	k.group, k.watchRev, k.joined = g, 0, false
	g.live++
}

func (h *Hub) detach(k *watchedKey) {
	g := k.group
	if g == nil {
		return
	}
	k.group = nil
	if g.live--; g.live == 0 {
		g.emptySince = time.Now()
		wake(h.wakeOpener)
	}
	if g.wide() && !g.retiring && len(h.keys) < wideKeys {
		wake(h.wakeOpener) // few enough for groups again
	}
}

// fromWatch takes in an entry that a watcher delivered. Any watcher will do,
// not only the key's present group: a revision that was seen was committed.
// Lock held.
func (h *Hub) fromWatch(g *group, k *watchedKey, e Entry) {
	if k.group == g {
		k.watchRev = max(k.watchRev, e.Revision)
	}
	switch {
	case e.Revision > k.newest:
		h.set(k, e)
	case e.Revision == k.newest && k.entry.Revision == 0:
		// A read has found the key absent since. Either that leader was behind,
		// or this watcher's replica is.
		h.urge(k)
	}
}

// fromRead takes in what a leader read found. before is the newest revision
// that was known when the read began. It reports whether the key's watcher
// still owes this entry. Lock held.
func (h *Hub) fromRead(k *watchedKey, e Entry, before uint64) (missed bool) {
	if k.joined {
		// No first value came from the watcher, so it owes only what is newer.
		k.joined = false
		k.watchRev = max(k.watchRev, e.Revision)
	}
	switch {
	case e.Revision == 0 && k.newest != before:
		// The watcher delivered an entry while the read was on its way, and the
		// read may have been answered before that entry was written.
		h.urge(k)
	case e.Revision == 0 && k.version > 0 && k.entry.Revision == 0:
		// Absent, as known.
	case e.Revision == 0, e.Revision > k.newest:
		h.set(k, e)
	case e.Revision == k.newest && k.entry.Revision == 0:
		h.set(k, e) // it was the absence that was stale
	}
	return k.group != nil && e.Revision > k.watchRev
}

// set makes e the key's state. Lock held.
func (h *Hub) set(k *watchedKey, e Entry) {
	k.entry = e
	k.newest = max(k.newest, e.Revision)
	h.announce(k)
}

// validKey reports whether a watcher on key sees this one key and no other.
// The server and nats.go refuse a whole group for one invalid key in it.
func validKey(key string) bool {
	return keyPattern.MatchString(key) && key[0] != '.' && key[len(key)-1] != '.' && !strings.Contains(key, "..")
}

var keyPattern = regexp.MustCompile(`^[-/_=.a-zA-Z0-9]+$`)
