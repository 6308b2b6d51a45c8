package lease

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// Server TTLs of the entries that this package writes. They only collect garbage: no decision waits for them.
const (
	// liveGC is the least time that an abandoned lease stays if no observer
	// looks at it. It also stays at least liveGCFactor TTLs.
	liveGC       = time.Hour
	liveGCFactor = 20
	// tombstoneGC is how long a tombstone stays. Afterwards a record entry that still names the lease is under a
	// missing lease; an observer declares that dead in the same way, after one more observation.
	tombstoneGC = 24 * time.Hour
)

// recheckInterval bounds how late the timer notices a loss when the holder's clock
// counts a suspension that Go's timers do not count.
const recheckInterval = time.Second

// Bucket is the KV bucket of the leases; a *jskv.Bucket is one.
type Bucket interface {
	Get(ctx context.Context, key string) (jskv.Entry, error)
	Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error)
}

// Lease is this process's claim to be alive. It is safe for concurrent use.
type Lease struct {
	b        Bucket
	cfg      Config
	who      Info   // common content of all values of this lease
	by       string // "host:pid"
	ops      atomic.Uint64
	renewing chan struct{} // held by the renewal under way: one at a time
	wake     chan struct{} // makes the goroutine check due again
	retryNow chan struct{} // ends the pause between two attempts
	lost     chan struct{} // closed on loss
	wg       sync.WaitGroup

	// Accessors read these without mu, since they run for each operation. They change under mu only.
	gone       atomic.Bool
	manualOnly atomic.Bool  // Limit has ended automatic renewal
	validUntil atomic.Int64 // on cfg.Clock

	mu            sync.Mutex
	err           error                     // why it was lost
	rev           uint64                    // newest revision known to be ours
	due           time.Duration             // when to renew next
	attempts      map[string]renewalAttempt // by nonce, those at rev that may still commit
	renewals      int
	hasTombstone  bool               // a committed tombstone is known
	abort         context.CancelFunc // of the renewal under way, or nil
	awaitedNonce  string             // nonce of the attempt that waits for its answer
	cancelWait    context.CancelFunc // ends the wait for an attempt's answer, or nil
	resends       []chan struct{}    // closed when the next attempt, or the renewal, has ended
	stopTombstone context.CancelFunc // of the writing of the tombstone after a loss, or nil
	timer         *time.Timer        // fires at validUntil or earlier
	onLost        []func(error)
	allDone       chan struct{} // closed once every goroutine has ended; once Close has made it, no goroutine joins wg any more
}

// renewalAttempt is one attempt to renew.
type renewalAttempt struct {
	sent       time.Duration // on the holder's clock, for the validity
	gaveUpSent time.Time     // when it was sent, set once it was given up: for the estimate
	uncounted  bool          // sent before Limit, so it does not count
}

// Create writes a new lease. It retries errors under fresh ids until the context ends: an attempt with an unknown
// outcome is abandoned, and since its id is never used, nobody waits for it. The error is ErrInvalidConfig, or wraps the
// context's error and that of the last attempt that was answered, or is a kv.ErrRejected, for which a retry is of no use.
func Create(ctx context.Context, b Bucket, cfg Config) (*Lease, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	who := Info{
		TTL: cfg.TTL, Margin: cfg.Margin,
		Host: host(), PID: os.Getpid(), Label: cfg.Label, Started: time.Now(),
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("lease: create: %w", context.Cause(ctx))
	}
	var unanswered timeouts
	var last error // of the last attempt that was answered, or else of the last one
	for pauses := (backoff{ttl: cfg.TTL}); ; {
		who.ID = cfg.ID()
		info := who
		info.Nonce = nuid.Next()
		info.Seen = cfg.Seen()
		sent, started := cfg.Clock.Now(), time.Now()
		actx, cancel := context.WithTimeout(ctx, cfg.creationPatience(unanswered))
		rev, err := b.Update(actx, who.ID, info.encode(), 0, liveTTL(cfg.TTL))
		answered := actx.Err() == nil
		cancel()
		unanswered.note(ctx, &cfg, started, false, err)
		if err == nil && cfg.Clock.Now() >= sent+cfg.TTL-cfg.Margin {
			err = ErrExpired // acknowledged too late
		}
		if err == nil {
			return start(b, cfg, who, rev, sent), nil
		}
		if errors.Is(err, kv.ErrRejected) || errors.Is(err, jskv.ErrConnectionClosed) {
			return nil, fmt.Errorf("lease: create: %w", err)
		}
		if answered || last == nil {
			last = err
		}
		cfg.Logger.Debug("lease not created, trying another id", "lease", who.ID, "error", err)
		if !pauses.wait(ctx, err, nil) || ctx.Err() != nil {
			return nil, fmt.Errorf("lease: create: %w; last attempt: %w", context.Cause(ctx), last)
		}
	}
}

