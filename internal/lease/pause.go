package lease

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// Bounds of the pause after a jskv.ErrBusy, which as a rule is over in
// milliseconds and says nothing about the server's health.
const (
	leastBusy = 2 * time.Millisecond
	mostBusy  = 50 * time.Millisecond
)

// backoff is the time between two attempts: it doubles, with a random part, so
// that many clients do not come back together.
type backoff struct {
	next, most time.Duration
	busy       time.Duration
}

// newBackoff returns pauses that fit many times into a TTL.
func newBackoff(ttl time.Duration) *backoff {
	return &backoff{
		next: min(max(ttl/100, 2*time.Millisecond), 20*time.Millisecond),
		most: min(max(ttl/20, 10*time.Millisecond), 500*time.Millisecond),
		busy: leastBusy,
	}
}

// after returns the pause after an attempt that failed with err.
func (p *backoff) after(err error) time.Duration {
	next, most := &p.next, p.most
	if errors.Is(err, jskv.ErrBusy) {
		next, most = &p.busy, min(p.most, mostBusy)
	}
	d := *next/2 + rand.N(*next/2+1)
	*next = min(2*(*next), most)
	return d
}

// wait sleeps after an attempt that failed with err, or until again delivers. It
// returns false at once when ctx ends.
func (p *backoff) wait(ctx context.Context, err error, again <-chan struct{}) bool {
	return pause.Until(ctx, p.after(err), again)
}
