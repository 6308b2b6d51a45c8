package jskv

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/pause"
)

const (
	// groupIdle is how long a group without keys stays open, because a key that
	// had waiters often has waiters again soon.
	groupIdle = 2 * time.Second

	// groupProven is how long a watcher must have lived before its end or its gap counts as a first failure.
	groupProven = 30 * time.Second

	// closeGrace is how long the hub waits for the end of a stopped watcher.
	closeGrace = time.Second

	// stopLimit is how long the hub waits for the deletion of a consumer. The server
	// deletes it by itself 5 s after its client has gone.
	stopLimit = time.Second
)

// group is one KV watcher and its keys. Hub.mu guards its fields, except those that never change.
//
// A watcher uses (nats.go 1.55) an ordered push consumer: ephemeral,
// with one replica in memory, on a replica of the stream that the server chose.
//
//   - The consumer is deleted, or its server dies: no message says so. nats.go
//     misses the heartbeats (every 5 s) and makes a new consumer from the last
//     delivered revision on, 10 to 20 s later. Until then nothing arrives.
//   - The connection drops: nats.go subscribes again after reconnecting. The server
//     keeps the consumer for 5 s without interest; after that it is the case
//     above. Before that, nats.go notices a gap at the next message or heartbeat.
//   - The stream is deleted: nats.go misses the heartbeats, fails to make a
//     consumer and closes the channel of updates. If that request
//     only times out, it tries again after another 10 to 20 s.
//   - The connection is closed: the channel is closed.
//
// So "no message" does not mean "no change". The hub asks the leader, replaces a watcher that misses an entry, and
// replaces all watchers after a reconnect. If the watcher of keys that are only followed stops delivering without
// an end, the hub relies on nats.go's heartbeats for that time.
type group struct {
	filters map[string]bool // the keys that it follows; nil: every key of the bucket
	watcher jetstream.KeyWatcher
	cancel  context.CancelFunc
	opened  time.Time
	stopped chan struct{} // closed when the watcher was told to stop

	keyCount   int // keys of this group
	emptySince time.Time
	retiring   bool // to be replaced soon: takes no more keys
	retired    bool // removed from Hub.groups

	checked     streamMark // state of the stream before it was opened; its first values are at least as new
	initialised bool       // it has delivered its first values
	verifying   bool       // a goroutine waits for an entry that it has not delivered yet
	broken      bool       // to be replaced
	retryAt     time.Time
	failures    int // replacements in a row up to this watcher
}

func (g *group) wholeBucket() bool { return g.filters == nil }

// accepts reports whether a new key may join.
func (g *group) accepts(key string) bool {
	return !g.retiring && !g.broken && (g.wholeBucket() || g.filters[key])
}

// reopenDelay is the pause before the watcher is replaced: none if it has
// worked for long, growing if it has itself replaced a failed one.
func (g *group) reopenDelay() time.Duration {
	if g.failures == 0 || time.Since(g.opened) > groupProven {
		return 0
	}
	return backoff(g.failures)
}

// breakGroup has a group replaced in about d, or at an earlier time that was set before. The group delivers until then.
func (h *Hub) breakGroup(g *group, d time.Duration) {
	at := time.Now().Add(d)
	if g.retired || g.broken && g.retryAt.Before(at) {
		return
	}
	g.broken, g.retryAt = true, at
	pause.Wake(h.wakeOpener)
}

// retire stops a group's watcher. The caller removes the group from Hub.groups.
func (h *Hub) retire(g *group) {
	if g.retired {
		return
	}
	g.retired = true
	h.done.Go(g.stop)
}

// stop deletes the consumer by a request to the server, and ends the goroutine that nats.go keeps for the context. On a
// silent link nats.go waits up to 5 s for the answer, in a goroutine that stop does not wait for.
func (g *group) stop() {
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		_ = g.watcher.Stop()
	}()
	pause.Until(context.Background(), stopLimit, deleted)
	g.cancel()
	close(g.stopped)
}

// follow handles what a group's watcher delivers until it ends. It goes on reading
// after stop, because nats.go's own goroutine blocks on a full channel.
func (h *Hub) follow(g *group) {
	stopped := g.stopped
	var giveUp <-chan time.Time
	for {
		select {
		case e, ok := <-g.watcher.Updates():
			if !ok {
				h.mu.Lock()
				h.breakGroup(g, g.reopenDelay())
				h.mu.Unlock()
				return
			}
			h.deliver(g, e)
		case <-stopped:
			// nats.go closes the channel, unless the connection was closed just when the watcher was opened.
			stopped, giveUp = nil, time.After(closeGrace)
		case <-giveUp:
			return
		}
	}
}

func (h *Hub) deliver(g *group, e jetstream.KeyValueEntry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e == nil {
		h.initialise(g)
		return
	}
	k := h.keys[e.Key()]
	if k == nil {
		return
	}
	h.applyWatched(g, k, newEntry(e))
}

// initialise notes that the first values are complete. A key without one is probably absent, but the watcher's
// replica may be behind, so the hub asks the leader.
func (h *Hub) initialise(g *group) {
	g.initialised = true
	for k := range h.keysOf(g) {
		switch {
		case k.watchRev > 0 || k.joined:
		case k.version == 0:
			h.readNow(k)
		case k.entry.Revision > 0:
			h.forceReadIn(k, 0) // an entry was known, and the watcher has none
		}
	}
}

func newEntry(e jetstream.KeyValueEntry) Entry {
	entry := Entry{Key: e.Key(), Revision: e.Revision(), Created: e.Created()}
	if e.Operation() == jetstream.KeyValuePut {
		entry.Value = e.Value()
	} else {
		entry.Deleted = true
	}
	return entry
}

// shortestWait is how long Open waits for an answer on a fast link before it repeats the request.
const shortestWait = 250 * time.Millisecond

// link remembers how long the last answer during Open took, so that a slow link
// costs one repetition, and not one for each request.
type link struct {
	took      atomic.Int64
	clustered bool
}

// wait returns how long to wait for the first answer.
func (l *link) wait() time.Duration {
	return min(max(shortestWait, 2*time.Duration(l.took.Load())), apiTimeout)
}

// startTime is how long a server of a cluster may need after its start to find
// JetStream. Until then a request gets "no responders".
const startTime = 3 * time.Second

// starting reports whether a request that was first sent at begun and got "no responders" may still succeed.
func (l *link) starting(begun time.Time) bool {
	return l.clustered && time.Since(begun) < startTime
}
