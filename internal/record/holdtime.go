package record

import (
	"slices"
	"time"
)

// How long a hold lasts, and so how long a wait will be, is an estimate: for people and for those
// who would rather not queue than come too late. It decides nothing else, so a hold that was counted
// twice, or not at all, does no harm.

// holdGain is the weight of the newest hold in the smoothed hold time, as a divisor: the gain that
// RFC 6298 gives to a new round trip.
const holdGain = 8

// maxHold is the longest hold time that a record can say, in microseconds every JSON reader takes exactly.
const maxHold = maxSince * time.Microsecond

// SmoothHold returns the smoothed hold time after one more hold, of the given length. 0 is "not
// known", for smoothed as well as for held.
func SmoothHold(smoothed, held time.Duration) time.Duration {
	switch {
	case held <= 0:
		return smoothed
	case smoothed <= 0:
		return wholeHold(held)
	}
	return wholeHold(smoothed + (held-smoothed)/holdGain)
}

// wholeHold cuts to whole microseconds, but never to 0, which would mean that nothing is known.
func wholeHold(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return min(max(d.Truncate(time.Microsecond), time.Microsecond), maxHold)
}

// Turns returns how many holds follow each other until the waiter at pos is granted, holds that are
// granted together counting as one. It is at least 1.
func (r *Record) Turns(pos int) int {
	turns, group := 1, r.modes()
	for i := range r.Holders {
		if c := r.Holders[i].Convert; c.ID != "" {
			turns, group = turns+1, modeSet(0).with(c.Mode)
		}
	}
	// Nobody in the queue can share with the present holders as long as its head can't.
	for i := 0; i <= pos && i < len(r.Waiters); i++ {
		mode := r.Waiters[i].Mode
		if i > 0 && group.admits(mode) {
			group = group.with(mode)
			continue
		}
		if i > 0 {
			turns++
		}
		group = modeSet(0).with(mode)
	}
	return turns
}

// LongestWait returns how long the last of the waiters for whom mine is true will wait from now. A
// nil record has none.
func (r *Record) LongestWait(mine func(id string) bool) time.Duration {
	if r == nil {
		return 0
	}
	for i, w := range slices.Backward(r.Waiters) {
		if mine(w.ID) {
			return r.ExpectedWait(i) // nobody before it waits longer
		}
	}
	return 0
}

// ExpectedWait returns how long the waiter at pos will wait from now, as far as can be told from the
// holds of before: its turns times the smoothed hold time. 0 means that nothing is known.
func (r *Record) ExpectedWait(pos int) time.Duration {
	if r.Kind != KindLock {
		return 0
	}
	turns := int64(r.Turns(pos))
	if int64(r.Hold) > int64(maxHold)/turns {
		return maxHold
	}
	return time.Duration(int64(r.Hold) * turns)
}
