package fabric

import (
	"fmt"
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Bounds of sets.
const (
	MaxSet       = 64              // members of a set, ancestors included
	MaxHierarchy = kv.MaxNameDepth // levels of a Hierarchy
)

// Want is one member of a set.
type Want struct {
	Key  string
	Mode Mode // "" is Exclusive
	// Path says that intents on all ancestors are taken, too: of "a/b/c" on "a" and "a/b".
	// IntentShared for Shared and IntentShared, else IntentExclusive.
	Path bool
}

// Names are wants of these keys, each Exclusive.
func Names(keys ...string) []Want {
	wants := make([]Want, len(keys))
	for i, key := range keys {
		wants[i].Key = key
	}
	return wants
}

// Hierarchy lists locks from the root down. Their names need not be prefixes of each other.
type Hierarchy struct{ levels []string }

// NewHierarchy returns the hierarchy of these names. It is checked when it is acquired: at most
// MaxHierarchy levels, no name twice.
func NewHierarchy(root string, below ...string) Hierarchy {
	return Hierarchy{append([]string{root}, below...)}
}

// level is one member of a set.
type level struct {
	attempt
	lock   *Lock         // nil while it is not held, and where the intent is shared
	intent *sharedIntent // the shared intent
	taking *sharedIntent // the one to be
	above  []*level      // the levels that announce it, from the root down
	base   record.Mode   // what is wanted of it for itself; None if it only announces
	before uint64        // what was seen of its bucket before it was tried
}

// intent is what announces a lock of this mode on the levels above it.
func intent(m record.Mode) record.Mode {
	switch m {
	case record.None:
		return record.None
	case record.S, record.IS:
		return record.IS
	}
	return record.IX
}

// cover is record.Join for modes of which one may be None.
func cover(a, b record.Mode) record.Mode {
	switch {
	case a == record.None:
		return b
	case b == record.None:
		return a
	}
	return record.Join(a, b)
}

// plan makes the levels of wants, in the order in which they are listed, ancestors before the first that needs them.
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

// plan makes the levels of a hierarchy whose last one is wanted in this mode.
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
