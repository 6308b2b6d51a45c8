package fabric

import (
	"fmt"
	"slices"

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
	// Path also requests intents on all ancestors: for "a/b/c", on "a" and "a/b". The intent is IntentShared for the
	// modes Shared and IntentShared, and IntentExclusive for all others.
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

// NewHierarchy returns the hierarchy of these names. The acquire checks it: at most MaxHierarchy levels, and no name
// twice.
func NewHierarchy(root string, below ...string) Hierarchy {
	return Hierarchy{append([]string{root}, below...)}
}

// level is one member of a set.
type level struct {
	attempt
	lock   *Lock         // nil if it is not held yet, or if its intent is shared
	intent *sharedIntent // the shared intent, or nil
	taking *sharedIntent // the shared intent that this level is creating, or nil
	above  []*level      // the ancestors that announce this level, from the root down
	base   record.Mode   // the mode that was requested for this name; None if it is only an ancestor
	before uint64        // the newest revision of its bucket that was seen before the try
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
