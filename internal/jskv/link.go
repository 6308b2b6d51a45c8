package jskv

import (
	"sync/atomic"
	"time"
)

// shortestWait is how long an opening waits for an answer on a fast link before it
// asks again.
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

// starting reports whether a request that was first sent at begun and found no
// responders may find them yet.
func (l *link) starting(begun time.Time) bool {
	return l != nil && l.clustered && time.Since(begun) < startTime
}

func (l *link) answered(took time.Duration) {
	if l != nil {
		l.took.Store(int64(took))
	}
}
