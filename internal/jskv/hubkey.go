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

// watchedKey is the state of one registered key in a hub. Hub.mu guards its fields. It lives from the key's
// first registration to its last stop; a later registration makes a new one.
type watchedKey struct {
	name    string
	regs    []*registration
	waiters int  // registrations made by Watch
	dead    bool // removed from Hub.keys

	entry   Entry  // last state delivered
	version uint64 // counts the entries; 0 while nothing is known
	newest  uint64 // highest revision seen, also after the key became absent

	group    *group // its watcher; nil while it has none
	watchRev uint64 // highest revision that this group has delivered
	joined   bool   // it joined an open group, which has no first value for it

	checked   streamMark // state of the stream when a read last confirmed the entry
	forceRead bool       // read it when it is due, whatever the stream's state
	due       time.Time  // of the next poll
	heapIndex int
	reading   bool
	urgent    bool // in Hub.urgent, or to be read again when the present read ends
}

// addKey starts watching a key.
func (h *Hub) addKey(name string) *watchedKey {
	k := &watchedKey{name: name}
	h.keys[name] = k
	h.schedule(k, firstPoll)
	h.checkStreamWithin(h.restInterval)
	for _, g := range h.groups {
		if g.accepts(name) {
			// The watcher is open already: it reports changes from now on, and a read gets the present state.
			h.join(k, g)
			return k
		}
	}
	h.pending = append(h.pending, k)
	if h.failures > 0 {
		h.schedule(k, 0) // the next attempt to open a watcher may be far away
	}
	pause.Wake(h.wakeOpener)
	return k
}

// removeKey stops watching a key.
func (h *Hub) removeKey(k *watchedKey) {
	if k.dead || h.closed {
		return
	}
	k.dead = true
	delete(h.keys, k.name)
	heap.Remove(&h.polls, k.heapIndex)
	h.detach(k)
	if len(h.keys) == fewKeys { // from now on each key is read by itself
		for _, k := range h.keys {
			h.schedule(k, h.pollInterval(k))
		}
	}
}

// addWaiter counts one more waiter of the key.
func (h *Hub) addWaiter(k *watchedKey) {
	if k.waiters++; k.waiters == 1 {
		h.waitedKeys++
		if k.version > 0 {
			h.schedule(k, h.interval)
		}
		if h.waitedKeys == fewKeys+1 { // from now on the hub asks for the stream's state, soon for the first time
			h.checkStreamWithin(h.interval)
		}
	}
}

// removeWaiter is the inverse of addWaiter.
func (h *Hub) removeWaiter(k *watchedKey) {
	if k.waiters--; k.waiters > 0 {
		return
	}
	if h.waitedKeys--; h.waitedKeys == fewKeys {
		for _, k := range h.keys {
			if k.waiters > 0 {
				h.schedule(k, h.interval)
			}
		}
	}
}

// join adds a key to an open group.
func (h *Hub) join(k *watchedKey, g *group) {
	h.attach(k, g)
	k.joined = true
	h.readNow(k)
}

// attach moves a key to a group.
func (h *Hub) attach(k *watchedKey, g *group) {
	h.detach(k)
	k.group, k.watchRev, k.joined = g, 0, false
	g.keyCount++
}

func (h *Hub) detach(k *watchedKey) {
	g := k.group
	if g == nil {
		return
	}
	k.group = nil
	if g.keyCount--; g.keyCount == 0 {
		g.emptySince = time.Now()
		pause.Wake(h.wakeOpener)
	}
	if g.wholeBucket() && !g.retiring && len(h.keys) < leaveWholeBucket {
		pause.Wake(h.wakeOpener) // few enough keys for groups again
	}
}

// applyWatched handles an entry that a watcher delivered. It may be any watcher, not only that of the key's present
// group: a revision that was seen was committed.
func (h *Hub) applyWatched(g *group, k *watchedKey, e Entry) {
	if k.group == g {
		k.watchRev = max(k.watchRev, e.Revision)
	}
	switch {
	case e.Revision > k.newest:
		h.setEntry(k, e)
	case e.Revision == k.newest && k.entry.Revision == 0:
		// A read has found the key absent since. Either that leader was behind, or this watcher's replica is.
		h.readNow(k)
	}
}

