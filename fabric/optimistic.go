package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Stamp is a moment at which nobody held a lock exclusively, as one manager saw it. It holds
// nothing and keeps nobody out. See [Manager.Optimistic]. The zero Stamp is never valid.
type Stamp struct {
	key    string
	s      *session
	doubts uint64       // about the buckets that there had been before it was taken
	levels []stampLevel // from the root down
}

type stampLevel struct {
	enc string
	rev uint64 // never 0: an absence comes back
}

// Key returns the name of the lock, or the path.
func (st Stamp) Key() string { return st.key }

// void reports whether the stamp's buckets may not be those that it was taken of any more.
func (st *Stamp) void() bool {
	return st.s == nil || st.s.ctx.Err() != nil || st.s.doubts.raised.Load() != st.doubts
}

// Optimistic takes a stamp of a lock for an optimistic read: take a stamp, read what the lock
// protects, and believe what was read only if [Manager.Validate] says that the stamp is still
// valid. It writes nothing, so readers cost neither each other nor the writers' queue anything; what was
// read can be torn until it is validated. [Manager.ReadOptimistic] does all of it.
//
// It costs nothing where this manager watches the lock or has validated its last stamp, else one
// read; and one write, once, where the name was not used for a quarter of an hour.
//
// A *HeldError (ErrHeld) says that somebody holds the lock in a mode that Shared excludes; who waits
// doesn't matter. Other errors: ErrKindMismatch, ErrInvalidName, ErrMalformedRecord, ErrNewerSchema, ErrClosed,
// the context's, and ErrUnavailable of a manager with WithFailFast.
func (m *Manager) Optimistic(ctx context.Context, key string) (Stamp, error) {
	return m.optimistic(ctx, key, key)
}

// OptimisticPath is Optimistic for a path "a/b/c" whose users take intents on "a" and "a/b", see [Manager.AcquirePath]: the
// stamp is refused, and not valid any more, also where somebody holds a level above exclusively. It and its
// validation cost what they do for one lock, for each level, in the same number of round trips.
func (m *Manager) OptimisticPath(ctx context.Context, path string) (Stamp, error) {
	var levels []string
	for i, c := range path {
		if c == '/' {
			levels = append(levels, path[:i])
		}
	}
	return m.optimistic(ctx, path, append(levels, path)...)
}

func (m *Manager) optimistic(caller context.Context, key string, levels ...string) (Stamp, error) {
	st := Stamp{key: key, levels: make([]stampLevel, len(levels))}
	for i, name := range levels {
		enc, err := kv.EncodeName(name)
		if err != nil {
			return Stamp{}, err
		}
		st.levels[i].enc = enc
	}
	ctx, done := m.callContext(caller)
	defer done()
	for n := 1; ; n++ {
		err := st.take(ctx, m, levels)
		switch {
		case err == nil:
			return st, nil
		case st.s == nil || st.s.endReason() == nil || m.endReason() != nil || ctx.Err() != nil, !pauseBeforeRetry(ctx, n):
			return Stamp{}, m.explain(caller, err)
		} // the session has ended meanwhile
	}
}

// take fills the stamp in, on the session that there is now.
func (st *Stamp) take(ctx context.Context, m *Manager, levels []string) (err error) {
	if st.s, err = m.session(ctx); err != nil {
		return err
	}
	if err = st.s.awaitReady(ctx, m.cfg.failFast); err != nil {
		return err
	}
	st.doubts = st.s.doubts.raised.Load()
	return st.each(func(i int, l *stampLevel) error {
		want := record.S
		if i < len(levels)-1 {
			want = record.IS
		}
		rec, rev, err := st.s.shard(l.enc).engine.Stamp(ctx, l.enc, m.cfg.failFast)
		if by := excludes(rec, want); err == nil && by != nil && record.MayBeKept(by.Meta) {
			if released, _ := st.s.askToRelease(ctx, l.enc, by); released {
				_, _, _ = st.s.shard(l.enc).engine.Read(ctx, l.enc) // what was known was before that
				rec, rev, err = st.s.shard(l.enc).engine.Stamp(ctx, l.enc, m.cfg.failFast)
			}
		}
		if err != nil {
			return err
		}
		l.rev = rev
		return admits(levels[i], rec, want)
	})
}

