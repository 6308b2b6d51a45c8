package fabric

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// failFastTimeout bounds what a call with WithFailFast waits for a lease, on a link
// that is not slower than that.
const failFastTimeout = 2 * time.Second

// Acquire waits in the lock's queue, first come first served, until it is
// granted or ctx ends, and returns the hold.
//
// The hold lasts until Release, however long that is, as long as this process
// lives and reaches the cluster; see [Lock.Lost]. A wait goes on through server
// failures and partitions; if the lease of the waiting acquire is lost
// meanwhile, it queues again at the end under a new one.
//
// Every error is a *NotAcquiredError, and means that nothing is held: what a
// request that was given up may still write is removed in the background. Its
// causes: the context's error (also after WithWaitLimit), ErrInvalidName,
// ErrInvalidOption, ErrAlreadyHeld, ErrQueueFull, ErrKindMismatch,
// ErrMalformedRecord, ErrNewerSchema, ErrClosed, kv.ErrFull, ErrWaitTooLong with WithDeadlineCheck,
// and ErrUnavailable with WithFailFast; kv.ErrRejected where the server refuses a write
// for good, as it does when its limit of a message was lowered; and, if the buckets
// were deleted and have to be opened again, those of [New]: kv.ErrUnsafeConfig,
// kv.ErrNoBucket, kv.ErrLimit, kv.ErrNewerSchema, kv.ErrNoJetStream, kv.ErrServerTooOld.
func (m *Manager) Acquire(ctx context.Context, key string, opts ...AcquireOption) (*Lock, error) {
	return m.acquire(ctx, key, record.OpAcquire, opts)
}

// TryAcquire acquires the lock if nobody is in the way, and otherwise leaves
// nothing behind and returns ErrHeld as a *HeldError. A refusal is decided on what
// the stream's leader has, not by a quorum. A holder that looks dead is
// observed for about its TTL and replaced, so a refusal may take that long; see
// WithoutTakeover. Other errors are those of Acquire.
func (m *Manager) TryAcquire(ctx context.Context, key string, opts ...AcquireOption) (*Lock, error) {
	return m.acquire(ctx, key, record.OpTry, opts)
}

// Do acquires the lock, calls fn and releases the lock, also when fn panics. The
// context given to fn ends when ctx ends or the hold is lost, with ErrLost as its
// cause then. The error is the acquire's, or fn's joined with ErrLost if the hold
// was lost before it was released.
func (m *Manager) Do(ctx context.Context, key string, fn func(ctx context.Context, l *Lock) error, opts ...AcquireOption) (err error) {
	l, err := m.Acquire(ctx, key, opts...)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := l.Release(ctx); isLost(rerr) {
			err = errors.Join(err, rerr)
		}
	}()
	held := l.Context()
	fctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(held, func() { cancel(context.Cause(held)) })()
	return fn(fctx, l)
}

func (m *Manager) acquire(caller context.Context, key string, verb record.Verb, opts []AcquireOption) (*Lock, error) {
	fail := func(err error) (*Lock, error) {
		return nil, &NotAcquiredError{Key: key, Cause: m.explain(caller, err)}
	}
	req, err := m.cfg.newRequest(opts)
	if err != nil {
		return fail(err)
	}
	enc, err := kv.EncodeName(key)
	if err != nil {
		return fail(err)
	}
	if err := caller.Err(); err != nil {
		return fail(err)
	}
	ctx, done := m.bind(caller)
	defer done()
	if req.waitLimit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, req.waitLimit)
		defer cancel()
	}
	a := attempt{m: m, key: key, enc: enc, verb: verb, req: req, began: time.Now()}
	for n := 0; ; n++ {
		l, err := a.once(ctx)
		if err == nil {
			return l, nil
		}
		again, err := a.judge(ctx, err)
		if !again {
			return fail(err)
		}
		// A new round, with a new id at the end of the queue.
		if n > 0 && !sleep(ctx, min(time.Duration(n)*10*time.Millisecond, time.Second)) {
			return fail(ctx.Err())
		}
	}
}

// attempt is one acquire under way, over as many leases and sessions as it takes.
type attempt struct {
	m        *Manager
	key, enc string
	verb     record.Verb
	req      request
	session  *session // of the last round
	waitedID string   // lease that was observed already
	mine     []string // with an owner: ids of all rounds, whose entries may still stand
	began    time.Time
	queued   *bool // an event that the last round is queued was sent; nil if nobody wants to know
}

var errAgain = errors.New("fabric: acquire again")

