package rtt

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the timeouts.
const (
	// Floor is the shortest timeout. On a fast link the estimate is a few milliseconds. But a disk sync, a garbage
	// collection or a busy processor sometimes takes a hundred, and a write that is given up too early costs
	// more than the wait.
	Floor = 250 * time.Millisecond
	// Initial is the timeout before anything was measured (RFC 6298, 2.1).
	Initial = time.Second
	// Plateau is where Backoff stops doubling for a while, if the link is not slower than that. It bounds the loss
	// after an election, which takes seconds: a request that will never be answered does not wait much longer.
	Plateau = 2 * time.Second
	// Ceiling is the longest timeout, and the longest sample: a process that was
	// stopped while it waited has measured its own pause.
	Ceiling = 10 * time.Second
)

// plateauEnd is how many requests in a row have timed out when Backoff goes on doubling after its plateau. On a fast
// link that is after 10 seconds without an answer, longer than an election takes.
const plateauEnd = 6

// Estimator estimates the round trips of one connection. The zero value has measured nothing. It is safe for concurrent
// use, never allocates and waits only for other short calls.
type Estimator struct {
	timeouts atomic.Uint64

	mu        sync.Mutex
	measured  bool
	mean, dev time.Duration
}

// Observe adds a sample: how long an answer took.
func (e *Estimator) Observe(took time.Duration) {
	// At least 1 ns, since 0 means that nothing was measured.
	took = min(max(took, 1), Ceiling)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.measured {
		e.measured, e.mean, e.dev = true, took, took/2
		return
	}
	diff := took - e.mean
	e.mean += diff / 8
	e.dev += (max(diff, -diff) - e.dev) / 4
}

// ObserveQuick adds a sample of an answer that waited for no quorum and no disk: to a read, or the refusal of a
// write. It is a lower bound for the link, so a sample below the mean is ignored: many of them would hide
// how long writes take.
func (e *Estimator) ObserveQuick(took time.Duration) {
	if mean, _ := e.RTT(); took > mean {
		e.Observe(took)
	}
}

// TimedOut counts a request that was not answered within its timeout.
func (e *Estimator) TimedOut() { e.timeouts.Add(1) }

// Timeouts returns how many requests have timed out.
func (e *Estimator) Timeouts() uint64 { return e.timeouts.Load() }

// RTT returns the smoothed round trip and its mean deviation, 0 and 0 before anything was measured.
func (e *Estimator) RTT() (mean, deviation time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mean, e.dev
}

// Expect returns the time within which an answer usually comes: the mean plus four
// deviations, without the bounds of Timeout. It is 0 before anything was measured.
func (e *Estimator) Expect() time.Duration {
	mean, dev := e.RTT()
	return mean + 4*dev
}

// Timeout returns how long to wait for an answer before a request counts as lost, within Floor and Ceiling.
func (e *Estimator) Timeout() time.Duration {
	d := e.Expect()
	if d == 0 {
		return Initial
	}
	return min(max(d, Floor), Ceiling)
}

// Patience returns how long to wait for the answer to a request that is not repeated soon, within Plateau and Ceiling.
func (e *Estimator) Patience() time.Duration { return min(max(2*e.Timeout(), Plateau), Ceiling) }

// Backoff returns how long to wait for an answer after so many timeouts in a row. It doubles
// each time up to Patience, stays there for some more, and then doubles again up to Ceiling. So a link that became slower
// by any factor is measured again.
func (e *Estimator) Backoff(unanswered int) time.Duration {
	d := min(e.Timeout()<<min(max(unanswered, 0), plateauEnd), e.Patience())
	if more := unanswered - plateauEnd; more > 0 {
		d <<= min(more, plateauEnd)
	}
	return min(d, Ceiling)
}
