package record

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestSmoothHold(t *testing.T) {
	for _, c := range []struct{ smoothed, held, want time.Duration }{
		{0, 0, 0},
		{0, -time.Second, 0},
		{time.Second, 0, time.Second},
		{0, time.Second, time.Second},
		{0, 1, time.Microsecond}, // known, however short
		{8 * time.Second, 16 * time.Second, 9 * time.Second},
		{8 * time.Second, time.Nanosecond, 7 * time.Second},
		{0, math.MaxInt64, maxHold},
		{maxHold, math.MaxInt64, maxHold},
	} {
		got := SmoothHold(c.smoothed, c.held)
		if d := got - c.want; d < -time.Microsecond || d > time.Microsecond {
			t.Errorf("SmoothHold(%v, %v) = %v, want %v", c.smoothed, c.held, got, c.want)
		}
	}
}

// It stays between the extremes of the samples, and converges to the present holds.
func TestSmoothHoldFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hold := time.Duration(0)
		low, high := time.Duration(math.MaxInt64), time.Duration(0)
		for range rapid.IntRange(1, 20).Draw(t, "holds") {
			held := time.Duration(rapid.Int64Range(int64(time.Microsecond), int64(time.Hour)).Draw(t, "held"))
			low, high = min(low, held), max(high, held)
			if hold = SmoothHold(hold, held); hold < low-time.Microsecond || hold > high {
				t.Fatalf("%v is not within %v and %v", hold, low, high)
			}
		}
		goal := time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(time.Hour)).Draw(t, "goal"))
		for range 250 {
			hold = SmoothHold(hold, goal)
		}
		if d := hold - goal; d < -10*time.Microsecond || d > 10*time.Microsecond {
			t.Fatalf("%v after 250 holds of %v", hold, goal)
		}
	})
}

func TestTurns(t *testing.T) {
	held := func(modes ...Mode) *Record {
		r := &Record{Kind: KindLock}
		for _, m := range modes {
			r.Holders = append(r.Holders, Entry{Mode: m})
		}
		return r
	}
	queue := func(r *Record, modes ...Mode) *Record {
		for _, m := range modes {
			r.Waiters = append(r.Waiters, Entry{Mode: m})
		}
		return r
	}
	converting := held(S, U)
	converting.Holders[1].Convert = Conversion{ID: "a.2", Mode: X}
	for _, c := range []struct {
		rec  *Record
		want []int
	}{
		{queue(held(X), X, X, X), []int{1, 2, 3}},
		{queue(held(X), S, S, X, S, IS, IX, IX), []int{1, 1, 2, 3, 3, 4, 4}},
		{queue(held(S), X, S, S), []int{1, 2, 2}},
		{queue(held(S, S), IX, S), []int{1, 2}},
		{queue(converting, S, X), []int{2, 3}},
	} {
		for pos, want := range c.want {
			if got := c.rec.Turns(pos); got != want {
				t.Errorf("%s: %d turns at %d, want %d", c.rec.Append(nil), got, pos, want)
			}
		}
	}
}

// However long holds are and however many wait, an expected wait is never negative.
func TestExpectedWaitDoesNotOverflow(t *testing.T) {
	r := &Record{Kind: KindLock}
	r.Hold, r.Holders = maxHold, []Entry{{Mode: X}}
	for range 1000 {
		r.Waiters = append(r.Waiters, Entry{Mode: X})
	}
	if got := r.ExpectedWait(999); got != maxHold {
		t.Errorf("%v, want %v", got, maxHold)
	}
}
