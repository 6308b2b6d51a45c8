package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// The kinds of records. Package primitives has a type for each use of them.
const (
	KindLock      = string(record.KindLock)
	KindSemaphore = string(record.KindSemaphore)
	KindBarrier   = string(record.KindBarrier)
	KindGate      = string(record.KindGate)
	KindLatch     = string(record.KindLatch)
	KindOnce      = string(record.KindOnce)
)

// Claim is a request of [Manager.Claim] and [Manager.Await]. Its data depend on the kind of the record. Package
// primitives consists of claims and posts.
type Claim struct {
	Kind string // one of the Kind constants
	Verb string // what is requested, by the name that the kind defines; "" = acquire

	Mode    Mode   // for locks
	Permits int    // for semaphores
	Limit   int    // the size, number of parties or initial count that the caller expects
	Gen     uint64 // Info.Generation, as the caller read it
	Life    uint64 // Info.Life, as the caller read it
	Queue   string // name of a condition
	Value   []byte // for elections; nil = none, empty is a value

	// Once ends the claim with ErrLost if its lease is lost while it waits. Otherwise it is made again.
	Once bool
	// From is a hold that the claim replaces in the same write, under its lease. The handle is released at once.
	From *Hold
}

// Post is a change of a record's state that does not wait.
type Post struct {
	Kind, Verb string

	N     int // permits or counts; for a finish, how many seconds the result stays at least (0 = until it is deleted)
	Limit int // as in Claim
	Gen   uint64
	Life  uint64
	Base  uint64 // revision of the record that the caller read, on which the change is based
	Queue string
	All   bool // for a signal: to all waiters; for the deletion of a latch: even if somebody waits
	Fail  bool
	Value []byte // nil = none

	// Ends is for a post of a hold: the post ends the hold. The handle is released before the post is sent.
	Ends bool
}

// Claim waits until the claim is granted or ctx ends, like Acquire for a lock, and returns the hold. Every error is a
// *NotAcquiredError. Its causes are those of Acquire and those of the kind: ErrTooLarge, a *SizeMismatchError, a
// *BrokenError, ErrStale, ErrDeleted, ErrFinished; and ErrUncertain, if the outcome could not be found out in time.
//
// A claim with From that stays in a queue when ctx ends asks to be granted as soon as possible. Claim then returns the
// hold together with ctx's error.
func (m *Manager) Claim(ctx context.Context, key string, c Claim, opts ...AcquireOption) (*Hold, error) {
	h, _, err := m.Await(ctx, key, c, opts...)
	if err != nil {
		return h, &NotAcquiredError{Key: key, Cause: err}
	}
	return h, nil
}

// Await waits like Claim, for something that need not be released, for example a barrier that trips or a latch that
// opens, and returns the record that shows this. The hold is nil unless the caller must release something, for example
// the right to run a barrier's action. Errors are the causes of Claim's errors.
func (m *Manager) Await(ctx context.Context, key string, c Claim, opts ...AcquireOption) (*Hold, Info, error) {
	req, err := m.cfg.newRequest(opts)
	if err != nil {
		return nil, Info{}, m.explain(ctx, err)
	}
	if h := m.join(ctx, key, &c, &req); h != nil {
		return h, Info{}, nil
	}
	a := attempt{m: m, key: key, claim: c, req: req, began: time.Now()}
	var leave func()
	if a.unit, leave = m.unitFor(ctx, &req); c.From != nil {
		a.unit = c.From.unit
	}
	defer leave()
	if err := cmp.Or(a.prepare(), ctx.Err()); err != nil {
		return nil, Info{}, m.explain(ctx, err)
	}
	bound, done := m.callContextFor(ctx, req.waitLimit)
	defer done()
	var h *Hold
	var out engine.Outcome
	err = a.repeat(bound, func() (done bool, err error) {
		h, out, err = a.tryOnce(bound)
		// A claim that replaced a hold by a place in a queue tries to return a new hold even with an error.
		return err == nil || h != nil, err
	})
	if err != nil || h != nil {
		return h, Info{}, m.explain(ctx, err)
	}
	info := newInfo(key, out.Record, out.Revision)
	info.Claim = a.id
	return nil, info, nil
}

// prepare makes the attempt's operation, without the fields that depend on the lease, and its encoded name.
func (a *attempt) prepare() (err error) {
	if a.op, err = a.claim.op(&a.req); err != nil {
		return err
	}
	if err = a.checkStamp(); err != nil {
		return err
	}
	a.enc, err = kv.EncodeName(a.key)
	return err
}

func (c *Claim) op(req *request) (record.Op, error) {
	op := record.Op{
		Kind: record.Kind(c.Kind), Verb: record.OpAcquire,
		N: c.Permits, Limit: c.Limit, Gen: c.Gen, Life: c.Life, Queue: c.Queue, Value: valueOf(c.Value),
		Owner: req.owner, TTL: req.timing.ttl, Meta: req.metadata,
	}
	if c.Verb != "" {
		if op.Verb = record.VerbNamed(c.Verb); op.Verb == 0 {
			return op, fmt.Errorf("%w: there is no claim %q", ErrInvalidOption, c.Verb)
		}
	}
	var err error
	if c.Kind == KindLock {
		op.Mode, err = cmp.Or(c.Mode, req.mode).record()
	}
	return op, err
}

