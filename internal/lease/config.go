package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Limits of a lease's TTL. A waiter behind a crashed holder waits for its TTL, and an observer has to run that long.
const (
	MinTTL = 100 * time.Millisecond
	MaxTTL = 24 * time.Hour
)

// marginPart is the default margin as a part of the TTL: 5 %.
const marginPart = 20

// Config configures a lease. The zero value of every field but TTL is a sensible default.
type Config struct {
	// TTL is how long after its last renewal the lease can be declared dead, from MinTTL to MaxTTL, in
	// whole milliseconds (a fraction is cut off).
	TTL time.Duration
	// Margin is how much earlier than TTL the holder gives up, and how much later an observer declares the lease dead.
	// The clock rates of two hosts must differ by less than Margin/TTL. 0 is 5 % of TTL; the maximum is a quarter of it.
	Margin time.Duration
	// AutoRenew renews the lease from a goroutine of its own.
	AutoRenew bool
	// RenewEvery is the time between the sending of two renewals, shortened at
	// random by up to a tenth. 0 is a third of TTL. It is below TTL - Margin.
	RenewEvery time.Duration
	// MaxRenewals bounds the renewals of the lease, by its goroutine or by
	// Renew; it is lost at the deadline of the last one. 0 is no limit.
	MaxRenewals int
	// RTT estimates the round trips of the connection. The lease reports its own to it; share it with other users of the
	// connection. On a slow link the lease waits longer for answers, and renews earlier than RenewEvery says, by
	// at most half of it. nil means an estimator of its own.
	RTT *rtt.Estimator
	// ID makes an id that no other lease has or had. nil makes random ids.
	ID func() string
	// Label is free text for people, at most 256 bytes of UTF-8.
	Label string
	// Seen, if set, returns the highest lock revision that this process has seen in each shard. It is stored with every write, so
	// that revisions can continue above it if the locks bucket is lost. It must not block.
	Seen func() []uint64
	// Clock measures the holder's validity. nil is clock.Holder().
	Clock clock.Clock
	// Logger gets losses (warn) and failed renewals (debug). nil logs nothing.
	Logger *slog.Logger
}

// resolve checks the configuration and fills in the defaults.
func (c Config) resolve() (Config, error) {
	invalid := func(format string, args ...any) (Config, error) {
		return Config{}, fmt.Errorf("%w: %s", ErrInvalidConfig, fmt.Sprintf(format, args...))
	}
	c.TTL = c.TTL.Truncate(time.Millisecond)
	if c.TTL < MinTTL || c.TTL > MaxTTL {
		return invalid("TTL %v is not within %v and %v", c.TTL, MinTTL, MaxTTL)
	}
	c.Margin = cmp.Or(c.Margin, defaultMargin(c.TTL))
	// Rounded up, as the TTL was cut down: the holder uses the stored numbers, and
	// rounding must not make the lease valid for longer.
	c.Margin = ceilMillis(c.Margin)
	if c.Margin < 0 || c.Margin > c.TTL/4 {
		return invalid("Margin %v is not within 0 and a quarter of TTL %v", c.Margin, c.TTL)
	}
	c.RenewEvery = cmp.Or(c.RenewEvery, c.TTL/3)
	if c.RenewEvery < 0 || c.RenewEvery >= c.TTL-c.Margin {
		return invalid("RenewEvery %v is not within 0 and TTL - Margin, %v", c.RenewEvery, c.TTL-c.Margin)
	}
	if c.MaxRenewals < 0 {
		return invalid("MaxRenewals %d is negative", c.MaxRenewals)
	}
	if len(c.Label) > maxText || !utf8.ValidString(c.Label) {
		return invalid("Label is longer than %d bytes or not UTF-8", maxText)
	}
	c.RTT = cmp.Or(c.RTT, new(rtt.Estimator))
	if c.ID == nil {
		c.ID = nuid.Next
	}
	if c.Seen == nil {
		c.Seen = func() []uint64 { return nil }
	}
	c.Clock = cmp.Or(c.Clock, clock.Holder())
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c, nil
}

// interval returns the time between the sending of two renewals.
func (c *Config) interval() time.Duration {
	d := c.RenewEvery - c.renewEarly()
	return d - rand.N(d/10+1)
}

// liveTTL returns the server TTL of a live lease.
func liveTTL(ttl time.Duration) time.Duration { return max(liveGC, liveGCFactor*ttl) }

func defaultMargin(ttl time.Duration) time.Duration { return ceilMillis(ttl / marginPart) }

func ceilMillis(d time.Duration) time.Duration {
	if r := d % time.Millisecond; r > 0 {
		d += time.Millisecond - r
	}
	return d
}

// Self returns the name of this process, "host:pid", for tombstones.
func Self() string { return host() + ":" + strconv.Itoa(os.Getpid()) }

