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
