package jskv

import (
	"container/heap"
	"context"
	"errors"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
)

const (
	// firstPoll is when a new key is read for the first time, if the watcher has delivered nothing until then.
	firstPoll = time.Second

	// readTimeout bounds one leader read, unless WithReadTimeout sets another value.
	readTimeout = 2 * time.Second

	// readRetry is the pause before a key without any known state is read again.
	readRetry = 250 * time.Millisecond

	// maxReads bounds the reads in flight.
	maxReads = 8

	// goneGap is the least time between two polls while the bucket is gone.
	goneGap = time.Second

	// watchGrace is how much later than a read a watcher may deliver an entry.
	// Watchers are on any replica, and a replica may be a little behind.
	watchGrace = 500 * time.Millisecond

	// initGrace is how long a watcher may take over its first values.
	initGrace = 10 * time.Second

	// never is the poll interval of a key that needs no polls.
	never = 1000 * time.Hour
)

// runPoller reads keys from the leader, each when it is due and urgent ones at once, and asks for the state of the
// stream. Short-lived goroutines send the requests, so that one slow answer does not delay the others.
func (h *Hub) runPoller(ctx context.Context) {
	slots := make(chan struct{}, maxReads)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		request, wait := h.nextRequest(time.Now())
		for request == nil {
			if !pause.Until(ctx, wait, h.wakePoller) {
				return
			}
			request, wait = h.nextRequest(time.Now())
		}
		h.done.Go(func() { request(ctx, func() { <-slots }) })
	}
}

// request sends one request to the leader and calls answered after that.
type request func(ctx context.Context, answered func())

// nextRequest returns the request to send now, or how long to wait.
func (h *Hub) nextRequest(now time.Time) (request, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k, wait := h.nextRead(now)
	if k != nil {
		k.reading = true
		before, state := k.newest, h.streamState
		return func(ctx context.Context, answered func()) { h.readKey(ctx, k, before, state, answered) }, 0
	}
	if h.checkingStream || len(h.keys) <= fewKeys {
		return nil, wait
	}
	if left := h.nextStreamCheck.Sub(now); left > 0 {
		return nil, min(wait, left)
	}
	h.checkingStream = true
	return h.checkStream, 0
}

// nextRead returns the key to read now, or how long to wait.
func (h *Hub) nextRead(now time.Time) (*watchedKey, time.Duration) {
	for len(h.urgent) > 0 {
		k := h.urgent[0]
		h.urgent[0] = nil
		h.urgent = h.urgent[1:]
		if k.dead || k.reading { // after the present read it is read again
			continue
		}
		k.urgent = false
		return k, 0
	}
	for len(h.polls) > 0 {
		k := h.polls[0]
		if wait := max(k.due.Sub(now), h.nextPoll.Sub(now)); wait > 0 {
			return nil, wait
		}
		needed := h.mustRead(k)
		k.forceRead = false
		h.schedule(k, h.pollInterval(k))
		if k.reading || !needed {
			continue
		}
		gap := h.readGap
		if h.gone {
			gap = max(gap, goneGap)
		}
		h.nextPoll = now.Add(gap)
		return k, 0
	}
	return nil, time.Hour
}

// mustRead reports whether a key that is due has to be read.
func (h *Hub) mustRead(k *watchedKey) bool {
	switch {
	case k.version == 0 || k.forceRead:
		return true
	case k.waiters > 0 && h.waitedKeys > fewKeys: // the stream's state has changed
		return k.checked != h.streamState || !h.streamState.known()
	}
	return h.pollInterval(k) < never
}

// pollInterval returns the time between two reads of the key, or never if the
// state of the stream shows when a read is needed.
func (h *Hub) pollInterval(k *watchedKey) time.Duration {
	switch {
	case k.version == 0, k.group == nil, k.group.broken, k.waiters > 0 && h.waitedKeys <= fewKeys:
		return h.interval
	case len(h.keys) <= fewKeys:
		return h.restInterval
	}
	return never
}

