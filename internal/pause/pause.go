package pause

import (
	"context"
	"math/rand/v2"
	"time"
)

// For waits for d, or until ctx ends. It reports whether to go on.
func For(ctx context.Context, d time.Duration) bool { return Until(ctx, d, nil) }

// Until waits for d, or until woken delivers or is closed, or ctx ends. It reports
// whether to go on, which is false only when ctx ended.
func Until(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-woken:
	case <-t.C:
	}
	return true
}

// Wake leaves an element in a channel that has room for one. One that is there and was not received yet will do.
func Wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Around returns a random time, d on average, from a half of it on.
func Around(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

// Near returns d changed by up to a quarter either way.
func Near(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// Doubled returns least, doubled n times, but not more than most.
func Doubled(least time.Duration, n int, most time.Duration) time.Duration {
	return min(least<<min(max(n, 0), 16), most)
}