func valueOf(b []byte) record.Value { return record.Value{Set: b != nil, Data: string(b)} }

// Post makes a change and returns the record after it. ErrUncertain means that it is unknown whether the change was
// made. With every other error it was not made: ErrStale if the state on which it is based has changed, ErrDeleted,
// ErrTooLarge, a *SizeMismatchError, a *HeldError if a holder is in the way, and the errors of Inspect.
func (m *Manager) Post(caller context.Context, key string, p Post) (Info, error) {
	enc, nameErr := kv.EncodeName(key)
	op, err := p.op()
	if err = cmp.Or(nameErr, err, caller.Err()); err != nil {
		return Info{}, err
	}
	ctx, done := m.callContext(caller)
	defer done()
	op.TTL = m.cfg.timing.ttl
	a := attempt{m: m, key: key, enc: enc, op: op, req: request{common: m.cfg.common}}
	var out engine.Outcome
	err = a.repeat(ctx, func() (done bool, err error) {
		out, err = a.post(ctx)
		return err == nil, err
	})
	if err != nil {
		return Info{}, m.explain(caller, err)
	}
	return newInfo(key, out.Record, out.Revision), nil
}

func (p *Post) op() (record.Op, error) {
	op := record.Op{
		Kind: record.Kind(p.Kind), Verb: record.VerbNamed(p.Verb),
		N: p.N, Limit: p.Limit, Gen: p.Gen, Life: p.Life, Base: p.Base, Queue: p.Queue, All: p.All, Fail: p.Fail, Value: valueOf(p.Value),
	}
	if op.Verb == 0 {
		return op, fmt.Errorf("%w: there is no post %q", ErrInvalidOption, p.Verb)
	}
	return op, nil
}