func start(b Bucket, cfg Config, who Info, rev uint64, sent time.Duration) *Lease {
	l := &Lease{
		b: b, cfg: cfg, who: who, by: Self(),
		renewing: make(chan struct{}, 1), wake: make(chan struct{}, 1), retryNow: make(chan struct{}, 1), lost: make(chan struct{}),
		rev: rev, attempts: make(map[string]renewalAttempt),
	}
	l.validUntil.Store(int64(sent + cfg.TTL - cfg.Margin))
	l.mu.Lock()
	l.due = sent + cfg.interval()
	l.armLocked()
	if cfg.AutoRenew {
		l.wg.Go(l.run)
	}
	l.mu.Unlock()
	return l
}

// ID returns the lease's id, which is its key in the bucket.
func (l *Lease) ID() string { return l.who.ID }

// TTL returns how long after its last renewal the lease can be declared dead.
func (l *Lease) TTL() time.Duration { return l.cfg.TTL }

// Margin returns how much earlier than TTL the holder gives up.
func (l *Lease) Margin() time.Duration { return l.cfg.Margin }

// NextOp returns a fresh operation id, "<lease id>.<sequence>".
func (l *Lease) NextOp() string { return l.who.ID + "." + strconv.FormatUint(l.ops.Add(1), 10) }

// Valid reports whether the lease is valid now. It asks the clock first: if the deadline has passed, Valid closes Lost
// before it returns, even if no timer has fired yet.
func (l *Lease) Valid() bool {
	if l.gone.Load() {
		return false
	}
	if l.cfg.Clock.Now() < time.Duration(l.validUntil.Load()) {
		// A loss for another reason may come after the first load; this answer was true at that load.
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkLocked()
}

// ValidUntil returns the time, on the lease's clock, at which the lease ends unless it is renewed or lost before.
func (l *Lease) ValidUntil() time.Duration { return time.Duration(l.validUntil.Load()) }

// Remaining returns the time to ValidUntil, 0 if the lease is lost.
func (l *Lease) Remaining() time.Duration {
	if !l.Valid() {
		return 0
	}
	return max(0, l.ValidUntil()-l.cfg.Clock.Now())
}

// RenewEarly returns how much earlier than RenewEvery the lease is renewed at present, because of the link.
func (l *Lease) RenewEarly() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cfg.renewEarly()
}

// Lost returns a channel that is closed when the lease is not valid any more.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Err returns nil while the lease is valid, then why it was lost: ErrExpired,
// ErrDead, ErrRenewalsUsedUp or ErrClosed. It checks the clock as Valid does.
func (l *Lease) Err() error {
	if l.Valid() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// OnLost calls fn once when the lease is lost, with the reason; at once if it is lost already. fn runs in a
// goroutine of the lease, never within a call of a method, so callers may hold their own locks. The fns run one
// after the other, so fn must be quick, and it must not wait for Close.
func (l *Lease) OnLost(fn func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch err := l.err; {
	case err == nil:
		l.onLost = append(l.onLost, fn)
	case l.allDone != nil:
		go fn(err)
	default:
		l.wg.Go(func() { fn(err) })
	}
}

// checkLocked asks the clock and reports whether the lease is valid.
func (l *Lease) checkLocked() bool {
	if l.err == nil && l.cfg.Clock.Now() >= time.Duration(l.validUntil.Load()) {
		if l.usedUpLocked() {
			l.loseLocked(fmt.Errorf("%w after %d", ErrRenewalsUsedUp, l.renewals))
		} else {
			l.loseLocked(ErrExpired)
		}
	}
	return l.err == nil
}

// loseLocked ends the validity for good: whatever is committed or acknowledged later, only a new lease is valid again.
func (l *Lease) loseLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.gone.Store(true)
	close(l.lost)
	if l.timer.Stop() {
		l.wg.Done()
	}
	if l.abort != nil {
		l.abort()
	}
	closed := errors.Is(err, ErrClosed)
	if !closed {
		l.cfg.Logger.Warn("lease lost", "lease", l.who.ID, "reason", err)
	}
	// This goroutine reports the loss. A Close that caused it has not begun
	// to wait yet, and a later Close cancels the writing of the tombstone.
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.TTL+l.cfg.Margin)
	l.stopTombstone = cancel
	told := l.onLost
	l.wg.Go(func() {
		defer cancel()
		for _, fn := range told {
			fn(err)
		}
		if !closed {
			// Otherwise waiters would have to observe the lease first.
			if err := l.writeTombstone(ctx, ReasonLost); err != nil {
				l.cfg.Logger.Debug("lost lease not tombstoned", "lease", l.who.ID, "error", err)
			}
		}
	})
}

