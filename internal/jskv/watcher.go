package jskv

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// groupIdle is how long a group without keys stays open, because a key that
	// was waited for is often waited for again soon.
	groupIdle = 2 * time.Second

	// groupProven is how long a watcher must have lived for its end or its gap
	// to count as the first.
	groupProven = 30 * time.Second

	// closeGrace is how long the end of a stopped watcher is waited for.
	closeGrace = time.Second

	// stopLimit is how long the deletion of a consumer is waited for. The server
	// deletes one by itself 5 s after its client has gone.
	stopLimit = time.Second
)

// group is one KV watcher and the keys it serves. Its fields are guarded by
// Hub.mu, except those that never change.
//
// What lies under a watcher (nats.go 1.55): an ordered push consumer, ephemeral,
// one replica in memory, on whichever replica of the stream the server chose.
//
//   - The consumer is deleted, or its server dies: no message says so. nats.go
//     misses the heartbeats (every 5 s) and makes a new consumer from the last
//     delivered revision on, 10 to 20 s later. Until then nothing arrives.
//   - The connection drops: nats.go subscribes again on reconnecting. The server
//     keeps the consumer for 5 s without interest; after that it is the case
//     above. In between, a gap is noticed at the next message or heartbeat.
//   - The stream is deleted: the same heartbeats are missed, then making the
//     consumer fails and the channel of updates is closed. When that request
//     merely times out, it is tried again after another 10 to 20 s of silence.
//   - The connection is closed: the channel is closed.
//
// So silence is no news, and the hub asks the leader, replaces a watcher that misses
// something, and replaces all of them on reconnecting. Keys that are only followed
// and whose watcher falls silent without an end are left to nats.go's heartbeats for
// that long.
type group struct {
	filters map[string]struct{} // nil: every key of the bucket
	watcher jetstream.KeyWatcher
	cancel  context.CancelFunc
	opened  time.Time
	stopped chan struct{} // closed when the watcher has been told to stop

	live       int // keys whose group this is
	emptySince time.Time
	retiring   bool // about to be replaced: takes no more keys
	retired    bool // not in Hub.groups any more

	checked     mark // state of the stream before it was opened, and its first values are no older
	initialised bool // has delivered its first values
	verifying   bool // an entry it owes is being waited for
	broken      bool // to be replaced
	retryAt     time.Time
	troubles    int // replacements in a row that this watcher comes from
}

func (g *group) wide() bool { return g.filters == nil }

func (g *group) covers(key string) bool {
	if g.wide() {
		return true
	}
	_, ok := g.filters[key]
	return ok
}

// accepts reports whether a new key may join.
func (g *group) accepts(key string) bool {
	return !g.retiring && !g.broken && g.covers(key)
}

// penalty is the pause before the watcher is replaced: none for one that has
// worked for long, more for one that replaced a failed one itself.
func (g *group) penalty() time.Duration {
	if g.troubles == 0 || time.Since(g.opened) > groupProven {
		return 0
	}
	return backoff(g.troubles)
}

// breakGroup has a group replaced in about d, or sooner if that was decided
// already. It goes on delivering until then. Lock held.
func (h *Hub) breakGroup(g *group, d time.Duration) {
	at := time.Now().Add(d)
	if g.retired || g.broken && g.retryAt.Before(at) {
		return
	}
	g.broken, g.retryAt = true, at
	wake(h.wakeOpener)
}

// retire stops a group's watcher. The caller removes it from Hub.groups.
// Lock held.
func (h *Hub) retire(g *group) {
	if g.retired {
		return
	}
	g.retired = true
	h.done.Go(g.stop)
}

// stop deletes the consumer, which asks the server, and ends the goroutine that
// nats.go keeps for the context. On a silent link nats.go waits up to 5 s for the
// answer, in a goroutine that is then left to itself.
func (g *group) stop() {
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		_ = g.watcher.Stop()
	}()
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-deleted:
	case <-limit.C:
	}
	g.cancel()
	close(g.stopped)
}

// follow takes in what a group's watcher delivers until it ends. It reads on
// after stop, because nats.go's own goroutine blocks on a full channel.
func (h *Hub) follow(g *group) {
	stopped := g.stopped
	var giveUp <-chan time.Time
	for {
		select {
		case e, ok := <-g.watcher.Updates():
			if !ok {
				h.ended(g)
				return
			}
			h.deliver(g, e)
		case <-stopped:
			// nats.go closes the channel, unless the connection was closed at
			// the very moment the watcher was opened.
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
	h.fromWatch(g, k, newEntry(e))
}

// initialise notes that the first values are complete. A key without one is
// probably absent, but the watcher may live on a replica that is behind, so the
// leader is asked. Lock held.
func (h *Hub) initialise(g *group) {
	g.initialised = true
	for k := range h.keysOf(g) {
		switch {
		case k.watchRev > 0 || k.joined:
		case k.version == 0:
			h.urge(k)
		case k.entry.Revision > 0:
			h.readAnyway(k, 0) // known once, and now nothing
		}
	}
}

// ended replaces a watcher whose channel was closed by somebody else than the hub.
func (h *Hub) ended(g *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.breakGroup(g, g.penalty())
}
