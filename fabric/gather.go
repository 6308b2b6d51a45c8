package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// AcquireAll acquires several locks as one, all or nothing. It waits until all are granted or ctx ends. Sets and paths
// never wait for each other in a circle: while a set waits for a lock, it holds only locks that come before it in the
// order of all names. Release releases in the reverse of the listed order. A key that is listed twice is held once, in
// the weakest mode that covers both.
//
// The options and errors are those of Acquire, for all members: one owner, one timing, one lease. WithMode is
// ErrInvalidOption, since each Want has its mode. Key of the *NotAcquiredError names the member that failed.
func (m *Manager) AcquireAll(ctx context.Context, wants []Want, opts ...AcquireOption) (*Set, error) {
	return m.gather(ctx, gathering{}, opts, func() ([]*level, error) { return plan(wants) })
}

// TryAcquireAll acquires all these locks if each of them is free at once. Otherwise it returns ErrHeld, as a *HeldError
// about the first lock that was refused. See TryAcquire.
func (m *Manager) TryAcquireAll(ctx context.Context, wants []Want, opts ...AcquireOption) (*Set, error) {
	return m.gather(ctx, gathering{try: true}, opts, func() ([]*level, error) { return plan(wants) })
}

// DoAll acquires all these locks, calls fn and releases them, as Do does with one.
func (m *Manager) DoAll(ctx context.Context, wants []Want, fn func(ctx context.Context, s *Set) error, opts ...AcquireOption) error {
	if fn == nil {
		return errNilFunction
	}
	s, err := m.AcquireAll(ctx, wants, opts...)
	if err != nil {
		return err
	}
	return do(ctx, s, fn)
}

// gathering is a running acquire of a set. It may need several rounds, with several leases and sessions.
type gathering struct {
	attempt
	try     bool
	ranked  bool     // the levels have an order of their own
	levels  []*level // in the order in which they are acquired
	listed  []*level
	failed  *level   // the level that an error is about
	refused []*level // the levels that were refused in the last try
	result  *Set     // of the last round
}

func (m *Manager) gather(caller context.Context, g gathering, opts []AcquireOption, plan func() ([]*level, error)) (*Set, error) {
	g.m, g.began = m, time.Now()
	err := cmp.Or(g.prepare(opts, plan), caller.Err())
	if err == nil {
		leave := g.inUnit(caller)
		defer leave()
		ctx, done := m.callContextFor(caller, g.req.waitLimit)
		defer done()
		err = g.repeat(ctx, func() (done bool, err error) {
			if err = g.round(ctx); errors.Is(err, errRefused) {
				err = g.takeOver(ctx)
				return !errors.Is(err, errAgain), err
			}
			if errors.Is(err, ErrDeadlock) && len(g.unit.all()) == 0 {
				err = errAgain // other processes have what was held, and the caller need not know
			}
			return err == nil, err
		})
	}
	if err != nil {
		return nil, &NotAcquiredError{Key: g.blame(), Cause: m.explain(caller, err)}
	}
	return g.result, nil
}

// inUnit sets the unit of work of all levels. If the caller has none, the set gets a unit of its own. leave ends its use.
func (g *gathering) inUnit(caller context.Context) (leave func()) {
	if g.unit, leave = g.m.unitFor(caller, &g.req); g.unit == nil {
		g.unit = newUnit(nil, true)
	}
	for _, l := range g.listed {
		l.unit = g.unit
	}
	return leave
}

func (g *gathering) prepare(opts []AcquireOption, plan func() ([]*level, error)) (err error) {
	switch g.req, err = g.m.cfg.newRequest(opts); {
	case err != nil:
		return err
	case g.req.hasMode:
		return fmt.Errorf("%w: WithMode is for one lock, and each member of a set has its own", ErrInvalidOption)
	case g.req.stamp != nil:
		return fmt.Errorf("%w: WithStamp is for TryAcquire of one lock", ErrInvalidOption)
	}
	if g.listed, err = plan(); err != nil {
		return err
	}
	if n := len(g.listed); n < 1 || n > MaxSet {
		return fmt.Errorf("%w: a set of %d locks: use 1 to %d, ancestors included", ErrInvalidOption, n, MaxSet)
	}
	for _, l := range g.listed {
		g.failed = l
		if err = l.prepare(attempt{m: g.m, claim: Claim{Kind: KindLock}, req: g.req, began: g.began}); err != nil {
			return err
		}
	}
	g.failed = nil
	g.levels = slices.Clone(g.listed)
	if !g.ranked {
		// In the order of all names a parent comes before its children.
		slices.SortFunc(g.levels, func(a, b *level) int { return strings.Compare(a.enc, b.enc) })
	}
	return nil
}

// prepare makes the attempt of a level from what it has in common with those of the other levels.
func (l *level) prepare(a attempt) error {
	a.key = l.key
	if l.base == record.None {
		a.req.owner = "" // an owner's intent never makes its other acquires ErrAlreadyHeld
	}
	err := a.prepare()
	a.op.Mode = l.op.Mode
	l.attempt = a
	return err
}

