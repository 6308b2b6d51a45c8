package jskv

import (
	"container/heap"
	"context"
	"errors"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/pause"
)

// watchedKey is what a hub knows about one registered key. Its fields are guarded by Hub.mu. It lives from the key's
// first registration to its last stop; a later registration begins anew.
type watchedKey struct {
	name string
	regs []*registration
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
	k := &watchedKey{name: name}
	h.keys[name] = k
	h.schedule(k, firstPoll)
	for _, g := range h.groups {
		if g.accepts(name) {
			// The watcher has been there before: it reports changes from now on, and a read tells what was.
			h.join(k, g)
			return k
		}
	}
	h.pending = append(h.pending, k)
	if h.failures > 0 {
		h.schedule(k, 0) // it may be long before a watcher is tried again
	}
	pause.Wake(h.wakeOpener)
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
	h.readNow(k)
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
		pause.Wake(h.wakeOpener)
	}
	if g.wholeBucket() && !g.retiring && len(h.keys) < wideKeys {
		pause.Wake(h.wakeOpener) // few enough for groups again
	}
}

// fromWatch takes in an entry that a watcher delivered. Any watcher will do, not only the key's present group: a
// revision that was seen was committed. Lock held.
func (h *Hub) fromWatch(g *group, k *watchedKey, e Entry) {
	if k.group == g {
		k.watchRev = max(k.watchRev, e.Revision)
	}
	switch {
	case e.Revision > k.newest:
		h.set(k, e)
	case e.Revision == k.newest && k.entry.Revision == 0:
		// A read has found the key absent since. Either that leader was behind, or this watcher's replica is.
		h.readNow(k)
	}
}

// fromRead takes in what a leader read found. before is the newest revision that was known when the read began. It
// reports whether the key's watcher still owes this entry. Lock held.
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
		h.readNow(k)
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

const (
	// reconnectSpread is over how long the watchers are replaced after a
	// reconnect, since a restarted server gets all its clients at once.
	reconnectSpread = 200 * time.Millisecond

	// goneProbe is a key to read when the question is only whether the bucket exists. It is valid and need not exist.
	goneProbe = "-"
)

// goneChecks are the pauses before each look for the bucket after the server
// has announced its end or its change, which it does when that is not over yet.
var goneChecks = [...]time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, time.Second}

// listen starts the goroutine that hears of reconnects and of the stream's deletion or change. The announcement of
// these is a hint that saves waiting for the next poll: without permission to subscribe to it, it is done without.
func (h *Hub) listen(ctx context.Context) {
	nc := h.bucket.nc
	connected := nc.StatusChanged(nats.CONNECTED)
	changed := make(chan *nats.Msg, 8)
	var subs []*nats.Subscription
	for _, what := range []string{"DELETED.", "UPDATED."} {
		if sub, err := nc.ChanSubscribe("$JS.EVENT.ADVISORY.STREAM."+what+h.bucket.stream, changed); err == nil {
			subs = append(subs, sub)
		}
	}
	h.done.Go(func() {
		defer nc.RemoveStatusListener(connected)
		for _, sub := range subs {
			defer func() { _ = sub.Unsubscribe() }()
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-connected:
				h.reconnected()
			case <-changed:
				h.checkGone(ctx)
			}
		}
	})
}

// reconnected replaces all watchers and has all keys read soon: entries may have been missed, and a consumer that was
// without its client for more than 5 s does not exist any more.
func (h *Hub) reconnected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.nextOpen = 0, time.Time{}
	for _, g := range h.groups {
		h.breakGroup(g, pause.Near(reconnectSpread))
	}
	for _, k := range h.keys {
		if k.hot > 0 || h.pace(k) < never {
			h.schedule(k, reconnectSpread)
		}
	}
	h.lookWithin(reconnectSpread)
	pause.Wake(h.wakeOpener)
}

// checkGone follows an announcement that the bucket is deleted or changed. One that
// is found may be another by the same name.
func (h *Hub) checkGone(ctx context.Context) {
	h.doubt() // at once, for who goes by what was true before
	for _, after := range goneChecks {
		if !pause.For(ctx, after) {
			return
		}
		rctx, cancel := context.WithTimeout(ctx, readTimeout)
		_, err := h.bucket.Get(rctx, goneProbe)
		cancel()
		if errors.Is(err, ErrBucketGone) {
			h.bucketGone()
			return
		}
		h.doubt()
	}
}

// bucketGone notes and reports that the bucket is gone. The watchers follow a stream that is no more; replacing them
// is how the hub learns of a new one by the same name.
func (h *Hub) bucketGone() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	if !h.gone {
		h.gone = true
		for _, g := range h.groups {
			h.breakGroup(g, pause.Near(openRetry))
		}
	}
	h.mu.Unlock()
	h.doubt()
}
