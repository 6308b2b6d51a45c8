package jskv

import "time"

// WithPollInterval sets how often a key that somebody waits for is looked after.
func WithPollInterval(d time.Duration) HubOption {
	return func(h *Hub) { h.interval = max(d, leastPollInterval) }
}

// WithReadRate sets how many keys a hub reads per second at most.
func WithReadRate(perSecond int) HubOption {
	return func(h *Hub) { h.readGap = time.Second / time.Duration(perSecond) }
}

// HubStats describes a hub at one moment. The counters begin at NewHub.
type HubStats struct {
	Watchers      int  // open KV watchers, each one consumer of the stream
	Keys          int  // registered keys
	Registrations int  // calls of Watch and Follow not stopped yet
	Wide          bool // one watcher follows the whole bucket, because there are too many keys
	Failing       bool // the last watcher could not be opened
	Opened        int  // watchers opened
	Reopened      int  // of these, those that replace a watcher that ended, missed an entry or outlived its connection
	OpenFailures  int  // watchers that could not be opened
	Missed        int  // entries that a read found and a watcher did not deliver in time
}

// Stats returns the hub's state.
func (h *Hub) Stats() HubStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := HubStats{
		Watchers: len(h.groups), Keys: len(h.keys), Registrations: h.registrations, Failing: h.failures > 0,
		Opened: h.opened, Reopened: h.reopened, OpenFailures: h.openFailures, Missed: h.missed,
	}
	for _, g := range h.groups {
		s.Wide = s.Wide || g.wholeBucket()
	}
	return s
}

// ScanRead reads the revision, header and value off the answer to a leader read.
func ScanRead(answer []byte) (rev uint64, header, value []byte, ok bool) {
	rev, header, value, _, ok = scanRead(answer)
	return rev, header, value, ok
}

// Gather has the bucket send writes in batches whatever they cost. The first one is sent by send, and
// gathered says how many are in it.
func (b *Bucket) Gather() (gathered func() int, send func()) {
	b.CommitInGroups()
	g := b.group.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on, g.out, g.longest, g.aside, g.lately, g.until = true, 1, time.Hour, time.Hour, longestGather, time.Now().Add(time.Hour)
	return func() int {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.next == nil {
				return 0
			}
			return len(g.next.members)
		}, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.out, g.longest = 0, longestGather
			if g.next != nil {
				g.flush()
			}
		}
}

// Name returns the bucket's name.
func (b *Bucket) Name() string { return b.name }

// Stream returns the name of the stream under the bucket.
func (b *Bucket) Stream() string { return b.stream }