// blame returns the key for the error of the whole set.
func (g *gathering) blame() string {
	switch {
	case g.failed != nil:
		return g.failed.key
	case len(g.listed) > 0:
		return g.listed[len(g.listed)-1].key
	}
	return ""
}

// round acquires all levels under one lease, or none: all at once without waiting, and then the missing ones one after
// the other. Two sets can't wait for each other: each waits in one queue, and holds only levels before it.
func (g *gathering) round(ctx context.Context) (err error) {
	if err := g.takeLease(ctx); err != nil {
		return err
	}
	sl := g.share
	defer sl.leave()
	if g.ranked && slices.ContainsFunc(g.levels, func(l *level) bool { return sl.s.shard(l.enc) != sl.s.shard(g.levels[0].enc) }) {
		return fmt.Errorf("%w: the levels of this hierarchy are in several shards, whose tokens have no common order: begin their names alike, as in \"a/b\"", ErrInvalidOption)
	}
	set := &Set{s: sl.s, levels: g.listed}
	set.share, set.of = sl, set
	g.result, g.failed = set, nil
	for _, l := range g.levels {
		l.set, l.lock, l.intent, l.op.Verb = set, nil, nil, record.OpTry
	}
	defer func() {
		g.failIntents()
		if why := err; why != nil {
			if lost := g.result.Err(); lost != nil && errors.Is(why, errAgain) {
				why = errors.Unwrap(lost)
			}
			g.giveBack(g.levels, why)
		}
	}()
	if err := g.joinIntents(ctx, sl); err != nil {
		return err
	}
	if err := g.atOnce(ctx, sl); err != nil {
		return err
	}
	g.failIntents() // of levels that were not tried, so that nobody waits for these intents
	for {
		first := g.firstMissing()
		if first < 0 {
			return g.handOver(ctx, sl)
		}
		g.giveBack(g.levels[first:], errAgain) // before the next try, which may take another road
		if err := g.acquire(ctx, sl, g.levels[first]); err != nil {
			return err
		}
	}
}

// firstMissing returns the index of the first level that is not held, or whose token is smaller than the token of a level above it. A
// guard that has seen the token of a hold in between would refuse such a token. It returns -1 if all levels are held in order.
func (g *gathering) firstMissing() int {
	return slices.IndexFunc(g.levels, func(l *level) bool {
		h := l.hold()
		return h == nil || !l.follows(h)
	})
}

// acquire waits for one level, while the levels before it are held.
func (g *gathering) acquire(ctx context.Context, sl *leaseShare, l *level) error {
	if g.joinOpen(l) {
		return nil
	}
	g.failed = l
	if !g.try {
		l.op.Verb = record.OpAcquire
	}
	for n := 1; ; n++ {
		h, _, err := l.tryOnce(ctx)
		if err == nil {
			l.lock, g.failed = &Lock{h}, nil
			return nil
		}
		if g.broken(sl) {
			return errAgain
		}
		if again, err := l.decideRetry(ctx, err); !again {
			return err
		}
		if !pauseBeforeRetry(ctx, n) {
			return ctx.Err()
		}
	}
}

// broken reports whether the levels that are held are no longer valid.
func (g *gathering) broken(sl *leaseShare) bool {
	return !sl.lease.Valid() || g.session.endReason() != nil || g.result.Err() != nil
}

// handOver checks the set once more, when all levels are held, and makes it the caller's.
func (g *gathering) handOver(ctx context.Context, sl *leaseShare) error {
	if g.req.timing.limited() { // then no intent is shared
		if err := g.begin(ctx, g.levels[0].lock.Hold); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case g.broken(sl):
		return errAgain
	}
	for _, l := range g.listed {
		if l.lock != nil {
			l.lock.handOut(&l.attempt)
		}
	}
	return nil
}

// AcquirePath locks "a/b/c" in this mode ("" is Exclusive) with intents on its ancestors "a" and "a/b", all or nothing:
// IntentShared if the mode is Shared or IntentShared, else IntentExclusive. So a lock of "a" and locks below it exclude
// each other, if every lock below "a" is taken by a path; a plain Acquire takes no intents. See AcquireAll.
func (m *Manager) AcquirePath(ctx context.Context, path string, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.AcquireAll(ctx, []Want{{Key: path, Mode: mode, Path: true}}, opts...)
}

// TryAcquirePath is to AcquirePath as TryAcquireAll is to AcquireAll.
func (m *Manager) TryAcquirePath(ctx context.Context, path string, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.TryAcquireAll(ctx, []Want{{Key: path, Mode: mode, Path: true}}, opts...)
}

// DoPath acquires the path, calls fn and releases it, as Do does with one lock.
func (m *Manager) DoPath(ctx context.Context, path string, mode Mode, fn func(ctx context.Context, s *Set) error, opts ...AcquireOption) error {
	return m.DoAll(ctx, []Want{{Key: path, Mode: mode, Path: true}}, fn, opts...)
}