// host returns this host's name, or "unknown".
func host() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "unknown"
	}
	return truncate(h)
}

const (
	// minPatience is the least time to wait for the answer to a request about a lease, or a third of the TTL if that is
	// shorter. With it, a link that suddenly becomes slower, up to a round trip of a third of the TTL, costs
	// nothing: renewal starts at a third, and the answer comes before two thirds.
	minPatience = 2 * time.Second
	// createPatience is the same for the creation. A creation that was given up leaves garbage, and one that is acknowledged
	// after the lease would have ended is useless.
	createPatience = 5 * time.Second
	// minAttempt is the least expected time of one more attempt, on the fastest link:
	// timers and processors are late, too.
	minAttempt = 10 * time.Millisecond
)

// timeouts counts requests in a row that timed out, of one renewal or one tombstone.
type timeouts int

// note reports how a request ended to the count and the estimator. It was sent at the given time, under the caller's
// context and a limit of its own.
func (n *timeouts) note(ctx context.Context, cfg *Config, sent time.Time, read bool, err error) {
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

// expectedAttempt returns the expected time of one attempt.
func (c *Config) expectedAttempt() time.Duration { return max(c.RTT.Expect(), minAttempt) }

// patience returns how long to wait for the answer to a renewal, or to the read that follows one, when the lease is
// valid for remaining and so many requests before have timed out. It waits at least minPatience. Beyond
// that it leaves room for a read and another write, if answers can come at all in the remaining time. If they can't, this
// answer is the best hope. But after a single slow answer the expected time may be far above the real one, so
// half of the time is left for another request, unless an average answer takes longer than the other half.
func (c *Config) patience(remaining time.Duration, unanswered timeouts) time.Duration {
	first := min(c.TTL/3, minPatience)
	expect := c.expectedAttempt()
	room := remaining - 5*expect/2 // with a pause between them
	d := min(max(c.RTT.Backoff(int(unanswered)), first), max(expect, remaining/2), room)
	if room < expect {
		mean, dev := c.RTT.RTT()
		d = max(remaining/2, c.TTL/3, mean+min(dev, mean/2))
	}
	if c.RenewEvery <= c.TTL/2 {
		d = max(d, first) // even if that leaves less room: this answer is worth more
	}
	return max(min(d, remaining), time.Millisecond)
}

// tombstonePatience is the same for a tombstone, which has no deadline.
func (c *Config) tombstonePatience(unanswered timeouts) time.Duration {
	return max(c.RTT.Backoff(int(unanswered)), min(c.TTL/4, minPatience))
}

// creationPatience is the same for a new lease.
func (c *Config) creationPatience(unanswered timeouts) time.Duration {
	return min(max(c.RTT.Backoff(int(unanswered)), min(c.TTL/2, createPatience)), c.TTL-c.Margin)
}

// renewEarly returns how much earlier than RenewEvery to renew, at most half of it. A renewal is sent early enough that
// its answer usually comes by the time when it would otherwise be sent. If RenewEvery is long, it also leaves time for a
// write, a read and another write before the lease ends. With MaxRenewals, an early renewal takes time from the
// holder, so it is only as early as one answer needs.
func (c *Config) renewEarly() time.Duration {
	end := c.TTL - c.Margin
	early := max(c.RTT.Expect(), c.RenewEvery-(end-4*c.expectedAttempt())) // with the pauses
	if c.MaxRenewals > 0 {
		early = max(0, c.RenewEvery-(end-2*c.expectedAttempt()))
	}
	return min(early, c.RenewEvery/2)
}

// Bounds of the pause after a jskv.ErrBusy. Busy usually ends within
// milliseconds and says nothing about the server's health.
const (
	minBusyPause = 2 * time.Millisecond
	maxBusyPause = 50 * time.Millisecond
)

// backoff is the pause between two attempts. It doubles, with a random part, so that many clients do not retry
// together, and is much shorter than the TTL.
type backoff struct {
	ttl            time.Duration
	failures, busy int
}

// pauseAfter returns the pause after an attempt that failed with err.
func (p *backoff) pauseAfter(err error) time.Duration {
	n := &p.failures
	least, most := min(max(p.ttl/100, 2*time.Millisecond), 20*time.Millisecond), min(max(p.ttl/20, 10*time.Millisecond), 500*time.Millisecond)
	if errors.Is(err, jskv.ErrBusy) {
		n, least, most = &p.busy, minBusyPause, min(most, maxBusyPause)
	}
	d := pause.Doubled(least, *n, most)
	*n++
	return d/2 + rand.N(d/2+1)
}

// wait sleeps after an attempt that failed with err, or until again delivers. It returns false at once when ctx ends.
func (p *backoff) wait(ctx context.Context, err error, again <-chan struct{}) bool {
	return pause.Until(ctx, p.pauseAfter(err), again)
}
