package pause

import (
	"context"
	"math/rand/v2"
	"time"
)

// For waits for d, or until ctx ends. It returns false if ctx ended.
func For(ctx context.Context, d time.Duration) bool { return Until(ctx, d, nil) }

// Until waits for d, until woken delivers or is closed, or until ctx ends. It returns false only if ctx ended.
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

// Within calls fn with a context that ends after d, and returns its result.
func Within[T any](ctx context.Context, d time.Duration, fn func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return fn(ctx)
}

// Wake puts an element into a channel with room for one. If one is there already, that is enough.
func Wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Around returns a random time from d/2 to 3d/2, on average d.
func Around(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

// Near returns d changed at random by up to a quarter.
func Near(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// Doubled returns least, doubled n times, and at most most.
func Doubled(least time.Duration, n int, most time.Duration) time.Duration {
	return min(least<<min(max(n, 0), 16), most)
}