// AcquireHierarchy locks the last level of h in this mode ("" is Exclusive), with intents on the levels above it, from the
// root down, as AcquirePath does. Two hierarchies with common levels in opposite order can wait for each other until
// their contexts end.
func (m *Manager) AcquireHierarchy(ctx context.Context, h Hierarchy, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.gather(ctx, gathering{ranked: true}, opts, func() ([]*level, error) { return h.plan(mode) })
}

// TryAcquireHierarchy is to AcquireHierarchy as TryAcquireAll is to AcquireAll.
func (m *Manager) TryAcquireHierarchy(ctx context.Context, h Hierarchy, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.gather(ctx, gathering{ranked: true, try: true}, opts, func() ([]*level, error) { return h.plan(mode) })
}

// rollBackTime is how long a set that was not granted waits for its releases, which then go on in the background.
const rollBackTime = 500 * time.Millisecond

// errRefused ends the round of a try in which levels were refused.
var errRefused = errors.New("fabric: refused")

// atOnce tries all levels at the same time. If a level is known to be held, a TryAcquire asks about that level
// first, since it then has nothing to write. An acquire tries only the levels before it.
func (g *gathering) atOnce(ctx context.Context, sl *leaseShare) error {
	levels := slices.DeleteFunc(slices.Clone(g.levels), func(l *level) bool { return l.intent != nil })
	known := slices.IndexFunc(levels, func(l *level) bool {
		op := l.op
		op.ID, op.Lease = sl.id+".0", sl.id
		return g.session.shard(l.enc).engine.Foresee(l.enc, op) == record.Held
	})
	switch {
	case known < 0:
		return g.tryAll(ctx, sl, levels)
	case !g.try:
		return g.tryAll(ctx, sl, levels[:known])
	}
	if err := g.tryAll(ctx, sl, levels[known:known+1]); err != nil {
		return err
	}
	return g.tryAll(ctx, sl, slices.Concat(levels[:known], levels[known+1:]))
}

// tryAll submits a try of each of these levels in one go.
func (g *gathering) tryAll(ctx context.Context, sl *leaseShare, levels []*level) error {
	calls := make([]*engine.Call, 0, len(levels))
	for _, l := range levels {
		if err := l.takeLease(ctx); err != nil {
			break
		}
		calls = append(calls, &engine.Call{Key: l.enc, Op: l.compose(ctx)})
	}
	g.session.doAll(ctx, calls, engine.Options{FailFast: g.req.failFast, Stop: sl.lease.Lost()})
	var final error
	g.refused = nil
	for i, c := range calls {
		l := levels[i]
		h, err := l.finishRound(ctx, &c.Op, c.Outcome, c.Err)
		l.refused = nil
		switch {
		case err == nil:
			l.granted(h)
		case errors.As(err, &l.refused) && (l.refused.Verdict == record.Held || l.refused.Verdict == record.AlreadyHeld):
			g.refused = append(g.refused, l)
		case final == nil:
			if again, err := l.decideRetry(ctx, err); !again {
				final, g.failed = err, l
			}
		}
	}
	switch {
	case final != nil:
		return final
	case g.try && len(g.refused) > 0:
		g.failed = g.refused[0]
		return errRefused
	case g.broken(sl):
		return errAgain
	}
	return nil
}

// takeOver checks at once whether the holders that block a try are dead, and evicts the dead ones. It
// returns errAgain if the try is worth repeating, and otherwise the error of the first level that stays refused.
func (g *gathering) takeOver(ctx context.Context) error {
	finals := make([]error, len(g.refused)) // errors of the levels that stay refused
	together(g.refused, func(l *level) {
		if again, err := l.retryRefused(ctx, l.refused); !again {
			finals[slices.Index(g.refused, l)] = err
		}
	})
	for i, err := range finals {
		if err != nil {
			g.failed = g.refused[i]
			return err
		}
	}
	return errAgain
}

// end makes a level's handle, which was not handed out, invalid. It returns the hold to release, or nil.
func (l *level) end(why error) *Hold {
	if l.intent != nil {
		l.intent.leave(l.set)
		l.intent = nil
	}
	if l.lock == nil {
		return nil
	}
	h := l.lock.Hold
	l.lock = nil
	h.void()
	l.reportWithdrawn(why)
	return h
}

// void makes the handle of a hold invalid that the caller never got.
func (h *Hold) void() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.end(ErrReleased)
	}
}

// discard ends a hold whose handle the caller never got, and releases it in the background.
func discard(h *Hold) {
	h.void()
	h.releaseInBackground()
	h.share.drop(h)
}

// giveBack releases these levels, as far as they are held, in reverse order.
func (g *gathering) giveBack(levels []*level, why error) {
	var calls []*engine.Call
	var holds []*Hold
	for _, l := range slices.Backward(levels) {
		if h := l.end(why); h != nil {
			holds = append(holds, h)
			calls = append(calls, &engine.Call{Key: h.enc, Op: releaseOp(h), AtLeast: h.revision()})
		}
	}
	g.session.doAll(context.Background(), calls, engine.Options{Bound: rollBackTime, Stop: g.m.gone})
	for _, h := range holds {
		h.share.drop(h)
	}
}
