package fabric

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Narrow exchanges a member that is held in mode Exclusive or SharedIntentExclusive for locks below it: "a/b" for "a/b/c" and
// "a/b/d". These are acquired first, with the intents between, and become members at the end of the set; then the member
// becomes IntentExclusive. So nobody gets the whole in between, and others get the rest of it. It waits for who holds the
// names below without intents above them, while everything is held: bound the wait. The error is a *NotAcquiredError where
// nothing has changed, and a *ConvertError where all is held and the member has not been weakened, or the set has ended.
//
// Names that are members already, or are not all below one member in such a mode, are ErrInvalidOption. One Narrow or
// Convert of a set is made at a time, another one meanwhile is ErrConverting.
func (s *Set) Narrow(ctx context.Context, children ...Want) error {
	if !s.converting.CompareAndSwap(false, true) {
		return &NotAcquiredError{Key: s.Key(), Cause: ErrConverting}
	}
	defer s.converting.Store(false)
	whole, below, err := s.below(children)
	if err != nil {
		return &NotAcquiredError{Key: s.Key(), Cause: err}
	}
	m := s.s.m
	g := gathering{attempt: whole.attempt, levels: below, result: s}
	bound, done := m.callContext(ctx)
	defer done()
	for _, l := range below {
		if err = g.acquire(bound, s.slot, l); err != nil {
			break
		}
	}
	if lost := s.Err(); lost != nil {
		err = lost
	}
	if err == nil {
		err = s.extend(below)
	}
	if err != nil {
		g.giveBack(below, err)
		return &NotAcquiredError{Key: g.blame(), Cause: m.explain(ctx, err)}
	}
	for _, l := range below {
		if l.lock != nil {
			l.lock.handOut(&l.attempt)
		}
	}
	if err := whole.lock.convertAlone(ctx, IntentExclusive); err != nil {
		return err
	}
	whole.base = record.None
	return nil
}

// extend makes levels that are held members, unless the set has ended.
func (s *Set) extend(by []*level) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.levels = slices.Concat(s.levels, by)
	}
	return s.err
}

// below makes the levels of a Narrow, ancestors first, and finds the member that all of them are below.
func (s *Set) below(children []Want) (whole *level, below []*level, err error) {
	children = slices.Clone(children)
	for i := range children {
		children[i].Path = true
	}
	planned, err := plan(children)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range planned {
		switch old := s.level(l.key); {
		case old == nil:
			below = append(below, l)
		case l.base != record.None:
			return nil, nil, fmt.Errorf("%w: %q is a member already", ErrInvalidOption, l.key)
		case whole == nil || strings.HasPrefix(l.key, whole.key+"/"):
			whole = old
		}
	}
	if whole == nil || whole.lock == nil || whole.mode() != record.X && whole.mode() != record.SIX {
		return nil, nil, fmt.Errorf("%w: these are not below a member in mode X or SIX", ErrInvalidOption)
	}
	if n := len(s.all()) + len(below); n > MaxSet {
		return nil, nil, fmt.Errorf("%w: a set of %d locks: use %d at most, ancestors included", ErrInvalidOption, n, MaxSet)
	}
	for _, l := range below {
		if !strings.HasPrefix(l.key, whole.key+"/") {
			return nil, nil, fmt.Errorf("%w: %q is not below %q", ErrInvalidOption, l.key, whole.key)
		}
		for i, a := range l.above {
			if old := s.level(a.key); old != nil {
				l.above[i] = old
			}
		}
		if err := l.under(s, whole); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(below, func(a, b *level) int { return strings.Compare(a.enc, b.enc) })
	return whole, below, nil
}

// under makes the level one of a set that is held, with what another member was acquired with.
func (l *level) under(s *Set, other *level) (err error) {
	mode := l.op.Mode
	l.attempt = attempt{m: other.m, key: l.key, claim: other.claim, req: other.req, began: time.Now(), set: s, unit: other.unit, session: s.s}
	if l.base == record.None {
		l.req.owner = ""
	}
	if l.enc, err = kv.EncodeName(l.key); err != nil {
		return err
	}
	if l.op, err = l.claim.op(&l.req); err != nil {
		return err
	}
	l.op.Mode = mode
	return nil
}