// each calls fn for all levels, at the same time if there are several, and returns the first level's error.
func (st *Stamp) each(fn func(i int, l *stampLevel) error) error {
	if len(st.levels) == 1 {
		return fn(0, &st.levels[0])
	}
	errs := make([]error, len(st.levels))
	var wg sync.WaitGroup
	for i := range st.levels {
		wg.Go(func() { errs[i] = fn(i, &st.levels[i]) })
	}
	wg.Wait()
	return cmp.Or(errs...)
}

// admits returns who holds the lock in a mode that want excludes.
func admits(key string, rec *record.Record, want record.Mode) error {
	if rec == nil {
		return nil
	}
	if rec.Kind != record.KindLock {
		return kindMismatch(key, rec, record.KindLock)
	}
	if h := excludes(rec, want); h != nil {
		return heldError(key, &engine.RefusedError{Result: record.Result{Verdict: record.Held, Blocker: *h}})
	}
	return nil
}

// excludes returns a holder in a mode that want excludes.
func excludes(rec *record.Record, want record.Mode) *record.Entry {
	if rec == nil {
		return nil
	}
	for i := range rec.Holders {
		if !record.Compatible(rec.Holders[i].Mode, want) {
			return &rec.Holders[i]
		}
	}
	return nil
}

// Validate reports whether a stamp is still valid. True is proved, by a quorum: nobody has held the lock exclusively
// (a path: its last level exclusively, or one above it) from the call of Optimistic until an instant after the call
// of Validate. False says that somebody may have: any change of the record counts, also that of a reader or a waiter,
// and so does the end of its buckets or a doubt about them. After an error it is not known; take it for false.
//
// It costs one write and one round trip, which all goroutines that validate stamps of a lock at the same time
// share, and nothing if the change is known. On replicated buckets validations of one lock exclude each other
// and its writers for the length of a round trip, and give way to these: for a lock that changes often,
// or that many processes read at the same time, a Shared hold is better.
//
// What an operator takes away by force (ForceNow) counts as not held any more, although its holder
// learns of it only within a second.
//
// Errors: the context's, since it tries again until that ends; ErrClosed; ErrUnavailable of a manager with
// WithFailFast; ErrInvalidOption for another manager's stamp.
func (m *Manager) Validate(ctx context.Context, st Stamp) (bool, error) {
	return m.validate(ctx, st, engine.ProveOptions{FailFast: m.cfg.failFast})
}

func (m *Manager) validate(caller context.Context, st Stamp, opt engine.ProveOptions) (valid bool, err error) {
	if st.s != nil && st.s.m != m {
		return false, fmt.Errorf("%w: a stamp of %q by another manager", ErrInvalidOption, st.key)
	}
	m.optimism.reads.Add(1)
	if m.endReason() != nil {
		return false, m.endReason()
	}
	if st.void() {
		return false, nil
	}
	ctx, done := m.callContext(caller)
	defer done()
	err = st.each(func(_ int, l *stampLevel) error {
		same, err := st.s.shard(l.enc).engine.Prove(ctx, l.enc, l.rev, opt)
		if err == nil && !same {
			return ErrStale
		}
		return err
	})
	switch {
	case errors.Is(err, ErrStale):
		return false, nil
	case err != nil && errors.Is(st.s.endReason(), ErrBucketGone):
		return false, nil
	case err != nil:
		return false, m.explain(caller, err)
	case st.void():
		return false, nil // what was proved may be that of other buckets
	}
	m.optimism.hits.Add(1)
	return true, nil
}

type optimism struct{ reads, hits, fallbacks atomic.Uint64 }

// OptimisticOption configures ReadOptimistic and Update.
type OptimisticOption func(*optimistic) error

