package fabric

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// rollBackTime is how long a set that was not granted waits for the proof that nothing is left
// of it. It goes on in the background.
const rollBackTime = 500 * time.Millisecond

// refusedError says which levels of a try were refused, in their order.
type refusedError struct {
	levels []*level
	errs   []*engine.RefusedError
}

func (*refusedError) Error() string { return "fabric: refused" }

// atOnce tries all levels at the same time. If one is known to be held, a try asks about that
// first, since then it has nothing to write; else those before it are tried.
func (g *gathering) atOnce(ctx context.Context, sl *slot) error {
	levels := slices.DeleteFunc(slices.Clone(g.levels), func(l *level) bool { return l.pin != nil })
	known := slices.IndexFunc(levels, func(l *level) bool {
		op := l.op
		op.ID, op.Lease = sl.id+".0", sl.id
		return g.session.engine.Foresee(l.enc, op) == record.Held
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

// tryAll submits a try of each of these levels in one go. Where the set can wait, a level that
// is held by others is left for acquire.
func (g *gathering) tryAll(ctx context.Context, sl *slot, levels []*level) error {
	calls := make([]*engine.Call, 0, len(levels))
	before := g.session.seen()
	for _, l := range levels {
		if _, err := l.place(ctx); err != nil {
			break
		}
		calls = append(calls, &engine.Call{Key: l.enc, Op: l.compose(ctx, sl)})
	}
	engine.DoAll(ctx, g.session.doer, calls, engine.Options{FailFast: g.req.failFast, Stop: sl.lease.Lost()})
	var final error
	var refused refusedError
	for i, c := range calls {
		l := levels[i]
		h, err := l.conclude(ctx, sl, &c.Op, c.Outcome, c.Err, before)
		why := (*engine.RefusedError)(nil)
		switch {
		case err == nil:
			l.granted(h)
		case errors.As(err, &why) && (why.Verdict == record.Held || why.Verdict == record.AlreadyHeld):
			refused.levels, refused.errs = append(refused.levels, l), append(refused.errs, why)
		case final == nil:
			if again, err := l.decideRetry(ctx, err); !again {
				final, g.failed = err, l
			}
		}
	}
	switch {
	case final != nil:
		return final
	case g.try && len(refused.levels) > 0:
		g.failed = refused.levels[0]
		return &refused
	case g.broken(sl):
		return errAgain
	}
	return nil
}

// takeOver looks at once whether those in the way of a try are dead, and evicts them if so. It
// returns errAgain if the try is worth repeating, and else what the first refusal is.
func (g *gathering) takeOver(ctx context.Context, refused *refusedError) error {
	errs := make([]error, len(refused.levels))
	var looks sync.WaitGroup
	for i, l := range refused.levels {
		looks.Go(func() {
			again, err := l.retryRefused(ctx, refused.errs[i])
			if errs[i] = err; again {
				errs[i] = errAgain
			}
		})
	}
	looks.Wait()
	for i, err := range errs {
		if !errors.Is(err, errAgain) {
			g.failed = refused.levels[i]
			return err
		}
	}
	return errAgain
}

// end makes the handle of a level that is not to be handed out invalid, and returns what is to
// be released. It is nil if nothing was granted.
func (l *level) end(why error) *Hold {
	if l.pin != nil {
		l.pin.leave(l.set)
		l.pin = nil
	}
	if l.lock == nil {
		return nil
	}
	h := l.lock.Hold
	l.lock = nil
	h.void()
	l.withdrawn(h.slot, h.entry.ID, why)
	return h
}

// void makes the handle of a hold that nobody has invalid.
func (h *Hold) void() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.end(ErrReleased)
	}
}

// discard ends a hold that nobody has a handle of, and releases it in the background.
func discard(h *Hold) {
	h.void()
	h.s.doer.ReleaseInBackground(h.enc, h.slot.id, h.entry.ID, h.revision())
	h.slot.drop(h)
}

// rollBack releases what a set that is not to be had holds.
func (g *gathering) rollBack(why error) {
	if lost := g.result.Err(); lost != nil && errors.Is(why, errAgain) {
		why = errors.Unwrap(lost)
	}
	g.giveBack(g.levels, why)
}

// giveBack releases what is held of these levels, in reverse.
func (g *gathering) giveBack(levels []*level, why error) {
	var calls []*engine.Call
	var holds []*Hold
	for _, l := range slices.Backward(levels) {
		if h := l.end(why); h != nil {
			holds = append(holds, h)
			calls = append(calls, &engine.Call{Key: h.enc, Op: releaseOp(h), AtLeast: h.revision()})
		}
	}
	engine.DoAll(context.Background(), g.session.doer, calls, engine.Options{Bound: rollBackTime, Stop: g.m.gone})
	for _, h := range holds {
		h.slot.drop(h)
	}
}