// readKey reads one key. If the read found an entry that the watcher has not delivered, it checks again after a
// while, and replaces the watcher if it still has not. before and state were known when the read began.
func (h *Hub) readKey(ctx context.Context, k *watchedKey, before uint64, state streamMark, answered func()) {
	e, err := pause.Within(ctx, h.readTimeout(), func(ctx context.Context) (Entry, error) { return h.bucket.Get(ctx, k.name) })
	answered()

	suspect := h.finishRead(k, e, err, before, state)
	if err == nil && e.Revision > 0 && e.Revision < before {
		h.onDoubt() // the bucket was set back, or this leader is behind
	}
	if errors.Is(err, ErrBucketGone) {
		h.bucketGone()
	}
	if suspect != nil && pause.For(ctx, watchGrace) {
		h.checkDelivered(suspect, k, e.Revision)
	}
}

// finishRead handles the result of a read. It returns the group that has not delivered the
// entry yet, unless that group is being checked already.
func (h *Hub) finishRead(k *watchedKey, e Entry, err error, before uint64, state streamMark) (suspect *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k.reading = false
	if k.dead || h.closed {
		return nil
	}
	if k.urgent { // requested while this read was under way
		k.urgent = false
		h.readNow(k)
	}
	if err != nil {
		if h.pollInterval(k) == never {
			h.forceReadIn(k, h.interval)
		} else if k.version == 0 {
			h.schedule(k, readRetry)
		}
		return nil
	}
	k.checked = state
	g := k.group
	if !h.applyRead(k, e, before) || g.broken || g.verifying {
		return nil
	}
	g.verifying = true
	return g
}

// checkDelivered replaces the watcher of a group that has not delivered revision rev of
// a key although a read found it some time ago.
func (h *Hub) checkDelivered(g *group, k *watchedKey, rev uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g.verifying = false
	if k.dead || k.group != g || k.watchRev >= rev {
		return
	}
	if !g.initialised && time.Since(g.opened) < initGrace {
		return // the first values, with this entry, are still to come
	}
	h.missed++
	h.breakGroup(g, g.reopenDelay())
}

// readNow has a key read at once.
func (h *Hub) readNow(k *watchedKey) {
	if k.dead || k.urgent {
		return
	}
	k.urgent = true
	if !k.reading {
		h.urgent = append(h.urgent, k)
		pause.Wake(h.wakePoller)
	}
}

// schedule has a key polled in about d, counted from now.
func (h *Hub) schedule(k *watchedKey, d time.Duration) {
	if k.dead {
		return
	}
	k.due = time.Now().Add(pause.Near(d))
	if k.heapIndex == 0 && (len(h.polls) == 0 || h.polls[0] != k) {
		heap.Push(&h.polls, k)
	} else {
		heap.Fix(&h.polls, k.heapIndex)
	}
	if k.heapIndex == 0 {
		pause.Wake(h.wakePoller)
	}
}

// forceReadIn has a key read in about d, whatever the state of the stream is.
func (h *Hub) forceReadIn(k *watchedKey, d time.Duration) {
	k.forceRead = true
	h.schedule(k, d)
}

// pollHeap orders keys by the time of their next poll.
type pollHeap []*watchedKey

func (p pollHeap) Len() int           { return len(p) }
func (p pollHeap) Less(i, j int) bool { return p[i].due.Before(p[j].due) }

func (p pollHeap) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].heapIndex, p[j].heapIndex = i, j
}

// Push adds a key; only container/heap calls it.
func (p *pollHeap) Push(x any) {
	k := x.(*watchedKey)
	k.heapIndex = len(*p)
	*p = append(*p, k)
}

// Pop removes the last key; only container/heap calls it.
func (p *pollHeap) Pop() any {
	old := *p
	k := old[len(old)-1]
	old[len(old)-1] = nil
	*p = old[:len(old)-1]
	return k
}