// once submits one operation, under one lease, with one id.
func (a *attempt) once(ctx context.Context) (*Lock, error) {
	s, err := a.m.session(ctx)
	if err != nil {
		return nil, err
	}
	a.session = s
	if err := s.awaitReady(ctx, a.req.failFast); err != nil {
		return nil, err
	}
	sl, err := a.slot(ctx, s)
	if err != nil {
		return nil, err
	}
	mode, err := a.req.mode.record()
	if err != nil {
		sl.leave()
		return nil, err
	}
	started := time.Now()
	op := record.Op{
		Kind: record.KindLock, Verb: a.verb, ID: sl.lease.NextOp(), Lease: sl.id, Mode: mode, Owner: a.req.owner,
		TTL: a.req.timing.ttl, Since: started, Meta: a.req.metadata,
	}
	if deadline, ok := ctx.Deadline(); ok && a.req.inTime {
		op.Patience = max(time.Until(deadline), 1)
	}
	if a.req.owner != "" {
		a.mine = append(a.mine, op.ID)
	}
	before := s.seen()
	sl.begin(op.ID)
	out, err := s.engine.Do(ctx, a.enc, op, engine.Options{FailFast: a.req.failFast, Stop: sl.lease.Lost(), Queued: a.whenQueued(sl, op.ID)})
	if err != nil {
		if errors.Is(err, engine.ErrGone) {
			// It may stand after all: the reads that said otherwise can be those of
			// a deposed leader. Nothing may be left under a lease that lives.
			s.engine.Forget(a.enc, sl.id, op.ID, 0)
		}
		a.withdrawn(sl, op.ID, err)
		sl.give(op.ID)
		return nil, err
	}
	if err := a.confirm(ctx, out, before); err != nil {
		s.engine.Forget(a.enc, sl.id, op.ID, out.Revision)
		a.withdrawn(sl, op.ID, err)
		sl.give(op.ID)
		return nil, err
	}
	l := &Lock{s: s, slot: sl, key: a.key, enc: a.enc, entry: out.Entry, rev: out.Revision, failFast: a.req.failFast}
	if err := a.begin(ctx, l); err != nil {
		s.engine.Forget(a.enc, sl.id, op.ID, out.Revision)
		a.withdrawn(sl, op.ID, err)
		sl.give(op.ID)
		return nil, err
	}
	sl.hold(l)
	s.mu.Lock()
	s.fresh = append(s.fresh, freshLock{l, time.Now()})
	ended := s.ended
	s.mu.Unlock()
	// The last look before the grant is handed out: a lease that was lost while
	// the acquire waited, or this process slept, grants nothing.
	if !sl.lease.Valid() || ended != nil || out.Entry.Revoked || !l.handOut(a) {
		l.lose(ErrExpired)
		s.engine.Forget(a.enc, sl.id, op.ID, out.Revision)
		why := errAgain
		if out.Entry.Revoked {
			why = ErrRevoked
		}
		a.withdrawn(sl, op.ID, why)
		return nil, errAgain
	}
	return l, nil
}

// slot returns a lease for the acquire, after a bounded time if it is to fail fast.
func (a *attempt) slot(ctx context.Context, s *session) (*slot, error) {
	if !a.req.failFast {
		return s.slot(ctx, a.req.timing)
	}
	// A note of the TTL may have to be read and written before the lease is made.
	limit := a.failFastLimit()
	fctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sl, err := s.slot(fctx, a.req.timing)
	if err != nil && ctx.Err() == nil && fctx.Err() != nil {
		err = fmt.Errorf("%w: no lease in %v: %w", ErrUnavailable, limit, err)
	}
	return sl, err
}

// confirm is explained at session.confirm. It takes a bounded time if the acquire is
// to fail fast.
func (a *attempt) confirm(ctx context.Context, out engine.Outcome, before uint64) error {
	if !a.req.failFast {
		return a.session.confirm(ctx, out, before)
	}
	fctx, cancel := context.WithTimeout(ctx, a.failFastLimit())
	defer cancel()
	err := a.session.confirm(fctx, out, before)
	if err != nil && ctx.Err() == nil && fctx.Err() != nil {
		err = fmt.Errorf("%w: not known whether the locks bucket was replaced", ErrUnavailable)
	}
	return err
}

// failFastLimit is how long to wait for a lease where the acquire is to fail fast.
func (a *attempt) failFastLimit() time.Duration { return max(failFastTimeout, 4*a.m.rtt.Timeout()) }

// begin starts the limits of a hold that has any.
func (a *attempt) begin(ctx context.Context, l *Lock) error {
	t, le := a.req.timing, l.slot.lease
	if !t.limited() {
		return nil
	}
	if age := le.TTL() - le.Margin() - le.Remaining(); age > t.ttl/20 {
		// The hold's time counts from its grant, not from when it queued or its lease
		// was made.
		if a.req.failFast {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, a.failFastLimit())
			defer cancel()
		}
		if err := le.Renew(ctx); err != nil {
			return errAgain
		}
	}
	le.Limit(!t.noRenewal, t.maxRenewals)
	return nil
}

// judge decides whether to acquire again after an error, and gives the error
// its final form if not.
func (a *attempt) judge(ctx context.Context, err error) (again bool, final error) {
	var refused *engine.RefusedError
	switch {
	case errors.As(err, &refused):
		return a.judgeRefusal(ctx, refused)
	case ctx.Err() != nil:
		switch {
		case errors.Is(err, ctx.Err()):
			return false, err
		case errors.Is(err, errAgain):
			return false, ctx.Err()
		}
		return false, fmt.Errorf("%w (%w)", ctx.Err(), translate(err))
	case errors.Is(err, errAgain), errors.Is(err, engine.ErrGone), errors.Is(err, engine.ErrStopped):
		return true, nil
	case errors.Is(err, engine.ErrClosed), errors.Is(err, ErrBucketGone):
		// The session ended, the manager perhaps not.
		_, serr := a.m.session(ctx)
		if errors.Is(serr, ErrClosed) || a.req.failFast && serr != nil {
			return false, serr
		}
		return true, nil
	case errors.Is(err, kv.ErrFull):
		return false, err // somebody has to make room; waiting does not
	case errors.Is(translate(err), ErrUnavailable):
		return !a.req.failFast, err
	}
	return false, err
}