// armLocked sets the timer for the deadline. A renewal does not change the timer: if it fires early, it is set again. It may
// also fire late, after the process or the host was stopped. Therefore every accessor asks the clock itself.
func (l *Lease) armLocked() {
	d := time.Duration(l.validUntil.Load()) - l.cfg.Clock.Now()
	l.wg.Add(1)
	l.timer = time.AfterFunc(min(max(d, time.Millisecond), recheckInterval), func() {
		defer l.wg.Done()
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.checkLocked() {
			return
		}
		l.armLocked()
		if l.cfg.Clock.Now() >= l.due {
			pause.Wake(l.wake)
		}
	})
}

func (l *Lease) usedUpLocked() bool { return l.cfg.MaxRenewals > 0 && l.renewals >= l.cfg.MaxRenewals }

// Close ends the lease: it ends the validity and reports the loss, then waits for the lease's goroutines, then writes
// the tombstone, so that waiters go on at once. It tries until ctx ends, and no longer than
// TTL + margin, when an observer has written the tombstone. On error the lease is not valid either, but other
// processes have to observe its end, and Close can be called again. It must not be called from a function given to
// OnLost. A caller whose context may have ended passes a detached, bounded one.
func (l *Lease) Close(ctx context.Context) error {
	l.mu.Lock()
	l.loseLocked(fmt.Errorf("%w", ErrClosed))
	if l.allDone == nil {
		l.allDone = make(chan struct{})
		go func() {
			l.wg.Wait()
			close(l.allDone)
		}()
	}
	stopTombstone := l.stopTombstone
	reason := ReasonLost
	if errors.Is(l.err, ErrClosed) {
		reason = ReasonClosed
	}
	l.mu.Unlock()
	stopTombstone()

	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL+l.cfg.Margin)
	defer cancel()
	select {
	case <-l.allDone:
	case <-ctx.Done():
		return fmt.Errorf("lease: close: %w", context.Cause(ctx))
	}
	return l.writeTombstone(ctx, reason)
}

// writeTombstone writes the lease's tombstone. The lease is lost already, so its holder may declare it dead whatever
// its key contains. Late renewals of this lease, which may still be under way, are at older revisions and fail.
func (l *Lease) writeTombstone(ctx context.Context, reason string) error {
	select {
	case l.renewing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("lease: tombstone: %w", context.Cause(ctx))
	}
	defer func() { <-l.renewing }()
	var unanswered timeouts
	for pauses := (backoff{ttl: l.cfg.TTL}); ; {
		l.mu.Lock()
		rev, written := l.rev, l.hasTombstone
		l.mu.Unlock()
		if written {
			return nil
		}
		info := l.who
		info.Seen = l.cfg.Seen()
		started, limit := time.Now(), l.cfg.tombstonePatience(unanswered)
		err := tombstone(ctx, l.b, limit, rev, info.tombstone(reason, l.by, time.Now()), l.who.ID)
		unanswered.note(ctx, &l.cfg, started, false, err)
		var conflict *jskv.ConflictError
		switch {
		case err == nil:
			l.setTombstoned()
			return nil
		case errors.Is(err, kv.ErrRejected), errors.Is(err, jskv.ErrConnectionClosed):
			return fmt.Errorf("lease: tombstone: %w", err)
		case errors.As(err, &conflict):
			l.mu.Lock()
			l.rev = conflict.Actual
			l.mu.Unlock()
			fallthrough
		case errors.Is(err, jskv.ErrUnknown):
			// The key may have a tombstone already, ours or an observer's.
			e, readErr := get(ctx, l.b, limit, l.who.ID)
			if readErr == nil && isTombstone(l.who.ID, e) {
				l.setTombstoned()
				return nil
			}
		}
		if !pauses.wait(ctx, err, nil) {
			return fmt.Errorf("lease: tombstone: %w; last attempt: %w", context.Cause(ctx), err)
		}
	}
}

func (l *Lease) setTombstoned() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasTombstone = true
}

// tombstone makes one bounded attempt to write a tombstone at rev.
func tombstone(ctx context.Context, b Bucket, limit time.Duration, rev uint64, value []byte, id string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := b.Update(ctx, id, value, rev, tombstoneGC)
	return err
}

// get makes one bounded read.
func get(ctx context.Context, b Bucket, limit time.Duration, id string) (jskv.Entry, error) {
	return pause.Within(ctx, limit, func(ctx context.Context) (jskv.Entry, error) { return b.Get(ctx, id) })
}

// isTombstone reports whether the entry is a tombstone of the lease.
func isTombstone(id string, e jskv.Entry) bool {
	if e.Deleted {
		return false
	}
	info, err := Decode(id, e.Value)
	return err == nil && info.Dead
}
