package fabric

import (
	"fmt"
	"log/slog"
	"maps"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// Defaults and limits.
const (
	DefaultFabric = "lockfabric"     // prefix of the bucket names
	DefaultTTL    = 30 * time.Second // not much shorter, because a failover of the server takes 4 to 9 s
	MinTTL        = 100 * time.Millisecond
	MaxTTL        = 24 * time.Hour
	MaxOwnerLen   = 256  // bytes
	MaxMetadata   = 1024 // bytes of all keys and values of one hold together
)

var (
	errNilOption   = fmt.Errorf("%w: an option is nil", ErrInvalidOption)
	errNilFunction = fmt.Errorf("%w: the function to call is nil", ErrInvalidOption)
)

// Option configures a manager.
type Option interface{ applyManager(*config) error }

// AcquireOption configures one acquire.
type AcquireOption interface{ applyAcquire(*request) error }

// CommonOption is an Option and an AcquireOption. Given to Connect or New, it applies to all acquires of the manager;
// given to Acquire, to one hold. A hold whose timing differs from the manager's has another lease.
type CommonOption func(*common) error

func (o CommonOption) applyManager(c *config) error  { return o(&c.common) }
func (o CommonOption) applyAcquire(r *request) error { return o(&r.common) }

// ManagerOption is an Option that cannot be given to Acquire.
type ManagerOption func(*config) error

func (o ManagerOption) applyManager(c *config) error { return o(c) }

// RequestOption is an AcquireOption that cannot be given to Connect or New.
type RequestOption func(*request) error

func (o RequestOption) applyAcquire(r *request) error { return o(r) }

// common has what each acquire can choose, and the manager for all acquires that do not.
type common struct {
	timing   timing
	failFast bool
	posted   bool          // releases are posted
	keep     time.Duration // how long locks are kept; below 0 = not at all
}

// timing is the timing of a lease. Holds with the same timing share a lease, unless the timing is limited.
type timing struct {
	ttl         time.Duration
	renewEvery  time.Duration // 0 = a third of the TTL
	noRenewal   bool
	maxRenewals int  // 0 = no limit
	owner       bool // for the lock of a coalescer: the lease is closed after this lock was released
}

// limited reports whether a lease of this timing ends by itself. Such a lease belongs to one hold only.
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
	common
	buckets        jskv.Config
	label          string
	logger         *slog.Logger
	hook           func(Event) // nil = no events
	lazy           bool        // create no lease before it is needed
	maxKept        int
	linger         time.Duration // how long an unused shared intent stays; 0 = paths share no intents
	sweep          time.Duration // interval between sweeps; 0 = none
	road           Road
	turns          bool          // a coalescer notifies the next holder before it writes the handoff
	rank           int           // rank of this process as a coalescer; 0 = it is none
	idleLimit      time.Duration // how long a coalescer without operations keeps serving
	noVolunteering bool          // never volunteers as a coalescer
	onDemand       bool          // opened because a program asked for a coalescer; ends when no program does

	watch       func(*Manager) (stop func()) // set by StandBy
	detectAfter time.Duration                // delay of deadlock detection
	noDetection bool
	nats        []nats.Option
}