func (a *attempt) judgeRefusal(ctx context.Context, refused *engine.RefusedError) (again bool, final error) {
	switch refused.Verdict {
	case record.Held, record.AlreadyHeld, record.WaitTooLong:
		again, err := a.takeover(ctx, refused)
		if again || err != nil {
			return again, err
		}
		b := refused.Blocker
		if time.Since(b.Since) > settled && a.session.nobodys(&b) {
			a.session.release(a.enc, &b, 0)
			return true, nil
		}
		if refused.Verdict == record.AlreadyHeld && slices.Contains(a.mine, b.ID) {
			return true, nil // this very acquire, under a lease it has lost: about to go
		}
		if refused.Verdict == record.WaitTooLong {
			e := &WaitTooLongError{Key: a.key, Expected: refused.Wait, Position: refused.Position, Owner: b.OwnerID()}
			if deadline, ok := ctx.Deadline(); ok {
				e.Allowed = max(time.Until(deadline), 0)
			}
			return false, e
		}
		return false, &HeldError{
			Key: a.key, Owner: b.OwnerID(), Mode: Mode(b.Mode.String()), Since: b.Since, Token: b.Token,
			Metadata: maps.Clone(b.Meta), already: refused.Verdict == record.AlreadyHeld,
		}
	case record.QueueFull:
		return false, fmt.Errorf("%w: %q: the limit is %s", ErrQueueFull, a.key, refused.Limit)
	case record.WrongKind:
		return false, ErrKindMismatch
	}
	return false, fmt.Errorf("fabric: operation refused: %v", refused.Verdict)
}

// takeover looks whether those in the way are dead, and evicts them if so. It
// reports whether it is worth to try again.
func (a *attempt) takeover(ctx context.Context, refused *engine.RefusedError) (bool, error) {
	var dead []string
	var stale *record.Entry
	s := a.session
	for _, look := range a.lookAt(ctx, inTheWay(refused)) {
		switch {
		case look.err != nil:
			return false, nil //nolint:nilerr // the refusal stands; nothing is known about the holder
		case look.state.Dead:
			dead = append(dead, look.entry.Lease())
		case (look.state.Stale || look.over) && stale == nil:
			stale = &look.entry
		}
	}
	if len(dead) == 0 && stale != nil && !a.req.noTakeover {
		a.waitedID = stale.Lease()
		gone, err := s.observer.WaitDead(ctx, stale.Lease(), stale.TTL)
		if err != nil && ctx.Err() != nil {
			return false, ctx.Err()
		}
		if gone {
			dead = append(dead, stale.Lease())
		}
	}
	if len(dead) == 0 {
		return false, nil
	}
	_, err := s.engine.Do(ctx, a.enc, record.Op{Verb: record.OpEvict, Leases: dead}, engine.Options{FailFast: a.req.failFast})
	return err == nil, nil
}

// look is what was found out about one of those in the way.
type look struct {
	entry record.Entry
	over  bool // its lease is one that this process has lost
	state lease.State
	err   error
}

// lookAt checks the leases of entries that may have been left behind, all at once:
// a try would take a round trip for each of them otherwise.
func (a *attempt) lookAt(ctx context.Context, entries []record.Entry) []look {
	var looks []look
	for _, e := range entries {
		live, over := a.session.own(e.Lease()) // before it is checked: over ends with the tombstone
		if !live && e.Lease() != a.waitedID {
			looks = append(looks, look{entry: e, over: over})
		}
	}
	check := func(l *look) {
		l.state, l.err = a.session.observer.Check(ctx, l.entry.Lease(), l.entry.TTL)
	}
	if len(looks) == 1 {
		check(&looks[0])
		return looks
	}
	var wg sync.WaitGroup
	for i := range looks {
		wg.Go(func() { check(&looks[i]) })
	}
	wg.Wait()
	return looks
}

// inTheWay returns one entry for each lease that a refusal may be due to.
func inTheWay(refused *engine.RefusedError) []record.Entry {
	if refused.Verdict == record.AlreadyHeld || refused.Record == nil {
		return []record.Entry{refused.Blocker}
	}
	const limit = 32 // leases to ask about; the others have to wait for their turn
	seen := map[string]bool{}
	var out []record.Entry
	for _, list := range [][]record.Entry{refused.Record.Holders, refused.Record.Waiters} {
		for _, e := range list {
			if id := e.Lease(); !seen[id] && len(out) < limit {
				seen[id] = true
				out = append(out, e)
			}
		}
	}
	return out
}
