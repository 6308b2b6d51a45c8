package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// failFastTimeout is the least time for which a call with WithFailFast waits for a lease; see failFastLimit.
const failFastTimeout = 2 * time.Second

// proofLimit limits how long a claim whose outcome must be reported continues after its caller has given up.
const proofLimit = 10 * time.Second

// Acquire waits in the lock's queue, first come, first served, until the lock is granted or ctx ends. It locks this name
// only: a lock on "a/b" does not exclude a holder of "a"; see AcquirePath. Two acquires that share no context, owner or
// set are two units of work, and a deadlock between them is not detected; limit their waits, or see [WithUnit].
//
// The hold lasts until Release, as long as this process lives and reaches the cluster; see [Lock.Lost]. A wait continues
// through server failures and partitions. If its lease is lost, the acquire queues again at the end, under a new lease.
//
// Every error is a *NotAcquiredError and means that nothing is held. If a request that was given up is still written
// later, the manager removes its entry in the background. Causes of the error are:
//
//   - the context's error, also after WithWaitLimit;
//   - ErrInvalidName, ErrInvalidOption, ErrAlreadyHeld, ErrQueueFull, ErrKindMismatch, ErrMalformedRecord,
//     ErrNewerSchema, ErrClosed, ErrConnectionClosed, kv.ErrFull;
//   - ErrWaitTooLong with WithDeadlineCheck, ErrUnavailable with WithFailFast, ErrDeadlock in a unit of work;
//   - kv.ErrRejected if the server refuses a write permanently, for example because its message size limit was lowered;
//   - if the buckets were deleted and must be opened again, those of [New]: kv.ErrUnsafeConfig, kv.ErrNoBucket,
//     kv.ErrLimit, kv.ErrNewerSchema, kv.ErrNoJetStream, kv.ErrServerTooOld.
func (m *Manager) Acquire(ctx context.Context, key string, opts ...AcquireOption) (*Lock, error) {
	return m.acquire(ctx, key, "", opts)
}

// TryAcquire acquires the lock if no holder and no waiter is in the way. Otherwise it leaves nothing behind and returns
// ErrHeld as a *HeldError, which shows the state of the stream's leader, not of a quorum. A holder that looks dead is
// observed for about its TTL and then replaced; see WithoutTakeover. Other errors are those of Acquire.
func (m *Manager) TryAcquire(ctx context.Context, key string, opts ...AcquireOption) (*Lock, error) {
	return m.acquire(ctx, key, record.OpTry.String(), opts)
}

// Do acquires the lock, calls fn and releases the lock, also if fn panics. The context of fn ends with ctx or with the
// hold; after a loss its cause is ErrLost. The error is that of the acquire, or fn's, joined with ErrLost after a loss.
func (m *Manager) Do(ctx context.Context, key string, fn func(ctx context.Context, l *Lock) error, opts ...AcquireOption) error {
	if fn == nil {
		return errNilFunction
	}
	l, err := m.Acquire(ctx, key, opts...)
	if err != nil {
		return err
	}
	return do(ctx, l, fn)
}

func (m *Manager) acquire(ctx context.Context, key, verb string, opts []AcquireOption) (*Lock, error) {
	h, err := m.Claim(ctx, key, Claim{Kind: KindLock, Verb: verb}, opts...)
	if err != nil {
		return nil, err
	}
	return &Lock{h}, nil
}

// attempt is a running claim. It may need several rounds, with several leases and sessions.
type attempt struct {
	m             *Manager
	key, enc      string
	claim         Claim
	op            record.Op // without the fields that depend on the lease
	req           request
	set           *Set        // the set whose member this round acquires, or nil
	unit          *unit       // unit of work; nil = the claim belongs to none
	victim        error       // the *DeadlockError that ended the last round, or nil
	session       *session    // of the last round, like the next three
	share         *leaseShare // the lease
	id            string
	before        uint64   // the newest revision of the bucket that was seen before
	observedLease string   // lease that was already observed
	roundIDs      []string // ids of all rounds, whose entries may still exist; only with an owner
	began         time.Time
	askedHolders  bool  // the holders were asked to release shared intents or a kept lock
	queued        *bool // whether EventQueued was sent for the last round; nil if nobody wants events
}

