package kv

import (
	"container/heap"
	"context"
	"errors"
	"time"
)

const (
	// firstPoll is when a new key is read for the first time, in case the
	// watcher has said nothing until then.
	firstPoll = time.Second

	// readTimeout bounds one leader read, unless WithReadTimeout says otherwise.
	readTimeout = 2 * time.Second

	// readRetry is the pause before a key of which nothing is known is read again.
	readRetry = 250 * time.Millisecond

	// maxReads bounds the reads in flight.
	maxReads = 8

	// goneGap is the least time between two polls while the bucket is gone.
	goneGap = time.Second

	// watchGrace is how much later than a read a watcher may deliver an entry.
	// Watchers live on any replica, and a replica may be a little behind.
	watchGrace = 500 * time.Millisecond

	// initGrace is how long a watcher may take over its first values.
	initGrace = 10 * time.Second
)

// runPoller reads keys from the leader, each when it is due and urgent ones at
// once. Reads are done by short-lived goroutines, so that one slow answer does
// not hold up the others.
func (h *Hub) runPoller(ctx context.Context) {
	slots := make(chan struct{}, maxReads)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		k, before, wait := h.nextRead(time.Now())
		for k == nil {
			if !sleep(ctx, wait, h.wakePoller) {
				return
			}
			k, before, wait = h.nextRead(time.Now())
		}
		h.done.Go(func() { h.readKey(ctx, k, before, slots) })
	}
}

// nextRead picks the key to read now, and the newest revision known of it, or
// returns how long to wait.
func (h *Hub) nextRead(now time.Time) (k *watchedKey, before uint64, wait time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.urgent) > 0 {
		k := h.urgent[0]
		h.urgent[0] = nil
		h.urgent = h.urgent[1:]
		if k.dead || k.reading { // when reading, it is read again afterwards
			continue
		}
		k.urgent, k.reading = false, true
		return k, k.newest, 0
	}
	for len(h.polls) > 0 {
		k := h.polls[0]
		if at := latest(k.due, h.nextPoll); at.After(now) {
			return nil, 0, at.Sub(now)
		}
		h.schedule(k, h.interval)
		if k.reading {
			continue
		}
		gap := h.gap
		if h.gone {
			gap = max(gap, goneGap)
		}
		h.nextPoll = now.Add(gap)
		k.reading = true
		return k, k.newest, 0
	}
	return nil, 0, time.Hour
}

// readKey reads one key, frees its slot, and, when the read found an entry that
// the watcher has not delivered, looks again after a while and replaces the
// watcher if it still has not.
func (h *Hub) readKey(ctx context.Context, k *watchedKey, before uint64, slots <-chan struct{}) {
	rctx, cancel := context.WithTimeout(ctx, h.readTimeout())
	e, err := h.bucket.Get(rctx, k.name)
	cancel()
	<-slots

	suspect := h.finishRead(k, e, err, before)
	if err == nil && e.Revision > 0 && e.Revision < before {
		h.doubt() // the bucket was set back, or this leader is behind
	}
	if errors.Is(err, ErrBucketGone) {
		h.bucketGone()
	}
	if suspect != nil && sleep(ctx, watchGrace, nil) {
		h.verify(suspect, k, e.Revision)
	}
}

// finishRead takes in the result of a read and returns the group that owes the
// entry, unless that group is being looked at already.
func (h *Hub) finishRead(k *watchedKey, e Entry, err error, before uint64) (suspect *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stats.Polls++
	k.reading = false
	if k.dead || h.closed {
		return nil
	}
	if k.urgent { // asked for while this read was on its way
		k.urgent = false
		h.urge(k)
	}
	if err != nil {
		if k.version == 0 {
			h.schedule(k, readRetry)
		}
		return nil
	}
	g := k.group
	if !h.fromRead(k, e, before) || g.broken || g.verifying {
		return nil
	}
	g.verifying = true
	return g
}

// verify replaces the watcher of a group that has not delivered revision rev of
// a key although a read found it some time ago.
func (h *Hub) verify(g *group, k *watchedKey, rev uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g.verifying = false
	if k.dead || k.group != g || k.watchRev >= rev {
		return
	}
	if !g.initialised && time.Since(g.opened) < initGrace {
		return // the entry is among first values still to come
	}
	h.stats.Missed++
	h.breakGroup(g, g.penalty())
}

// urge has a key read at once. Lock held.
func (h *Hub) urge(k *watchedKey) {
	if k.dead || k.urgent {
		return
	}
	k.urgent = true
	if !k.reading {
		h.urgent = append(h.urgent, k)
		wake(h.wakePoller)
	}
}

// schedule has a key polled in about d, counted from now. Lock held.
func (h *Hub) schedule(k *watchedKey, d time.Duration) {
	if k.dead {
		return
	}
	k.due = time.Now().Add(jitter(d))
	if k.heapIndex == 0 && (len(h.polls) == 0 || h.polls[0] != k) {
		heap.Push(&h.polls, k)
	} else {
		heap.Fix(&h.polls, k.heapIndex)
	}
	if k.heapIndex == 0 {
		wake(h.wakePoller)
	}
}

func (h *Hub) unschedule(k *watchedKey) { heap.Remove(&h.polls, k.heapIndex) }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
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
