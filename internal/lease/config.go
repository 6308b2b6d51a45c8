package lease

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/clock"
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
	// Seen, if set, returns the highest lock revision that this process has seen. It is stored with every write, so
	// that revisions can continue above it should the locks be lost. It must not block.
	Seen func() uint64
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
	if c.Margin == 0 {
		c.Margin = defaultMargin(c.TTL)
	}
	// Up, as the TTL was cut down: the stored numbers are those that the holder
	// goes by, and rounding must not make it valid for longer.
	c.Margin = ceilMillis(c.Margin)
	if c.Margin < 0 || c.Margin > c.TTL/4 {
		return invalid("Margin %v is not within 0 and a quarter of TTL %v", c.Margin, c.TTL)
	}
	if c.RenewEvery == 0 {
		c.RenewEvery = c.TTL / 3
	}
	if c.RenewEvery < 0 || c.RenewEvery >= c.TTL-c.Margin {
		return invalid("RenewEvery %v is not within 0 and TTL - Margin, %v", c.RenewEvery, c.TTL-c.Margin)
	}
	if c.MaxRenewals < 0 {
		return invalid("MaxRenewals %d is negative", c.MaxRenewals)
	}
	if len(c.Label) > maxText || !utf8.ValidString(c.Label) {
		return invalid("Label is longer than %d bytes or not UTF-8", maxText)
	}
	if c.RTT == nil {
		c.RTT = new(rtt.Estimator)
	}
	if c.Clock == nil {
		c.Clock = clock.Holder()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// interval returns the time from the sending of one renewal to the next.
func (c *Config) interval() time.Duration { return jitter(c.RenewEvery-c.early(), 10) }

// seen returns what Seen says.
func (c *Config) seen() uint64 {
	if c.Seen == nil {
		return 0
	}
	return c.Seen()
}

// newID returns what ID makes.
func (c *Config) newID() string {
	if c.ID == nil {
		return nuid.Next()
	}
	return c.ID()
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

// selfName returns the name of this process in tombstones.
func selfName(host string, pid int) string { return host + ":" + strconv.Itoa(pid) }

// host returns this host's name as far as it can be known.
func host() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "unknown"
	}
	return cut(h)
}

// jitter returns a random duration in [d-d/part, d].
func jitter(d time.Duration, part int64) time.Duration {
	if span := int64(d) / part; span > 0 {
		return d - time.Duration(rand.Int64N(span+1))
	}
	return d
}