var errAgain = errors.New("fabric: acquire again")

// repeat calls try, each time with a new round and a new id, until it is done or until there is a reason to end.
func (a *attempt) repeat(ctx context.Context, try func() (done bool, err error)) error {
	for n := 0; ; n++ {
		done, err := try()
		if done {
			return err
		}
		again, final := a.decideRetry(ctx, err)
		switch {
		case !again:
			return final
		case a.claim.Once && !errors.Is(err, engine.ErrRefused):
			reason := ErrExpired
			if a.session != nil {
				reason = cmp.Or(a.session.endReason(), reason)
			}
			return &LostError{Key: a.key, Reason: reason}
		case n > 0 && !pauseBeforeRetry(ctx, n):
			return ctx.Err()
		}
	}
}

// tryOnce makes one round: it submits the operation once, under one lease, with one id.
func (a *attempt) tryOnce(ctx context.Context) (*Hold, engine.Outcome, error) {
	if err := a.takeLease(ctx); err != nil {
		return nil, engine.Outcome{}, err
	}
	op := a.compose(ctx)
	w := a.session.waiting(a.unit, a.share, a.enc, &op)
	opt := engine.Options{Keeper: a.keeper(), FailFast: a.req.failFast && !op.WaitsAfterUndo(), Stop: a.share.lease.Lost(), AtLeast: op.Base, Queued: w.queued(a.whenQueued())}
	if from := a.claim.From; from != nil {
		op.Holder, op.Token, op.Hold, opt.AtLeast = from.id, from.Token(), releaseOp(from).Hold, from.revision()
		if err := from.supersede(); err != nil {
			a.share.unregister(op.ID)
			return nil, engine.Outcome{}, err
		}
		defer from.share.drop(from)
		also := opt.Queued
		opt.Queued = func(p record.Place) {
			if from.share.drop(from); also != nil {
				also(p)
			}
		}
	}
	if a.set != nil {
		opt.Stop = a.set.stop(a.share)
	} else {
		opt.Turns = a.m.cfg.turns && op.Kind == record.KindLock && op.Verb == record.OpAcquire && op.Mode == record.X && !op.Value.Set
	}
	out, err := a.do(ctx, &op, opt)
	a.victim = w.end(err)
	h, err := a.finishRound(ctx, &op, out, err)
	return h, out, err
}

// compose makes the operation of a round, with a new id. If the round fails, finishRound unregisters the id.
func (a *attempt) compose(ctx context.Context) record.Op {
	op := a.op
	op.ID, op.Lease, op.Since = a.share.lease.NextOp(), a.share.id, time.Now()
	a.id, a.before = op.ID, a.session.shard(a.enc).seen()
	if deadline, ok := ctx.Deadline(); ok && a.req.deadlineCheck {
		op.Patience = max(time.Until(deadline), 1)
	}
	if a.req.owner != "" {
		a.roundIDs = append(a.roundIDs, op.ID)
	}
	a.share.register(op.ID, nil)
	return op
}

// finishRound makes a handle from the outcome of a round.
func (a *attempt) finishRound(ctx context.Context, op *record.Op, out engine.Outcome, err error) (*Hold, error) {
	if err != nil {
		if errors.Is(err, engine.ErrGone) || a.claim.From != nil {
			// A deposed leader may have answered the reads. No entry may remain under a live lease.
			a.session.shard(a.enc).doer.ReleaseInBackground(a.enc, a.share.id, op.ID, 0)
		}
		if from := a.claim.From; from != nil {
			from.releaseInBackground()
		}
		return a.withdraw(cmp.Or(a.victim, err))
	}
	h, err := a.granted(ctx, op, out)
	switch {
	case err != nil:
		return nil, err
	case h == nil || !op.WaitsAfterUndo() || out.Entry.Signalled != "":
		return h, nil
	case ctx.Err() != nil:
		return h, ctx.Err()
	}
	// The claim came back at once: the condition's queue was full.
	return h, fmt.Errorf("%w: %q: condition %q", ErrQueueFull, a.key, op.Queue)
}

