package fabric

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Narrow exchanges a member that is held in mode Exclusive or SharedIntentExclusive for locks below it: "a/b" for "a/b/c" and
// "a/b/d". It first acquires these, with the intents between, and makes them members at the end of the set. Then it converts the
// member to IntentExclusive. So nobody else gets the whole in between, and others get the rest of it afterwards. Narrow waits for processes that
// hold the names below without intents above them. Everything stays held meanwhile, so bound the wait. The error is a *NotAcquiredError if
// nothing has changed. It is a *ConvertError if everything is held but the member was not weakened, or if the set has ended.
//
// It returns ErrInvalidOption if one of the names is a member already, or if they are not all below one member in such a mode.
// A Narrow during another Narrow or Convert of the set returns ErrConverting.
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
		if err = g.acquire(bound, s.share, l); err != nil {
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

// extend adds levels that are held to the members, unless the set has ended.
func (s *Set) extend(by []*level) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.levels = slices.Concat(s.levels, by)
	}
	return s.err
}

// below makes the levels of a Narrow, ancestors first, and finds the member above all of them.
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
		a := attempt{m: whole.m, claim: whole.claim, req: whole.req, began: time.Now(), set: s, unit: whole.unit, session: s.s}
		if err := l.prepare(a); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(below, func(a, b *level) int { return strings.Compare(a.enc, b.enc) })
	return whole, below, nil
}