func newConfig(opts []Option) (config, error) {
	c := config{
		common: common{timing: timing{ttl: DefaultTTL}, keep: -1}, sweep: DefaultSweepInterval, linger: DefaultIntentLinger,
		detectAfter: DefaultDeadlockDelay, road: RoadAutomatic, turns: true, idleLimit: idleOwner, logger: slog.New(slog.DiscardHandler),
	}
	c.buckets.Fabric = DefaultFabric
	for _, o := range opts {
		if o == nil {
			return c, errNilOption
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
	common
	mode          Mode
	hasMode       bool // mode was given
	owner         string
	metadata      map[string]string
	waitLimit     time.Duration
	deadlineCheck bool
	noTakeover    bool
	holding       []*Hold
	stamp         *Stamp // set by WithStamp
	ownIntents    bool
}

func (c *config) newRequest(opts []AcquireOption) (request, error) {
	r := request{common: c.common, mode: Exclusive}
	if len(opts) == 0 { // then r is not allocated on the heap
		return r, r.timing.validate()
	}
	return r.with(opts)
}

func (r request) with(opts []AcquireOption) (request, error) {
	for _, o := range opts {
		if o == nil {
			return r, errNilOption
		}
		if err := o.applyAcquire(&r); err != nil {
			return r, err
		}
	}
	return r, r.timing.validate()
}

// set assigns value to field if ok; otherwise it returns ErrInvalidOption.
func set[T any](field *T, value T, ok bool, format string, args ...any) error {
	if !ok {
		return fmt.Errorf("%w: %w", ErrInvalidOption, fmt.Errorf(format, args...))
	}
	*field = value
	return nil
}

// WithTTL sets how long a hold lasts after the last renewal of its lease, from MinTTL to MaxTTL. The default is the
// manager's TTL, which is 30 s by default. With a TTL under 15 s, a crash of a JetStream leader can lose locks, because
// the election of the next leader takes several seconds.
func WithTTL(d time.Duration) CommonOption {
	return func(c *common) error {
		return set(&c.timing.ttl, d, d >= MinTTL && d <= MaxTTL, "TTL %v: use %v to %v", d, MinTTL, MaxTTL)
	}
}

// WithRenewInterval sets how often the lease is renewed: by default a third of the TTL, at most nine tenths of it.
func WithRenewInterval(d time.Duration) CommonOption {
	return func(c *common) error {
		return set(&c.timing.renewEvery, d, d >= time.Millisecond, "renew interval %v: use at least 1ms", d)
	}
}

// WithAutoRenew sets whether the lease is renewed automatically; the default is true. Without automatic renewal, the
// hold ends one TTL after its grant or after its last Renew. False is for Acquire only.
func WithAutoRenew(on bool) CommonOption {
	return func(c *common) error { c.timing.noRenewal = !on; return nil }
}

// WithMaxRenewals ends the hold after n renewals (automatic renewals and calls of Renew together) and the rest of the
// TTL. It is for Acquire only.
func WithMaxRenewals(n int) CommonOption {
	return func(c *common) error {
		return set(&c.timing.maxRenewals, n, n >= 1, "%d renewals: use at least 1, or WithAutoRenew(false) for none", n)
	}
}

// WithFailFast makes calls end with ErrUnavailable at the first sign that no leader answers. Without it they retry until
// their context ends. As an Option it applies to every call of the manager.
func WithFailFast() CommonOption {
	return func(c *common) error { c.failFast = true; return nil }
}

// WithPostedRelease makes Release of a lock, or of permits of a semaphore, return nil as soon as the release is sent. The
// manager completes it in the background. This saves the caller a round trip. If the next acquire of the same name follows
// at once, both often become one write.
//
// Mutual exclusion is not affected, and the next request of this process for the name comes after the release. But:
//
//   - Another process that learns, by other means, that Release has returned may still find the lock held.
//   - Release reports a loss only if the loss is already known when Release is called, and not that it is unconfirmed.
//     The hook of [WithEvents] gets both: EventLost, or EventReleased with a reason.
//   - If the process ends without Close, for example with os.Exit, the release may not be sent. Others then wait
//     for the end of the lease, as after a crash. Close completes all posted releases.
//
// A second call of Release waits and returns the result of the release. Sets, intents of paths, and other kinds are
// released without posting.
func WithPostedRelease() CommonOption {
	return func(c *common) error { c.posted = true; return nil }
}

// WithFabric names the fabric: letters, digits, '-' and '_'. Managers with the same fabric name in the same NATS account
// share their locks. The default is DefaultFabric.
func WithFabric(name string) ManagerOption {
	return func(c *config) error { c.buckets.Fabric = name; return nil }
}

// WithReplicas sets the number of replicas of the buckets, 1 to 5. For buckets that are created, the default is 3 on a
// clustered server and 1 on a single one. For existing buckets, the default is their own number.
func WithReplicas(n int) ManagerOption {
	return func(c *config) error {
		return set(&c.buckets.Replicas, n, n >= 1 && n <= 5, "%d replicas: use 1 to 5", n)
	}
}

// WithShards divides the locks of a new fabric over n buckets, 1 to 64. Each is a separate stream, with its own leader and
// coalescer, so servers with enough processors and disks can write more at the same time. The first level of a name
// decides its bucket, so a path stays together. The number is fixed as long as the buckets exist: for an existing fabric,
// another number is kv.ErrShards. By default an existing fabric keeps its number, and a new one has 1. See
// docs/coalescing.md.
func WithShards(n int) ManagerOption {
	return func(c *config) error {
		return set(&c.buckets.Shards, n, kv.ValidShards(n), "%d shards: use 1 to %d", n, kv.MaxShards)
	}
}

// WithMemoryStorage keeps the buckets in memory. This is faster, but all holds are void when the servers stop.
func WithMemoryStorage() ManagerOption {
	return func(c *config) error { c.buckets.Memory = true; return nil }
}

// WithLabel sets a text of at most MaxOwnerLen bytes, which inspection shows with the host and the process id.
func WithLabel(label string) ManagerOption {
	return func(c *config) error {
		c.label = label
		return checkText("label", label, MaxOwnerLen)
	}
}

// WithLazyLease makes the manager write its lease at the first acquire, not when it is opened. Programs that only read
// then need no permission to write; give them WithSweepInterval(0) as well.
func WithLazyLease() ManagerOption { return func(c *config) error { c.lazy = true; return nil } }

// WithLogger sets the logger for everything that no call returns: lost leases, retries, actions of operators. By
// default nothing is logged.
func WithLogger(l *slog.Logger) ManagerOption {
	return func(c *config) error { return set(&c.logger, l, l != nil, "the logger is nil") }
}

// WithDeadlockDelay sets how long a unit of work that holds something waits before the manager searches for deadlocks.
// The default is DefaultDeadlockDelay; 0 searches at once. Shorter waits cost nothing.
func WithDeadlockDelay(d time.Duration) ManagerOption {
	return func(c *config) error { return set(&c.detectAfter, d, d >= 0, "deadlock delay %v: use 0 or more", d) }
}

// WithoutDeadlockDetection turns deadlock detection off for this manager. Limit its waits with contexts and wait
// limits. Other managers do not detect deadlocks in which this manager takes part.
func WithoutDeadlockDetection() ManagerOption {
	return func(c *config) error { c.noDetection = true; return nil }
}

// WithNATS adds options to the connection that Connect makes: credentials, TLS, an in-process server. It always tries to
// reconnect until a server refuses its credentials twice. New ignores this option.
func WithNATS(opts ...nats.Option) ManagerOption {
	return func(c *config) error { c.nats = append(c.nats, opts...); return nil }
}

// WithMode sets the mode. The default is Exclusive.
func WithMode(m Mode) RequestOption {
	return func(r *request) error {
		r.mode, r.hasMode = m, true
		_, err := m.record()
		return err
	}
}

// WithOwner gives the acquire an explicit owner, 1 to MaxOwnerLen bytes. If this owner already holds the lock or waits
// for it, the acquire gets ErrAlreadyHeld instead of waiting for itself. Before this, entries that this manager has lost,
// and entries whose holder looks dead, are handled as by TryAcquire. By default, every acquire has an owner of its own.
//
// An owner is one unit of work; see [WithUnit]. If independent goroutines share an identity, use WithLabel or
// WithMetadata instead.
func WithOwner(owner string) RequestOption {
	return func(r *request) error {
		if err := checkText("owner", owner, MaxOwnerLen); err != nil {
			return err
		}
		return set(&r.owner, owner, owner != "", "the owner is empty")
	}
}

// WithMetadata attaches texts to the hold, at most MaxMetadata bytes together, for inspection and events. A second
// WithMetadata adds to the first.
func WithMetadata(m map[string]string) RequestOption {
	return func(r *request) error {
		all := map[string]string{} // copied, because the record will refer to it
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

// WithWaitLimit limits how long Acquire waits. The error is then both ErrNotAcquired and context.DeadlineExceeded.
func WithWaitLimit(d time.Duration) RequestOption {
	return func(r *request) error {
		return set(&r.waitLimit, d, d > 0, "wait limit %v: use more than 0, or TryAcquire", d)
	}
}

// WithDeadlineCheck makes Acquire return ErrWaitTooLong at once, without queueing, if the expected wait is longer than
// the time until the context's deadline or WithWaitLimit: the number of turns before this acquire, times the recent hold
// time of this lock (Info.HoldTime). It has no effect without a deadline, or if nobody has ever waited for the lock.
// Blocking holders that look dead are handled as by TryAcquire; WithoutTakeover applies here as well.
func WithDeadlineCheck() RequestOption {
	return func(r *request) error { r.deadlineCheck = true; return nil }
}

// WithoutTakeover makes TryAcquire return ErrHeld, and Acquire return ErrKindMismatch, at once, even if the holder
// looks dead. By default, it is observed for about its TTL before the refusal, and replaced if it is dead. Otherwise
// programs that use only TryAcquire would never replace a dead holder.
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