// post submits the operation under one lease, with one id.
func (a *attempt) post(ctx context.Context) (out engine.Outcome, err error) {
	if err := a.takeLease(ctx); err != nil {
		return out, err
	}
	defer a.share.leave()
	sh, op := a.session.shard(a.enc), a.op
	op.ID, op.Lease, a.before = a.share.lease.NextOp(), a.share.id, sh.seen()
	out, err = engine.Do(ctx, sh.doer, a.enc, op, engine.Options{FailFast: a.req.failFast, Stop: a.share.lease.Lost()})
	if err != nil {
		return out, postError(err)
	}
	if err := a.confirm(ctx, &op, out); err != nil {
		return out, fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return out, nil
}

// postError adds ErrUncertain if the outcome of the operation is unknown.
func postError(err error) error {
	return uncertainIf(errors.Is(err, engine.ErrUnconfirmed) || errors.Is(err, engine.ErrUncertain), err)
}

func uncertainIf(uncertain bool, err error) error {
	if uncertain {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return err
}

// Post makes a change that only the holder may make. Posts of one hold are sent one after another. Errors: those of
// [Manager.Post], and ErrLost or ErrReleased if the hold has ended.
func (h *Hold) Post(ctx context.Context, p Post) (Info, error) {
	op, err := p.op()
	if err != nil {
		return Info{}, err
	}
	h.mu.Lock()
	if h.posting == nil {
		h.posting = newCtxMutex()
	}
	posting := h.posting
	h.mu.Unlock()
	if err := posting.lock(ctx); err != nil {
		return Info{}, err
	}
	defer posting.unlock()
	if err := h.Err(); err != nil {
		return Info{}, err
	}
	op.ID, op.Lease, op.Holder, op.Token, op.TTL = h.share.lease.NextOp(), h.share.id, h.id, h.Token(), h.share.timing.ttl
	opt := engine.Options{FailFast: h.failFast, AtLeast: h.revision()}
	var ended Event
	if p.Ends {
		var first bool
		if ended, first, err = h.invalidate(); !first {
			return Info{}, err
		}
		op.Hold, opt.Stop = releaseOp(h).Hold, h.s.m.gone
	} else {
		opt.Stop = h.Context().Done()
	}
	bound, done := h.s.m.callContext(ctx)
	defer done()
	out, err := engine.Do(bound, h.s.shard(h.enc).doer, h.enc, op, opt)
	if err != nil {
		if refused, ok := errors.AsType[*engine.RefusedError](err); p.Ends && ok && refused.Verdict != record.NotHolder {
			h.releaseInBackground() // the entry still exists
		}
		err = h.s.m.explain(ctx, h.postFailed(&op, err))
	}
	if p.Ends {
		h.releaseDone(ended, err)
	}
	if err != nil {
		return Info{}, err
	}
	h.mu.Lock()
	h.rev = max(h.rev, out.Revision)
	h.mu.Unlock()
	return newInfo(h.key, out.Record, out.Revision), nil
}

func (h *Hold) postFailed(op *record.Op, err error) error {
	var refused *engine.RefusedError
	switch {
	case errors.As(err, &refused) && refused.Verdict == record.NotHolder:
		if !refused.Uncertain {
			h.lose(h.whyGone())
		}
		return uncertainIf(refused.Uncertain, &LostError{Key: h.key, Token: op.Token, Reason: h.whyGone()})
	case errors.As(err, &refused):
		return refusal(h.key, op, refused)
	case errors.Is(err, engine.ErrStopped) && h.Err() != nil:
		return uncertainIf(errors.Is(err, engine.ErrUnconfirmed), h.Err())
	}
	return translate(postError(err))
}

// refusal converts a refusal of the record to an error of this package. op is the requested operation.
func refusal(key string, op *record.Op, refused *engine.RefusedError) error {
	err := refusalCause(key, op, refused)
	switch refused.Verdict {
	case record.Stale, record.OtherLife, record.NotHolder, record.Finished:
		// Such a claim was not granted, and such a try is not held, whatever happened to the attempts.
		known := refused.Verdict == record.Finished && op.Waits() || refused.Verdict == record.Stale && op.Verb == record.OpTry
		err = uncertainIf(refused.Uncertain && !known, err)
	}
	if refused.Cause != nil {
		err = fmt.Errorf("%w: %w", refused.Cause, err)
	}
	return err
}

func refusalCause(key string, op *record.Op, refused *engine.RefusedError) error {
	switch refused.Verdict {
	case record.Held, record.AlreadyHeld, record.InUse:
		return heldError(key, &refused.Blocker, refused.Verdict == record.AlreadyHeld)
	case record.QueueFull:
		return fmt.Errorf("%w: %q: the limit is %s", ErrQueueFull, key, refused.Limit)
	case record.WrongKind:
		return kindMismatch(key, refused.Record, op.Kind)
	case record.TooLarge:
		return tooLarge(key, op, refused)
	case record.SizeMismatch:
		return &SizeMismatchError{Key: key, Kind: string(op.Kind), Have: refused.Have, Want: op.Limit}
	case record.Stale:
		return fmt.Errorf("%w: %q", ErrStale, key)
	case record.Forgotten:
		return fmt.Errorf("%w: %q", ErrUncertain, key)
	case record.OtherLife:
		return fmt.Errorf("%w: %q", ErrDeleted, key)
	case record.NotHolder:
		return fmt.Errorf("%w: %q", ErrLost, key)
	case record.Finished:
		e := &FinishedError{Key: key}
		if f := refused.Record.Facts(); f.Value.Set {
			e.Result, e.By = []byte(f.Value.Data), f.By
		}
		return e
	case record.Broken:
		return brokenError(key, op.Gen, refused.Record)
	case record.BadOp:
		return fmt.Errorf("%w: %s of kind %q: a number, a text or a value is out of its bounds", ErrInvalidOption, op.Verb, op.Kind)
	}
	return fmt.Errorf("fabric: %q: operation refused: %v", key, refused.Verdict)
}

func kindMismatch(key string, rec *record.Record, want record.Kind) error {
	if rec == nil { // unknown
		return fmt.Errorf("%w: %q is not of kind %s", ErrKindMismatch, key, want)
	}
	return fmt.Errorf("%w: %q is of kind %s, not %s", ErrKindMismatch, key, rec.Kind, want)
}

func tooLarge(key string, op *record.Op, refused *engine.RefusedError) error {
	have := refused.Have
	switch op.Kind {
	case record.KindSemaphore:
		if have == 0 && refused.Record != nil { // resized since
			have = refused.Record.Facts().Size
		}
		return fmt.Errorf("%w: semaphore %q has %d permits, %d were asked for", ErrTooLarge, key, have, op.N)
	case record.KindLatch:
		return fmt.Errorf("%w: latch %q can take %d counts more, not %d", ErrTooLarge, key, have, op.N)
	}
	escaped := ""
	if len(op.Value.Data) <= have {
		escaped = ", fewer where they have to be escaped"
	}
	return fmt.Errorf("%w: a value of %d bytes for %q: %d are the most%s; keep it elsewhere, and here where it is",
		ErrTooLarge, len(op.Value.Data), key, have, escaped)
}

func heldError(key string, b *record.Entry, already bool) *HeldError {
	return &HeldError{
		Key: key, Owner: b.OwnerID(), Mode: modeOf(b.Mode), Since: b.Since, Token: b.Token,
		Metadata: maps.Clone(b.Meta), already: already,
	}
}

func brokenError(key string, gen uint64, rec *record.Record) error {
	e := &BrokenError{Key: key, Gen: gen}
	for _, ended := range rec.Facts().Ended {
		if ended.Gen == gen {
			e.Why, e.Who = ended.Why, ended.Who
		}
	}
	return e
}

// Read returns what Inspect returns, but does not look up the processes of holders and waiters: it makes one read of
// the stream's leader.
func (m *Manager) Read(ctx context.Context, key string) (Info, error) { return m.read(ctx, key, false) }
