package jskv

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

const (
	// groupIdle is how long a group without keys stays open, because a key that
	// was waited for is often waited for again soon.
	groupIdle = 2 * time.Second

	// groupProven is how long a watcher must have lived for its end or its gap to count as the first.
	groupProven = 30 * time.Second

	// closeGrace is how long the end of a stopped watcher is waited for.
	closeGrace = time.Second

	// stopLimit is how long the deletion of a consumer is waited for. The server
	// deletes one by itself 5 s after its client has gone.
	stopLimit = time.Second
)

// group is one KV watcher and the keys it serves. Its fields are guarded by Hub.mu, except those that never change.
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
// So silence is no news, and the hub asks the leader, replaces a watcher that misses something, and replaces all of
// them on reconnecting. Keys that are only followed and whose watcher falls silent without an end are left to
// nats.go's heartbeats for that long.
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
	failures    int // replacements in a row that this watcher comes from
}

func (g *group) wholeBucket() bool { return g.filters == nil }

func (g *group) covers(key string) bool {
	if g.wholeBucket() {
		return true
	}
	_, ok := g.filters[key]
	return ok
}

// accepts reports whether a new key may join.
func (g *group) accepts(key string) bool { return !g.retiring && !g.broken && g.covers(key) }

// reopenDelay is the pause before the watcher is replaced: none for one that has
// worked for long, more for one that replaced a failed one itself.
func (g *group) reopenDelay() time.Duration {
	if g.failures == 0 || time.Since(g.opened) > groupProven {
		return 0
	}
	return backoff(g.failures)
}

// breakGroup has a group replaced in about d, or sooner if that was decided
// already. It goes on delivering until then. Lock held.
func (h *Hub) breakGroup(g *group, d time.Duration) {
	at := time.Now().Add(d)
	if g.retired || g.broken && g.retryAt.Before(at) {
		return
	}
	g.broken, g.retryAt = true, at
	pause.Wake(h.wakeOpener)
}

// retire stops a group's watcher. The caller removes it from Hub.groups. Lock held.
func (h *Hub) retire(g *group) {
	if g.retired {
		return
	}
	g.retired = true
	h.done.Go(g.stop)
}

// stop deletes the consumer, which asks the server, and ends the goroutine that nats.go keeps for the context. On a
// silent link nats.go waits up to 5 s for the answer, in a goroutine that is then left to itself.
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
			// nats.go closes the channel, unless the connection was closed at the very moment the watcher was opened.
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

// initialise notes that the first values are complete. A key without one is probably absent, but the watcher may live
// on a replica that is behind, so the leader is asked. Lock held.
func (h *Hub) initialise(g *group) {
	g.initialised = true
	for k := range h.keysOf(g) {
		switch {
		case k.watchRev > 0 || k.joined:
		case k.version == 0:
			h.readNow(k)
		case k.entry.Revision > 0:
			h.readAnyway(k, 0) // known once, and now nothing
		}
	}
}

// ended replaces a watcher whose channel was closed by somebody else than the hub.
func (h *Hub) ended(g *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.breakGroup(g, g.reopenDelay())
}

// Follow calls fn with the latest entry of every key that matches the KV filter, delete markers too, and then with
// every change, until ctx ends or fn returns an error, which is Follow's then. Entries that have come together are
// given together. complete is false while first values are still to come, and true from the call on that has the last
// of them, which may have none.
//
// It is what one KV watcher tells, see group: a replica may be behind, and after the
// loss of the consumer nothing comes for up to 20 s. Who has to miss nothing for longer
// than a time begins anew after it. Errors: kv.ErrUnavailable, and the context's.
func (b *Bucket) Follow(ctx context.Context, filter string, fn func(entries []Entry, complete bool) error) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow := time.AfterFunc(initGrace, cancel)
	defer slow.Stop()
	w, err := b.kv.Watch(wctx, filter)
	if err != nil {
		return fmt.Errorf("%w: changes of %s: %w", kv.ErrUnavailable, b.name, errors.Join(err, ctx.Err()))
	}
	defer func() { _ = w.Stop() }()
	complete := false
	for {
		var batch []Entry
		take := func(e jetstream.KeyValueEntry) {
			if e == nil {
				complete = true
				slow.Stop()
				return
			}
			if !complete {
				slow.Reset(initGrace)
			}
			batch = append(batch, newEntry(e))
		}
		select {
		case <-wctx.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: changes of %s: the first values do not come", kv.ErrUnavailable, b.name)
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("%w: changes of %s: watcher closed", kv.ErrUnavailable, b.name)
			}
			take(e)
		}
		for more := true; more; {
			select {
			case e, ok := <-w.Updates():
				if more = ok; ok { // else it is met again above
					take(e)
				}
			default:
				more = false
			}
		}
		if err := fn(batch, complete); err != nil {
			return err
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

// shortestWait is how long an opening waits for an answer on a fast link before it asks again.
const shortestWait = 250 * time.Millisecond

// link remembers how long the last answer to an opening took, so that a slow link
// costs it a repetition once, and not with every request. nil remembers nothing.
type link struct {
	took      atomic.Int64
	clustered bool
}

// wait returns how long to wait for the first answer.
func (l *link) wait() time.Duration {
	if l == nil {
		return shortestWait
	}
	return min(max(shortestWait, 2*time.Duration(l.took.Load())), apiTimeout)
}

// startTime is how long a server of a cluster may need to know where JetStream is
// after it was started. Until then a request finds no responders.
const startTime = 3 * time.Second

// starting reports whether a request that was first sent at begun and found no responders may find them yet.
func (l *link) starting(begun time.Time) bool {
	return l != nil && l.clustered && time.Since(begun) < startTime
}

func (l *link) answered(took time.Duration) {
	if l != nil {
		l.took.Store(int64(took))
	}
}
