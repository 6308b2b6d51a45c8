package lease

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
)

const (
	// firstPatience is the least time that a request about a lease is given, or a third of the TTL if that is
	// shorter. With that much a link that suddenly got slower, up to a round trip of a third of the TTL, costs
	// nothing: renewal starts at a third, and the answer comes before two thirds.
	firstPatience = 2 * time.Second
	// createPatience is the same for the creation. One that is given up leaves garbage, and one that is acknowledged
	// after the lease would have ended is useless.
	createPatience = 5 * time.Second
	// leastRoom is what one more attempt is reckoned to take on the fastest link:
	// timers and processors are late, too.
	leastRoom = 10 * time.Millisecond
)

// silence counts requests in a row that nobody answered, of one renewal or one tombstone.
type silence int

// took takes in how a request ended that was sent at the given time under a
// context of the caller and a limit of its own.
func (n *silence) took(ctx context.Context, cfg *Config, sent time.Time, read bool, err error) {
	switch {
	case err == nil && !read:
		*n = 0
		cfg.RTT.Observe(time.Since(sent))
	case err == nil, errors.Is(err, jskv.ErrConflict), errors.Is(err, jskv.ErrBusy):
		*n = 0
		cfg.RTT.ObserveQuick(time.Since(sent))
	case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		*n++
		cfg.RTT.TimedOut()
	}
}

// expect returns what one attempt is reckoned to take.
func (c *Config) expect() time.Duration { return max(c.RTT.Expect(), leastRoom) }

// patience returns how long to wait for the answer to a renewal, or to the read that follows one, when the lease is
// valid for remaining and so many requests before were not answered. What firstPatience promises comes first. Beyond
// that it leaves room for a read and another write, if these can be answered at all in what is left. If not, there is
// little hope but in this answer; but what is expected may be far above what is, after a single answer that took
// long, so another half is left for a request that is answered at once, as long as a usual answer has come by then.
func (c *Config) patience(remaining time.Duration, unanswered silence) time.Duration {
	first := min(c.TTL/3, firstPatience)
	expect := c.expect()
	room := remaining - 5*expect/2 // with a pause between
	d := min(max(c.RTT.Backoff(int(unanswered)), first), max(expect, remaining/2), room)
	if room < expect {
		mean, dev := c.RTT.RTT()
		d = max(remaining/2, c.TTL/3, mean+min(dev, mean/2))
	}
	if c.RenewEvery <= c.TTL/2 {
		d = max(d, first) // also where that leaves less room: the answer is worth more
	}
	return max(min(d, remaining), time.Millisecond)
}

// tombstonePatience is the same for a tombstone, which nothing waits for to be valid.
func (c *Config) tombstonePatience(unanswered silence) time.Duration {
	return max(c.RTT.Backoff(int(unanswered)), min(c.TTL/4, firstPatience))
}

// creationPatience is the same for a new lease.
func (c *Config) creationPatience(unanswered silence) time.Duration {
	return min(max(c.RTT.Backoff(int(unanswered)), min(c.TTL/2, createPatience)), c.TTL-c.Margin)
}

// early returns by how much earlier than RenewEvery to renew, at most half of it. A renewal is sent early enough to
// be answered, as a rule, when it would else be sent; and, if RenewEvery is long, so that a write, a read and another
// write fit in before the lease ends. Where renewals are counted each one that is early is time taken from the
// holder, so they are only as early as one answer needs.
func (c *Config) early() time.Duration {
	end := c.TTL - c.Margin
	early := max(c.RTT.Expect(), c.RenewEvery-(end-4*c.expect())) // pauses and all
	if c.MaxRenewals > 0 {
		early = max(0, c.RenewEvery-(end-2*c.expect()))
	}
	return min(early, c.RenewEvery/2)
}

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

// wait sleeps after an attempt that failed with err, or until again delivers. It returns false at once when ctx ends.
func (p *backoff) wait(ctx context.Context, err error, again <-chan struct{}) bool {
	return pause.Until(ctx, p.after(err), again)
}