type optimistic struct{ tries int }

// WithTries sets how often to try without a lock, at least once. The default is 3, and 5 for Update.
func WithTries(n int) OptimisticOption {
	return func(o *optimistic) error { return set(&o.tries, n, n >= 1, "%d tries: use at least 1", n) }
}

func newOptimistic(tries int, opts []OptimisticOption) (optimistic, error) {
	o := optimistic{tries: tries}
	for _, opt := range opts {
		if opt == nil {
			return o, fmt.Errorf("%w: an option is nil", ErrInvalidOption)
		}
		if err := opt(&o); err != nil {
			return o, err
		}
	}
	return o, nil
}

const (
	readTries = 3
	// checkPatience is how often the server may put a validation off, because of others, before ReadOptimistic rather holds.
	checkPatience = 5
)

// ReadOptimistic calls fn to read what the lock protects, without holding it, and validates afterwards that nobody
// held it exclusively meanwhile; the error is fn's then. If somebody did, fn is called again, and after three times
// (WithTries), or at once where the lock is held, under a Shared hold. So fn may run several times, and on data that
// are half written: it must not trust them beyond returning them, nor have effects; what it returned and what it has
// read count only once ReadOptimistic returns. Under the hold its context ends if that is lost.
//
// Errors: fn's, those of Optimistic, Validate and, when it came to that, of Acquire.
func (m *Manager) ReadOptimistic(ctx context.Context, key string, fn func(ctx context.Context) error, opts ...OptimisticOption) error {
	o, err := newOptimistic(readTries, opts)
	if err != nil {
		return err
	}
	for range o.tries {
		st, err := m.Optimistic(ctx, key)
		if errors.Is(err, ErrHeld) {
			break
		}
		if err != nil {
			return err
		}
		result := fn(ctx)
		valid, err := m.validate(ctx, st, engine.ProveOptions{Patience: checkPatience, FailFast: m.cfg.failFast})
		if valid {
			return result
		}
		if errors.Is(err, jskv.ErrBusy) {
			break
		}
		if err != nil {
			return err
		}
	}
	m.optimism.fallbacks.Add(1)
	return m.Do(ctx, key, func(ctx context.Context, _ *Lock) error { return fn(ctx) }, WithMode(Shared))
}

// WithStamp makes TryAcquire acquire the lock only if nothing at all has changed since the stamp
// was taken, as a reader that wants to become the writer does. It costs one write, and proves the stamp by it:
// nobody has held the lock exclusively since, and nobody else does now. Otherwise it is ErrStale, or ErrHeld
// where a reader is in the way, and nothing is held. The stamp is to be one of Optimistic, for the same name;
// with another, and with Acquire, it is ErrInvalidOption.
func WithStamp(st Stamp) RequestOption {
	return func(r *request) error {
		if len(st.levels) > 1 {
			return fmt.Errorf("%w: the stamp is of a path: take one of the lock alone", ErrInvalidOption)
		}
		r.stamp, r.noTakeover = &st, true
		return nil
	}
}

// stampedOn returns nil if an attempt can go by its stamp, if it has one.
func (a *attempt) stampedOn(s *session) error {
	if st := a.req.stamp; st != nil && (st.void() || st.s != s) {
		return fmt.Errorf("%w: %q", ErrStale, a.key)
	}
	return nil
}

func (a *attempt) checkStamp() error {
	st := a.req.stamp
	switch {
	case st == nil:
		return nil
	case a.op.Verb != record.OpTry || a.op.Kind != record.KindLock || st.key != "" && st.key != a.key:
		return fmt.Errorf("%w: a stamp of %q is for TryAcquire of that name", ErrInvalidOption, st.key)
	case st.s != nil && st.s.m != a.m:
		return fmt.Errorf("%w: a stamp of %q by another manager", ErrInvalidOption, st.key)
	case st.s == nil:
		return fmt.Errorf("%w: %q: the zero stamp", ErrStale, a.key)
	}
	a.op.Base = st.levels[0].rev
	return nil
}