// takeLease finds the session and the lease for a round.
func (a *attempt) takeLease(ctx context.Context) (err error) {
	if a.set != nil {
		a.session, a.share = a.set.s, a.set.share
		if !a.share.enter() {
			return errAgain
		}
		return nil
	}
	if from := a.claim.From; from != nil {
		a.session, a.share = from.s, from.share
		switch {
		case from.set != nil:
			return from.member()
		case from.Err() != nil:
			return from.Err()
		case !a.share.enter():
			return cmp.Or(from.Err(), error(&LostError{Key: from.key, Token: from.Token(), Reason: from.share.whyLost()}))
		}
		return nil
	}
	if a.session, err = a.m.session(ctx); err != nil {
		return err
	}
	if err = a.session.awaitReady(ctx, a.req.failFast); err != nil {
		return err
	}
	if err = a.stampedOn(a.session); err != nil {
		return err
	}
	// Before a lease is created, a note of the TTL may have to be read and written.
	limited, cancel := a.limit(ctx)
	defer cancel()
	if a.share, err = a.session.leaseShare(limited, a.req.timing); err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("%w: no lease in %v: %w", ErrUnavailable, a.failFastLimit(), err)
	}
	return err
}

// limit returns a context with the time limit of fail-fast, or ctx without fail-fast.
func (a *attempt) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if !a.req.failFast {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, a.failFastLimit())
}

// failFastLimit returns how long an acquire with fail-fast waits for a lease.
func (a *attempt) failFastLimit() time.Duration { return max(failFastTimeout, 4*a.m.rtt.Timeout()) }

// do does the operation. One that stays in its queue when ctx ends is waited for as long as the manager lives.
func (a *attempt) do(ctx context.Context, op *record.Op, opt engine.Options) (engine.Outcome, error) {
	if !op.WaitsAfterUndo() {
		return engine.Do(ctx, a.session.shard(a.enc).doer, a.enc, *op, opt)
	}
	undo := *op
	stop := context.AfterFunc(ctx, func() { a.session.shard(a.enc).doer.UndoInBackground(a.enc, undo, opt.AtLeast) })
	defer stop()
	bound, done := a.m.callContext(context.WithoutCancel(ctx))
	defer done()
	return engine.Do(bound, a.session.shard(a.enc).doer, a.enc, *op, opt)
}

// granted makes a handle from an outcome. It returns nil if there is nothing to release.
func (a *attempt) granted(ctx context.Context, op *record.Op, out engine.Outcome) (*Hold, error) {
	if out.Uses > 1 {
		return a.joined(out)
	}
	s, sl := a.session, a.share
	useless := func(err error) (*Hold, error) {
		s.shard(a.enc).doer.ReleaseInBackground(a.enc, sl.id, op.ID, out.Revision)
		return a.withdraw(err)
	}
	err := a.confirm(ctx, op, out)
	if err == nil {
		err = a.stampedOn(s)
	}
	if err != nil && !op.WaitsAfterUndo() {
		return useless(err)
	}
	if out.Entry == nil {
		a.reportPassed()
		sl.unregister(op.ID)
		return nil, nil
	}
	h := newHold(sl, a.key, a.enc, out, &a.req)
	h.set, h.lock, h.unit = a.set, op.Kind == record.KindLock, a.unit
	h.posted = a.req.posted && (h.lock || op.Kind == record.KindSemaphore)
	if out.Turn {
		h.byTurn = out.Entry.Token
	}
	if a.set == nil { // a set does this once, when all its members are granted
		if err := a.begin(ctx, h); err != nil {
			return useless(err)
		}
	}
	sl.register(h.id, h)
	s.mu.Lock()
	if !out.Kept { // the engine watches kept entries
		s.unwatched = append(s.unwatched, h)
	}
	ended := s.ended
	s.mu.Unlock()
	a.unit.add(h)
	// The last check: the lease may have been lost while the acquire waited or this process was stopped.
	if !sl.lease.Valid() || ended != nil || out.Entry.Revoked || out.Kept && !s.shard(a.enc).engine.Kept(a.enc, op.ID) || a.set == nil && !h.handOut(a) {
		h.lose(ErrExpired)
		s.shard(a.enc).doer.ReleaseInBackground(a.enc, sl.id, op.ID, out.Revision)
		why := errAgain
		if out.Entry.Revoked {
			why = ErrRevoked
		}
		a.reportWithdrawn(why)
		return nil, errAgain
	}
	return h, nil
}

