package main

import (
	"context"
	"slices"
	"strings"

	"github.com/lockfabric/lockfabric/fabric"
)

// several are the flags of a command that holds more locks than one, as one.
type several struct {
	Also  []string `sep:"none" placeholder:"KEY[=MODE]" complete:"lock" help:"Hold this lock, too, all or none, in mode X unless it says another; can be repeated. Others that list the same in another order don't block each other."`
	Path  bool     `help:"Announce each lock on all levels above it: of a/b/c on a and a/b. Whoever locks one of these waits then, and is waited for."`
	Under []string `sep:"none" placeholder:"NAME" complete:"lock" help:"Announce the lock on NAME, which contains it; can be repeated, the outermost first."`
}

func (s *several) given() bool { return len(s.Also)+len(s.Under) > 0 || s.Path }

func (s *several) validate(semaphore bool) error {
	switch {
	case s.given() && semaphore:
		return usageError("run --semaphore: a permit is held alone; leave out --also, --path and --under")
	case len(s.Under) > 0 && (s.Path || len(s.Also) > 0):
		return usageError("run --under: it names all levels; leave out --path and --also")
	}
	for _, text := range s.Also {
		name, mode := keyAndMode(text)
		if name != text && !slices.Contains(modes, string(mode)) {
			return usageError("run --also=%s: after the last = give one of IS, IX, S, SIX, U, X", printable(text))
		}
		if err := checkName(name); err != nil {
			return err
		}
	}
	for _, name := range s.Under {
		if err := checkName(name); err != nil {
			return err
		}
	}
	return nil
}

// keyAndMode splits KEY=MODE. A name that has a '=' of its own is given with a mode, so that
// a mistyped one is not taken for a part of the name.
func keyAndMode(text string) (string, fabric.Mode) {
	if i := strings.LastIndexByte(text, '='); i >= 0 {
		return text[:i], fabric.Mode(text[i+1:])
	}
	return text, ""
}

// acquire waits for all of them, or tries.
func (s *several) acquire(m *fabric.Manager, key string, mode fabric.Mode) acquirer {
	wants := []fabric.Want{{Key: key, Mode: mode, Path: s.Path}}
	for _, text := range s.Also {
		name, mode := keyAndMode(text)
		wants = append(wants, fabric.Want{Key: name, Mode: mode, Path: s.Path})
	}
	return func(ctx context.Context, try bool, opts ...fabric.AcquireOption) (held, error) {
		all, below := m.AcquireAll, m.AcquireHierarchy
		if try {
			all, below = m.TryAcquireAll, m.TryAcquireHierarchy
		}
		var set *fabric.Set
		var err error
		if len(s.Under) > 0 {
			levels := slices.Concat(s.Under[1:], []string{key})
			set, err = below(ctx, fabric.NewHierarchy(s.Under[0], levels...), mode, opts...)
		} else {
			set, err = all(ctx, wants, opts...)
		}
		if err != nil {
			return nil, err
		}
		return &heldSet{set, set.Lock(key)}, nil
	}
}

// heldSet is a set that is named after one of its members.
type heldSet struct {
	*fabric.Set
	named *fabric.Lock
}

func (h *heldSet) Key() string   { return h.named.Key() }
func (h *heldSet) Token() uint64 { return h.named.Token() }
