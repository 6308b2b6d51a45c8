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

// Limits of a lease's TTL. Whoever is blocked by a crashed holder waits for its
// TTL, and an observer has to be able to wait it out.
const (
	MinTTL = 100 * time.Millisecond
	MaxTTL = 24 * time.Hour
)

// marginPart is the default margin as a part of the TTL: 5 %.
const marginPart = 20

// Config says how a lease lives. The zero value of every field but TTL is a sensible default.
type Config struct {
	// TTL is how long after its last renewal the lease can be declared dead, in
	// whole milliseconds (what is below is cut off), from MinTTL to MaxTTL.
	TTL time.Duration
	// Margin is by how much earlier than TTL the holder gives up and by how much later an observer declares it dead.
	// The clock rates of two hosts must differ by less than Margin/TTL. 0 is 5 % of TTL; at most a quarter of it.
	Margin time.Duration
	// AutoRenew renews the lease from a goroutine of its own.
	AutoRenew bool
	// RenewEvery is the time from one renewal's sending to the next, shortened at
	// random by up to a tenth. 0 is a third of TTL. It is below TTL - Margin.
	RenewEvery time.Duration
	// MaxRenewals is how often the lease is renewed, by its goroutine or by
	// Renew; it is lost at the deadline of the last renewal. 0 is no limit.
	MaxRenewals int
	// RTT estimates the round trips of the connection and is told of each; share it with who else uses the
	// connection. On a slow link answers are waited for longer, and renewals move earlier than RenewEvery says, by
	// half of it at most. nil is one of its own.
	RTT *rtt.Estimator
	// ID makes an id that no other lease has or had. nil is a random one.
	ID func() string
	// Label is free text for people, at most 256 bytes of UTF-8.
	Label string
	// Seen, if set, returns the highest lock revision that this process has seen of each shard. It is stored with every write, so
	// that revisions can continue above it should the locks be lost. It must not block.
	Seen func() []uint64
	// Clock measures the holder's validity. nil is clock.Holder().
	Clock clock.Clock
	// Logger gets losses (warn) and failed renewals (debug). nil is silence.
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
	// Up, as the TTL was cut down: the stored numbers are those that the holder
	// goes by, and rounding must not make it valid for longer.
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

// interval returns the time from the sending of one renewal to the next.
func (c *Config) interval() time.Duration {
	d := c.RenewEvery - c.early()
	return d - rand.N(d/10+1)
}

// gcAfter returns the server TTL of a live lease.
func gcAfter(ttl time.Duration) time.Duration { return max(liveGC, liveGCFactor*ttl) }

func defaultMargin(ttl time.Duration) time.Duration { return ceilMillis(ttl / marginPart) }

func ceilMillis(d time.Duration) time.Duration {
	if r := d % time.Millisecond; r > 0 {
		d += time.Millisecond - r
	}
	return d
}

// Self returns the name of this process, "host:pid", as it stands in tombstones.
func Self() string { return host() + ":" + strconv.Itoa(os.Getpid()) }

// host returns this host's name as far as it can be known.
func host() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "unknown"
	}
	return cut(h)
}

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
