package jskv

import "time"

// WithPollInterval sets how often a key that somebody waits for is looked after.
func WithPollInterval(d time.Duration) HubOption {
	return func(h *Hub) { h.interval = max(d, leastPollInterval) }
}

// WithReadRate sets how many keys a hub reads per second at most.
func WithReadRate(perSecond int) HubOption {
	return func(h *Hub) { h.gap = time.Second / time.Duration(perSecond) }
}

// ScanRead reads the revision, header and value off the answer to a leader read.
func ScanRead(answer []byte) (rev uint64, header, value []byte, ok bool) {
	rev, header, value, _, ok = scanRead(answer)
	return rev, header, value, ok
}
