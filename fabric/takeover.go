package fabric

import (
	"context"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// retryRefused decides whether to try again after a refusal. It asks others for idle locks, and replaces dead ones.
func (a *attempt) retryRefused(ctx context.Context, refused *engine.RefusedError) (again bool, final error) {
	switch refused.Verdict {
	case record.Held, record.AlreadyHeld, record.WaitTooLong, record.InUse, record.WrongKind, record.SizeMismatch:
		if a.op.Verb == record.OpTry && a.askForIntents(ctx, refused) {
			return true, nil
		}
		if released, used := a.askKeeper(ctx, refused); released {
			return true, nil
		} else if used {
			break
		}
		again, err := a.takeover(ctx, refused)
		if again || err != nil {
			return again, err
		}
		b := refused.Blocker
		if time.Since(b.Since) > orphanAge && a.session.isOrphan(&b) {
			a.session.releaseOrphan(a.enc, &b, 0)
			return true, nil
		}
		if refused.Verdict == record.AlreadyHeld && slices.Contains(a.roundIDs, b.ID) {
			return true, nil // an entry of this acquire under a lost lease, which will be removed soon
		}
		if refused.Verdict == record.WaitTooLong {
			e := &WaitTooLongError{Key: a.key, Expected: refused.Wait, Position: refused.Position, Owner: b.OwnerID()}
			if deadline, ok := ctx.Deadline(); ok {
				e.Allowed = max(time.Until(deadline), 0)
			}
			return false, e
		}
	}
	return false, refusal(a.key, &a.op, refused)
}

// takeover evicts the blocking holders that are dead. It reports whether a retry makes sense.
func (a *attempt) takeover(ctx context.Context, refused *engine.RefusedError) (bool, error) {
	var dead []string
	var stale *record.Entry
	s := a.session
	for _, look := range a.checkLeases(ctx, blockers(refused)) {
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
		a.observedLease = stale.Lease()
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
	return s.evict(ctx, a.enc, dead, a.req.failFast) == nil, nil
}

func (s *session) evict(ctx context.Context, enc string, dead []string, failFast bool) error {
	_, err := engine.Do(ctx, s.shard(enc).engine, enc, record.Op{Verb: record.OpEvict, Leases: dead}, engine.Options{FailFast: failFast})
	return err
}

// leaseCheck is the result of checking the lease of one blocking entry.
type leaseCheck struct {
	entry record.Entry
	over  bool // this process has lost the lease
	state lease.State
	err   error
}

// checkLeases checks the leases of entries that may have been left behind, in the time of one round trip.
func (a *attempt) checkLeases(ctx context.Context, entries []record.Entry) []*leaseCheck {
	var looks []*leaseCheck
	for _, e := range entries {
		live, over := a.session.leaseState(e.Lease()) // read before the check, because over becomes false with the tombstone
		if !live && e.Lease() != a.observedLease {
			looks = append(looks, &leaseCheck{entry: e, over: over})
		}
	}
	together(looks, func(l *leaseCheck) {
		l.state, l.err = a.session.observer.Check(ctx, l.entry.Lease(), l.entry.TTL)
	})
	return looks
}

// blockers returns one entry for each lease that may have caused a refusal.
func blockers(refused *engine.RefusedError) []record.Entry {
	switch {
	case refused.Record == nil && (refused.Verdict == record.WrongKind || refused.Verdict == record.SizeMismatch):
		return nil // unknown
	case refused.Record == nil || refused.Verdict == record.AlreadyHeld:
		return []record.Entry{refused.Blocker}
	}
	lists := [][]record.Entry{refused.Record.Holders, refused.Record.Waiters}
	if refused.Verdict == record.WrongKind {
		for _, q := range refused.Record.Facts().Queues {
			lists = append(lists, q.Waiters)
		}
	}
	const limit = 32 // maximum number of leases to check; others are checked at a later retry
	seen := map[string]bool{}
	var out []record.Entry
	for _, list := range lists {
		for _, e := range list {
			if id := e.Lease(); !seen[id] && len(out) < limit {
				seen[id] = true
				out = append(out, e)
			}
		}
	}
	return out
}

// pauseBeforeRetry waits before the n-th retry, and reports whether to continue.
func pauseBeforeRetry(ctx context.Context, n int) bool {
	return pause.For(ctx, min(time.Duration(n)*10*time.Millisecond, time.Second))
}
