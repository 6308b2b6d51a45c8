package fabric

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Limits of sets.
const (
	MaxSet       = 64              // members of a set, ancestors included
	MaxHierarchy = kv.MaxNameDepth // levels of a Hierarchy
)

// Want is one member of a set.
type Want struct {
	Key  string
	Mode Mode // "" is Exclusive
	// Path also requests intents on all ancestors: for "a/b/c", on "a" and "a/b": IntentShared for the modes Shared and
	// IntentShared, else IntentExclusive.
	Path bool
}

// Names returns a Want with mode Exclusive for each key.
func Names(keys ...string) []Want {
	wants := make([]Want, len(keys))
	for i, key := range keys {
		wants[i].Key = key
	}
	return wants
}

// Hierarchy is a list of locks from the root down. A name need not be a prefix of the next one.
type Hierarchy struct{ levels []string }

// NewHierarchy returns the hierarchy of these names, at most MaxHierarchy, none of them twice.
func NewHierarchy(root string, below ...string) Hierarchy {
	return Hierarchy{append([]string{root}, below...)}
}

// level is one member of a set.
type level struct {
	attempt
	lock    *Lock                // nil if it is not held yet, or if its intent is shared
	intent  *sharedIntent        // the shared intent, or nil
	taking  *sharedIntent        // the shared intent that this level is creating, or nil
	above   []*level             // the ancestors that announce this level, from the root down
	refused *engine.RefusedError // why the last try was refused
	base    record.Mode          // the mode that was requested for this name; None if it is only an ancestor
}

// intent returns the intent mode that a lock of this mode needs on the levels above it.
func intent(m record.Mode) record.Mode {
	switch m {
	case record.None:
		return record.None
	case record.S, record.IS:
		return record.IS
	}
	return record.IX
}

// cover is record.Join, but each mode may be None.
func cover(a, b record.Mode) record.Mode {
	switch {
	case a == record.None:
		return b
	case b == record.None:
		return a
	}
	return record.Join(a, b)
}

// plan returns the levels for wants, in the order of wants; ancestors come before the first level that needs them.
func plan(wants []Want) ([]*level, error) {
	byName := map[string]*level{}
	var levels []*level
	get := func(name string) *level {
		l := byName[name]
		if l == nil {
			l = &level{attempt: attempt{key: name}}
			byName[name] = l
			levels = append(levels, l)
		}
		return l
	}
	for _, w := range wants {
		mode, err := w.mode()
		if err != nil {
			return nil, err
		}
		var above []*level
		for i, c := range w.Key {
			if w.Path && c == '/' && i > 0 {
				above = append(above, get(w.Key[:i]))
			}
		}
		for i, a := range above {
			a.op.Mode, a.above = cover(a.op.Mode, intent(mode)), above[:i]
		}
		l := get(w.Key)
		l.op.Mode, l.base = cover(l.op.Mode, mode), cover(l.base, mode)
		if w.Path {
			l.above = above
		}
	}
	return levels, nil
}

func (w Want) mode() (record.Mode, error) {
	if w.Mode == "" {
		return record.X, nil
	}
	return w.Mode.record()
}

// plan returns the levels of a hierarchy whose last level is wanted in this mode.
func (h Hierarchy) plan(mode Mode) ([]*level, error) {
	m, err := Want{Mode: mode}.mode()
	if err != nil {
		return nil, err
	}
	if n := len(h.levels); n < 1 || n > MaxHierarchy {
		return nil, fmt.Errorf("%w: a hierarchy of %d levels: use 1 to %d", ErrInvalidOption, n, MaxHierarchy)
	}
	var levels []*level
	for i, name := range h.levels {
		if slices.Contains(h.levels[:i], name) {
			return nil, fmt.Errorf("%w: %q is twice in the hierarchy", ErrInvalidOption, name)
		}
		l := &level{attempt: attempt{key: name}, above: slices.Clone(levels)}
		if l.op.Mode = intent(m); i == len(h.levels)-1 {
			l.op.Mode, l.base = m, m
		}
		levels = append(levels, l)
	}
	return levels, nil
}

// Narrow exchanges a member that is held in mode Exclusive or SharedIntentExclusive for locks below it: "a/b" for "a/b/c"
// and "a/b/d". It first acquires these, with the intents between, as members at the end of the set. Then it converts the
// member to IntentExclusive. So nobody else gets the whole in between. Narrow waits for processes that hold the names
// below without intents above them, and everything stays held meanwhile, so bound the wait. The error is a
// *NotAcquiredError if nothing has changed. It is a *ConvertError if everything is held but the member was not weakened,
// or if the set has ended.
//
// It returns ErrInvalidOption if one of the names is a member already, or if they are not all below one member in such a
// mode. A Narrow during another Narrow or Convert of the set returns ErrConverting.
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