// withdraw ends a round that was not granted.
func (a *attempt) withdraw(err error) (*Hold, error) {
	a.reportWithdrawn(err)
	a.share.unregister(a.id)
	return nil, err
}

// confirm calls the shard's confirm. An outcome that must be reported, for example that a generation of a barrier has
// ended, is confirmed even if the caller has given up in the meantime.
func (a *attempt) confirm(ctx context.Context, op *record.Op, out engine.Outcome) error {
	limited, cancel := a.limit(ctx)
	defer cancel()
	err := a.session.shard(a.enc).confirm(limited, out, a.before)
	switch {
	case err == nil:
	case ctx.Err() == nil && limited.Err() != nil:
		return fmt.Errorf("%w: not known whether the locks bucket was replaced", ErrUnavailable)
	case ctx.Err() != nil && op.Proven():
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), proofLimit)
		defer cancel()
		late, done := a.m.callContext(late)
		defer done()
		if err = a.session.shard(a.enc).confirm(late, out, a.before); err != nil && late.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUncertain, ctx.Err())
		}
	}
	return err
}

// begin starts the limits of a hold, if it has any.
func (a *attempt) begin(ctx context.Context, h *Hold) error {
	t, le := a.req.timing, h.share.lease
	if !t.limited() {
		return nil
	}
	if age := le.TTL() - le.Margin() - le.Remaining(); age > t.ttl/20 {
		// The hold's time starts with its grant, not when the acquire was queued or the lease was created.
		ctx, cancel := a.limit(ctx)
		defer cancel()
		if err := le.Renew(ctx); err != nil {
			return errAgain
		}
	}
	le.Limit(!t.noRenewal, t.maxRenewals)
	return nil
}

// decideRetry decides whether to try again after an error. If not, it returns the final form of the error.
func (a *attempt) decideRetry(ctx context.Context, err error) (again bool, final error) {
	var refused *engine.RefusedError
	switch {
	case errors.As(err, &refused):
		return a.retryRefused(ctx, refused)
	case errors.Is(err, ErrUncertain):
		return false, err
	case errors.Is(err, engine.ErrUncertain):
		return false, fmt.Errorf("%w: %w", ErrUncertain, err)
	case errors.Is(err, engine.ErrGone) && a.op.Kind == record.KindBarrier:
		// The deleted record also contained how the generation ended.
		return false, fmt.Errorf("%w: the record of %q was deleted", ErrUncertain, a.key)
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
		// The session has ended; the manager may still be open.
		_, serr := a.m.session(ctx)
		if errors.Is(serr, ErrClosed) || a.req.failFast && serr != nil {
			return false, serr
		}
		return true, nil
	case errors.Is(err, kv.ErrFull):
		return false, err // waiting does not help: somebody must free space
	case errors.Is(translate(err), ErrUnavailable):
		return !a.req.failFast, err
	}
	return false, err
}