// applyRead handles the result of a leader read. before is the newest revision that was known when the read began. missed
// is whether the key's watcher has not delivered this entry yet.
func (h *Hub) applyRead(k *watchedKey, e Entry, before uint64) (missed bool) {
	if k.joined {
		// The watcher delivers no first value for this key, only later changes.
		k.joined = false
		k.watchRev = max(k.watchRev, e.Revision)
	}
	switch {
	case e.Revision == 0 && k.newest != before:
		// The watcher delivered an entry while the read was under way. The
		// read may have been answered before that entry was written.
		h.readNow(k)
	case e.Revision == 0 && k.version > 0 && k.entry.Revision == 0:
		// Absent, as before.
	case e.Revision == 0, e.Revision > k.newest:
		h.setEntry(k, e)
	case e.Revision == k.newest && k.entry.Revision == 0:
		h.setEntry(k, e) // the absence was stale
	}
	return k.group != nil && e.Revision > k.watchRev
}

// setEntry makes e the key's state and delivers it to all registrations.
func (h *Hub) setEntry(k *watchedKey, e Entry) {
	k.entry = e
	k.newest = max(k.newest, e.Revision)
	k.version++
	for _, r := range k.regs {
		h.enqueue(r)
	}
}

// validKey reports whether a watcher on key watches this one key and no other.
// The server and nats.go refuse a whole group for one invalid key in it.
func validKey(key string) bool {
	return keyPattern.MatchString(key) && key[0] != '.' && key[len(key)-1] != '.' && !strings.Contains(key, "..")
}

var keyPattern = regexp.MustCompile(`^[-/_=.a-zA-Z0-9]+$`)

const (
	// reconnectSpread is the time over which watchers are replaced after a
	// reconnect, since a restarted server gets all its clients at once.
	reconnectSpread = 200 * time.Millisecond

	// goneProbe is the key to read to find out whether the bucket exists. It is valid and need not exist.
	goneProbe = "-"
)

// goneChecks are the pauses before each check for the bucket after the server
// has announced its deletion or change: the announcement comes before the work is done.
var goneChecks = [...]time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, time.Second}

// listen starts the goroutine that handles reconnects and announcements of the stream's deletion or change, and
// listens to requests to purge the stream: no watcher tells of what they remove. All of these are hints that come before the
// next poll. Without permission to subscribe to them, the hub works without them.
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
	if sub, err := nc.Subscribe(apiStreamPurge+h.bucket.stream, func(*nats.Msg) { h.purgeRequested() }); err == nil {
		subs = append(subs, sub)
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

// reconnected replaces all watchers and has all keys read soon: entries may have been missed, and the server has deleted a
// consumer whose client was away for more than 5 s.
func (h *Hub) reconnected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.nextOpen = 0, time.Time{}
	for _, g := range h.groups {
		h.breakGroup(g, pause.Near(reconnectSpread))
	}
	for _, k := range h.keys {
		if k.waiters > 0 || h.pollInterval(k) < never {
			h.schedule(k, reconnectSpread)
		}
	}
	h.checkStreamWithin(reconnectSpread)
	pause.Wake(h.wakeOpener)
}

// checkGone handles an announcement that the bucket is deleted or changed. If it is found, it
// may still be another one of the same name.
func (h *Hub) checkGone(ctx context.Context) {
	h.onDoubt() // at once, so that the session stops trusting what it knew
	for _, after := range goneChecks {
		if !pause.For(ctx, after) {
			return
		}
		_, err := pause.Within(ctx, readTimeout, func(ctx context.Context) (Entry, error) { return h.bucket.Get(ctx, goneProbe) })
		if errors.Is(err, ErrBucketGone) {
			h.bucketGone()
			return
		}
		h.onDoubt()
	}
}

// bucketGone notes and reports that the bucket is gone. The watchers follow a deleted stream. Replacing them
// is how the hub finds a new stream of the same name.
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
	h.onDoubt()
}
