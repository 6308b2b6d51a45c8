package fabric

import (
	"fmt"
	"log/slog"
	"maps"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Defaults and bounds.
const (
	DefaultFabric = "lockfabric"     // bucket names start with it
	DefaultTTL    = 30 * time.Second // a server's failover takes 4 to 9 s, so not much less
	MinTTL        = 100 * time.Millisecond
	MaxTTL        = 24 * time.Hour
	MaxOwnerLen   = 256  // bytes
	MaxMetadata   = 1024 // bytes of all keys and values of one hold together
)

// Option configures a manager.
type Option interface{ applyManager(*config) error }

// AcquireOption configures one acquire.
type AcquireOption interface{ applyAcquire(*request) error }

// TimingOption sets the timing of leases: the manager's own, given to Connect or New, or that of one hold, given to
// Acquire. A hold whose timing differs from the manager's stands under another lease.
type TimingOption func(*timing) error

func (o TimingOption) applyManager(c *config) error  { return o(&c.timing) }
func (o TimingOption) applyAcquire(r *request) error { return o(&r.timing) }

// ManagerOption is an Option that is nothing else.
type ManagerOption func(*config) error

func (o ManagerOption) applyManager(c *config) error { return o(c) }

// RequestOption is an AcquireOption that is nothing else.
type RequestOption func(*request) error

func (o RequestOption) applyAcquire(r *request) error { return o(r) }

// timing of a lease. Leases with the same timing are shared unless it is limited.
type timing struct {
	ttl         time.Duration
	renewEvery  time.Duration // 0 = a third of the TTL
	noRenewal   bool
	maxRenewals int  // 0 = no limit
	owner       bool // of a coalescer's lock: its lease is closed after that was let go
}

// limited reports whether a lease of this timing ends by itself, so that it can belong to one hold only.
func (t timing) limited() bool { return t.noRenewal || t.maxRenewals > 0 }

func (t timing) validate() error {
	if t.renewEvery != 0 && t.renewEvery > t.ttl*9/10 {
		return fmt.Errorf("%w: renew interval %v: must be at most nine tenths of the TTL of %v", ErrInvalidOption, t.renewEvery, t.ttl)
	}
	if t.noRenewal && (t.maxRenewals > 0 || t.renewEvery > 0) {
		return fmt.Errorf("%w: a renew interval or limit without automatic renewal", ErrInvalidOption)
	}
	return nil
}

type config struct {
	timing         timing
	buckets        jskv.Config
	label          string
	logger         *slog.Logger
	hook           func(Event) // nil = nobody wants to know
	failFast       bool
	posted         bool // releases
	lazy           bool // make no lease before it is needed
	keep           keep // of kept locks
	maxKept        int
	linger         time.Duration // of intents that paths share; 0 = none are shared
	sweep          time.Duration // between two sweeps; 0 = none
	road           Road
	noTurns        bool          // locks are passed on after that is written
	rank           int           // of this process as a coalescer; 0 = it is none
	idleLimit      time.Duration // how long an owner that nobody asks keeps its office
	noVolunteering bool          // it never volunteers to be one
	onDemand       bool          // it was opened because somebody asked for a coalescer, and ends when nobody does

	watch       func(*Manager) (stop func()) // of StandBy
	detectAfter time.Duration                // of deadlocks
	noDetection bool
	nats        []nats.Option
}

func newConfig(opts []Option) (config, error) {
	c := config{
		timing: timing{ttl: DefaultTTL}, sweep: DefaultSweepInterval, linger: DefaultIntentLinger, detectAfter: DefaultDeadlockDelay,
		road: RoadAutomatic, idleLimit: idleOwner, logger: slog.New(slog.DiscardHandler),
	}
	c.buckets.Fabric = DefaultFabric
	for _, o := range opts {
		if o == nil {
			return c, fmt.Errorf("%w: an option is nil", ErrInvalidOption)
		}
		if err := o.applyManager(&c); err != nil {
			return c, err
		}
	}
	if err := c.buckets.Validate(); err != nil {
		return c, fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	if c.volunteers() {
		c.rank = rankVolunteer
	}
	if c.timing.limited() {
		return c, fmt.Errorf("%w: a manager's own lease is always renewed; give WithAutoRenew(false) or WithMaxRenewals to Acquire", ErrInvalidOption)
	}
	return c, c.timing.validate()
}

type request struct {
	timing        timing
	mode          Mode
	hasMode       bool // it was given
	owner         string
	metadata      map[string]string
	failFast      bool
	posted        bool
	waitLimit     time.Duration
	deadlineCheck bool
	noTakeover    bool
	holding       []*Hold
	stamp         *Stamp // of WithStamp
	ownIntents    bool
	keep          keep
}

func (c *config) newRequest(opts []AcquireOption) (request, error) {
	r := request{timing: c.timing, mode: Exclusive, failFast: c.failFast, keep: c.keep, posted: c.posted}
	if len(opts) == 0 {
		return r, r.timing.validate()
	}
	return r.with(opts)
}

func (r request) with(opts []AcquireOption) (request, error) {
	for _, o := range opts {
		if o == nil {
			return r, fmt.Errorf("%w: an option is nil", ErrInvalidOption)
		}
		if err := o.applyAcquire(&r); err != nil {
			return r, err
		}
	}
	return r, r.timing.validate()
}

// set makes an option's value the field's, if it makes sense.
func set[T any](field *T, value T, ok bool, format string, args ...any) error {
	if !ok {
		return fmt.Errorf("%w: %w", ErrInvalidOption, fmt.Errorf(format, args...))
	}
	*field = value
	return nil
}

// WithTTL sets how long a hold outlives its holder's last sign of life, between MinTTL and MaxTTL. The default is 30
// s, or the manager's. A TTL under 15 s loses locks whenever a JetStream leader crashes, because electing the next
// one takes several seconds.
func WithTTL(d time.Duration) TimingOption {
	return func(t *timing) error {
		return set(&t.ttl, d, d >= MinTTL && d <= MaxTTL, "TTL %v: use %v to %v", d, MinTTL, MaxTTL)
	}
}

// WithRenewInterval sets how often the lease is renewed. The default is a third
// of the TTL; more than nine tenths of it is refused.
func WithRenewInterval(d time.Duration) TimingOption {
	return func(t *timing) error {
		return set(&t.renewEvery, d, d >= time.Millisecond, "renew interval %v: use at least 1ms", d)
	}
}

// WithAutoRenew says whether the lease is renewed automatically, which is the default. Without, the hold ends one TTL
// after it was granted, or after its last Renew. Turning it off is for Acquire only.
func WithAutoRenew(on bool) TimingOption {
	return func(t *timing) error { t.noRenewal = !on; return nil }
}

// WithMaxRenewals ends the hold after n renewals, automatic and by hand
// together, and the rest of the TTL. For Acquire only.
func WithMaxRenewals(n int) TimingOption {
	return func(t *timing) error {
		return set(&t.maxRenewals, n, n >= 1, "%d renewals: use at least 1, or WithAutoRenew(false) for none", n)
	}
}

// FailFastOption makes calls end with ErrUnavailable at the first sign that no leader answers, instead of retrying
// until their context ends. As an Option it is the default of every call of the manager.
type FailFastOption struct{}

func (FailFastOption) applyManager(c *config) error  { c.failFast = true; return nil }
func (FailFastOption) applyAcquire(r *request) error { r.failFast = true; return nil }

// WithFailFast returns a FailFastOption.
func WithFailFast() FailFastOption { return FailFastOption{} }

// PostedRelease makes Release return before it is confirmed. As an Option it is the default of every
// acquire of the manager.
type PostedRelease struct{}

func (PostedRelease) applyManager(c *config) error  { c.posted = true; return nil }
func (PostedRelease) applyAcquire(r *request) error { r.posted = true; return nil }

func (r *request) postsReleaseOf(k record.Kind) bool {
	return r.posted && (k == record.KindLock || k == record.KindSemaphore)
}

// WithPostedRelease returns a PostedRelease: Release of a lock, or of permits of a semaphore, returns nil as soon as
// the release is on its way and this process goes on with it by itself. It saves the caller a round trip, and
// where the next acquire of the same name follows at once, both are often one write.
//
// Nobody is granted twice, and whatever this process wants next of the name comes after the release. What is lost:
//
//   - Another process that hears by other means that Release has returned can still find the lock held, so that its
//     TryAcquire is refused.
//   - Release does not tell that the hold was lost, unless that is known when it is called, nor that nobody confirms
//     it. The hook of [WithEvents] is told: EventLost, or EventReleased with a reason.
//   - A process that ends without Close, as by os.Exit, may take the release with it. Then others wait
//     for the end of the lease, as after a crash. Close sees to all of them.
//
// Releasing again waits, and returns what became of it. Sets, intents of paths, and what is of another kind
// are released as always.
func WithPostedRelease() PostedRelease { return PostedRelease{} }

// WithFabric names the fabric: managers with the same name on the same account
// share their locks. The default is DefaultFabric. Letters, digits, '-' and '_'.
func WithFabric(name string) ManagerOption {
	return func(c *config) error { c.buckets.Fabric = name; return nil }
}

// WithReplicas sets the number of replicas of the buckets, 1 to 5. The default is 3 on a clustered server and 1 on a
// single one when the buckets are created, and what they have when they exist.
func WithReplicas(n int) ManagerOption {
	return func(c *config) error {
		return set(&c.buckets.Replicas, n, n >= 1 && n <= 5, "%d replicas: use 1 to 5", n)
	}
}

// WithShards divides the locks of a fabric that is made over so many buckets, 1 to 64: each is a stream of its own,
// with a leader and a coalescer of its own, so more is written at the same time on servers that have the processors
// and disks for it. The first level of a name decides, so a path stays together. The number is fixed as long as the
// buckets are there: of a fabric that exists it is the one that is expected, and kv.ErrShards tells that it has
// another one. Without this option it is what the fabric has, and 1 for one that is made. docs/coalescing.md tells more.
func WithShards(n int) ManagerOption {
	return func(c *config) error {
		return set(&c.buckets.Shards, n, n >= 1 && n <= kv.MaxShards, "%d shards: use 1 to %d", n, kv.MaxShards)
	}
}

// WithMemoryStorage keeps the buckets in the servers' memory. It is faster, and
// all holds are void when the servers stop.
func WithMemoryStorage() ManagerOption {
	return func(c *config) error { c.buckets.Memory = true; return nil }
}

// WithLabel sets a text that inspection shows beside host and process id of the holder: at most MaxOwnerLen bytes.
func WithLabel(label string) ManagerOption {
	return func(c *config) error {
		c.label = label
		return checkText("label", label, MaxOwnerLen)
	}
}

// WithLazyLease has the manager write its lease when something is acquired for the first time, and not when it is
// opened. For those who only look, who need not be allowed to write then; give them WithSweepInterval(0), too.
func WithLazyLease() ManagerOption { return func(c *config) error { c.lazy = true; return nil } }

// WithLogger sets where the manager reports what it can't return: lost leases,
// retries, operator's doings. The default is silence.
func WithLogger(l *slog.Logger) ManagerOption {
	return func(c *config) error { return set(&c.logger, l, l != nil, "the logger is nil") }
}

// WithDeadlockDelay sets for how long a unit of work that holds something waits until deadlocks are looked for; the
// default is DefaultDeadlockDelay. Waits that are shorter cost nothing. 0 looks at once.
func WithDeadlockDelay(d time.Duration) ManagerOption {
	return func(c *config) error { return set(&c.detectAfter, d, d >= 0, "deadlock delay %v: use 0 or more", d) }
}

// WithoutDeadlockDetection leaves deadlocks to the contexts and wait limits of those who wait. Others don't
// find deadlocks in which this manager takes part.
func WithoutDeadlockDetection() ManagerOption {
	return func(c *config) error { c.noDetection = true; return nil }
}

// WithNATS adds options to the connection that Connect makes: credentials, TLS, an in-process server. Whatever they
// say of reconnects, that connection tries again until a server refuses its credentials twice. New ignores them.
func WithNATS(opts ...nats.Option) ManagerOption {
	return func(c *config) error { c.nats = append(c.nats, opts...); return nil }
}

// WithMode sets the mode; the default is Exclusive.
func WithMode(m Mode) RequestOption {
	return func(r *request) error {
		r.mode, r.hasMode = m, true
		_, err := m.record()
		return err
	}
}

// WithOwner gives the acquire an explicit identity, 1 to MaxOwnerLen bytes. An owner that holds the lock, or waits
// for it, gets ErrAlreadyHeld instead of waiting for itself. An entry that it has left behind is seen to first, as by
// TryAcquire: one that this manager has lost, or whose holder looks dead. Without it every acquire is its own owner.
// An owner is one unit of work, see [WithUnit]: what it holds it is taken to keep until it is granted what it waits
// for. For an identity that independent goroutines share use WithLabel or WithMetadata.
func WithOwner(owner string) RequestOption {
	return func(r *request) error {
		if err := checkText("owner", owner, MaxOwnerLen); err != nil {
			return err
		}
		return set(&r.owner, owner, owner != "", "the owner is empty")
	}
}

// WithMetadata attaches texts to the hold that inspection shows and events tell: at most
// MaxMetadata bytes together. Given again it adds to them.
func WithMetadata(m map[string]string) RequestOption {
	return func(r *request) error {
		all := map[string]string{} // it gets into the record as it is
		maps.Copy(all, r.metadata)
		maps.Copy(all, m)
		size := 0
		for k, v := range all {
			size += len(k) + len(v)
			if err := checkText("metadata "+k, k+v, MaxMetadata); err != nil {
				return err
			}
		}
		return set(&r.metadata, all, size <= MaxMetadata, "%d bytes of metadata: use at most %d", size, MaxMetadata)
	}
}

// WithWaitLimit bounds how long Acquire waits; the error is then both ErrNotAcquired and context.DeadlineExceeded.
func WithWaitLimit(d time.Duration) RequestOption {
	return func(r *request) error {
		return set(&r.waitLimit, d, d > 0, "wait limit %v: use more than 0, or TryAcquire", d)
	}
}

// WithDeadlineCheck makes Acquire end at once with ErrWaitTooLong, without queueing, when the wait is expected to
// last beyond the context's deadline or WithWaitLimit. Expected is the number of turns before this one times the time
// for which this lock was held of late, see Info.HoldTime. Where nobody knows that time, as with a lock that nobody
// has ever waited for, and without a deadline, it changes nothing. Those in the way that look dead are seen to as by
// TryAcquire, and so is WithoutTakeover.
func WithDeadlineCheck() RequestOption {
	return func(r *request) error { r.deadlineCheck = true; return nil }
}

// WithoutTakeover makes TryAcquire return ErrHeld, and Acquire ErrKindMismatch, at once even when the holder looks dead. By default such a refusal
// takes one observation, about the holder's TTL, after which a dead holder is replaced; else programs that only ever
// try would never get past one.
func WithoutTakeover() RequestOption {
	return func(r *request) error { r.noTakeover = true; return nil }
}

func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w: %s has %d bytes: use at most %d", ErrInvalidOption, what, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: %s is not UTF-8", ErrInvalidOption, what)
	}
	return nil
}
