package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Stamp is a moment at which nobody held a lock exclusively, as seen by one manager. It holds nothing and blocks
// nobody. See [Manager.Optimistic]. The zero Stamp is never valid.
type Stamp struct {
	key    string
	s      *session
	doubts uint64       // number of doubts about the buckets before the stamp was taken
	levels []stampLevel // from the root down
}

type stampLevel struct {
	enc string
	rev uint64 // never 0, because a name can be absent again later
}

// Key returns the name of the lock, or the path.
func (st Stamp) Key() string { return st.key }

// void reports whether the buckets of the stamp may have been replaced.
func (st *Stamp) void() bool {
	return st.s == nil || st.s.ctx.Err() != nil || st.s.doubts.raised.Load() != st.doubts
}

// Optimistic takes a stamp of a lock for an optimistic read: take a stamp, read what the lock protects, and use the
// result only if [Manager.Validate] says that the stamp is still valid. Until then, the data may be inconsistent.
// [Manager.ReadOptimistic] does all these steps. Optimistic writes nothing, so readers cost others nothing. If this
// manager watches the lock or has validated its last stamp of it, it costs nothing, otherwise one read, and one write if
// the name was not used for 15 minutes.
//
// A *HeldError (ErrHeld) means that somebody holds the lock in a mode that conflicts with Shared. Waiters do not
// matter. Other errors: ErrKindMismatch, ErrInvalidName, ErrMalformedRecord, ErrNewerSchema, ErrClosed, the context's,
// and ErrUnavailable for a manager with WithFailFast.
func (m *Manager) Optimistic(ctx context.Context, key string) (Stamp, error) {
	return m.optimistic(ctx, key, key)
}

// OptimisticPath is Optimistic for a path "a/b/c" whose users take intents on "a" and "a/b"; see [Manager.AcquirePath].
// A holder of a level above in a conflicting mode also makes the stamp invalid. It costs the same for each level as for
// one lock, with the same number of round trips.
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
		} // the session has ended; try again with the next one
	}
}

// take fills in the stamp, with the current session.
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
				_, _, _ = st.s.shard(l.enc).engine.Read(ctx, l.enc) // the known record is older than the release
				rec, rev, err = st.s.shard(l.enc).engine.Stamp(ctx, l.enc, m.cfg.failFast)
			}
		}
		if err != nil {
			return err
		}
		l.rev = rev
		switch by := excludes(rec, want); {
		case rec != nil && rec.Kind != record.KindLock:
			return kindMismatch(levels[i], rec, record.KindLock)
		case by != nil:
			return heldError(levels[i], by, false)
		}
		return nil
	})
}

// each calls fn for all levels at the same time and returns the error of the first level.
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

// excludes returns a holder whose mode conflicts with want, or nil.
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

// Validate reports whether a stamp is still valid. True is proved by a quorum: nobody has held the lock exclusively (of a
// path: the last level exclusively, or a level above in a conflicting mode) from the call of Optimistic until a moment
// after the call of Validate. False means that somebody may have: any change of the record counts, also of a reader or a
// waiter, and so does the end of the buckets or a doubt about them. After an error it is unknown; treat it as false.
//
// Validate costs one write and one round trip, which goroutines that validate a lock at the same time share, and nothing
// if the manager already knows a change. On replicated buckets, validations of one lock conflict with each other and with
// writers of its record for the time of a round trip, and give way to writers. If a lock changes often, or many processes
// read it at the same time, a Shared hold is better.
//
// A hold that an operator removes with ForceNow no longer counts, although its holder learns of this only within a
// second.
//
// Errors: the context's, because Validate retries until the context ends; ErrClosed; ErrUnavailable for a manager with
// WithFailFast; ErrInvalidOption for a stamp of another manager.
func (m *Manager) Validate(ctx context.Context, st Stamp) (bool, error) {
	return m.validate(ctx, st, engine.ProveOptions{FailFast: m.cfg.failFast})
}

func (m *Manager) validate(caller context.Context, st Stamp, opt engine.ProveOptions) (valid bool, err error) {
	if st.s != nil && st.s.m != m {
		return false, fmt.Errorf("%w: a stamp of %q by another manager", ErrInvalidOption, st.key)
	}
	m.optimisticReads.Add(1)
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
		return false, nil // the proof may be about other buckets
	}
	m.optimisticHits.Add(1)
	return true, nil
}

// OptimisticOption configures ReadOptimistic and Update.
type OptimisticOption func(*tries) error

type tries int

// WithTries sets how often to try without a lock, at least once. The default is 3, and 5 for Update.
func WithTries(n int) OptimisticOption {
	return func(t *tries) error { return set(t, tries(n), n >= 1, "%d tries: use at least 1", n) }
}

func triesOf(opts []OptimisticOption, n tries) (tries, error) {
	for _, o := range opts {
		if o == nil {
			return 0, errNilOption
		}
		if err := o(&n); err != nil {
			return 0, err
		}
	}
	return n, nil
}

const (
	readTries = 3
	// checkPatience is how often a validation may be delayed by others before ReadOptimistic acquires the lock.
	checkPatience = 5
)

// ReadOptimistic calls fn to read what the lock protects, without holding the lock, validates that nobody held it
// exclusively in the meantime, and returns fn's error. If somebody did, it calls fn again. After three tries
// (WithTries), or at once if the lock is held, it calls fn under a Shared hold, with a context that ends with the hold.
// So fn may run several times and may see half-written data: it must only return the data, without side effects. The
// data is valid only when ReadOptimistic has returned.
//
// Errors: fn's, those of Optimistic and Validate, and, if a hold was needed, those of Acquire.
func (m *Manager) ReadOptimistic(ctx context.Context, key string, fn func(ctx context.Context) error, opts ...OptimisticOption) error {
	if fn == nil {
		return errNilFunction
	}
	most, err := triesOf(opts, readTries)
	if err != nil {
		return err
	}
	for range most {
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
	m.optimisticFallbacks.Add(1)
	return m.Do(ctx, key, func(ctx context.Context, _ *Lock) error { return fn(ctx) }, WithMode(Shared))
}

// WithStamp makes TryAcquire acquire the lock only if nothing has changed since the stamp was taken, for a reader that
// wants to write. Its one write also proves that nobody has held the lock exclusively since. Otherwise nothing is held,
// and the error is ErrStale, or ErrHeld if a reader is in the way. The stamp must come from Optimistic for the same name.
// Another stamp, or the use with Acquire, is ErrInvalidOption.
func WithStamp(st Stamp) RequestOption {
	return func(r *request) error {
		if len(st.levels) > 1 {
			return fmt.Errorf("%w: the stamp is of a path: take one of the lock alone", ErrInvalidOption)
		}
		r.stamp, r.noTakeover = &st, true
		return nil
	}
}

// stampedOn returns nil if the attempt has no stamp, or a stamp of this session that is still usable.
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
