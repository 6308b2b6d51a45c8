package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Set is a hold of several locks as one: a path with its ancestors, a hierarchy, or any names, under one lease. Like every
// hold it is a single-use handle, and it is safe for concurrent use. The loss of a member is a loss of the set, although
// the other members stay held until Release: stop the work, and release the set.
type Set struct {
	s      *session
	levels []*level // in the listed order; mu guards the list, and each level's lock and intent
	handle          // its err is that of the member that was lost first

	converting atomic.Bool
	release    sync.Once
	released   error // what Release returned
}

// Lock returns the member with this name. It returns nil if there is none, and for an ancestor whose intent is
// shared: see WithIntentLinger. The member's Release is ErrMember.
func (s *Set) Lock(key string) *Lock {
	l := s.level(key)
	if l == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.lock
}

func (s *Set) level(key string) *level {
	levels := s.all()
	if i := slices.IndexFunc(levels, func(l *level) bool { return l.key == key }); i >= 0 {
		return levels[i]
	}
	return nil
}

// Locks returns the members, ancestors first, without those whose intent is shared.
func (s *Set) Locks() []*Lock {
	s.mu.Lock()
	defer s.mu.Unlock()
	var locks []*Lock
	for _, l := range s.levels {
		if l.lock != nil {
			locks = append(locks, l.lock)
		}
	}
	return locks
}

// hold returns the hold of the level: its own one or the shared intent's. It returns nil if the level is not held.
func (l *level) hold() *Hold {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	switch {
	case l.lock != nil:
		return l.lock.Hold
	case l.intent != nil:
		return l.intent.hold
	}
	return nil
}

// last returns the member that the set is named after.
func (s *Set) last() *Lock {
	levels := s.all()
	return levels[len(levels)-1].lock
}

// all returns the levels in the listed order. The caller must not modify the list. Narrow makes a new one.
func (s *Set) all() []*level {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.levels
}

// Key returns the name of the last member: the leaf of a path.
func (s *Set) Key() string { return s.last().key }

// Token returns the fencing token of the last member, at first larger than those of the ancestors.
func (s *Set) Token() uint64 { return s.last().Token() }

// Tokens returns the fencing tokens of all members by name, also of shared intents.
func (s *Set) Tokens() map[string]uint64 {
	tokens := map[string]uint64{}
	for _, l := range s.all() {
		tokens[l.key] = l.hold().Token()
	}
	return tokens
}

func (s *Set) check() {
	for _, l := range s.all() {
		if h := l.hold(); h != nil {
			h.check() // this ends the set
		}
	}
}

// member returns the error for an operation that is not possible on a single member.
func (h *Hold) member() error {
	return fmt.Errorf("%w, and %q can't be released alone", ErrMember, h.key)
}

// IsValid reports whether all members are valid now, as [Hold.IsValid] does for one, all at once.
func (s *Set) IsValid(ctx context.Context) bool {
	forEach(ctx, closeAtOnce, s.all(), func(l *level) { l.hold().IsValid(ctx) })
	return s.Err() == nil
}

// Release releases all members, in the reverse of the listed order. All handles are invalid before the first release is
// sent. The errors of the members are joined. Otherwise it is as [Hold.Release].
func (s *Set) Release(context.Context) error {
	s.release.Do(s.releaseAll)
	return s.released
}

func (s *Set) releaseAll() {
	s.check()
	s.end(ErrReleased)
	var errs []error
	var locks []*Lock
	var events []Event
	var calls []*engine.Call
	for _, l := range slices.Backward(s.all()) {
		if l.lock == nil {
			continue
		}
		ended, first, err := l.lock.invalidate()
		if !first {
			errs = append(errs, err)
			continue
		}
		locks, events = append(locks, l.lock), append(events, ended)
		calls = append(calls, &engine.Call{Key: l.enc, Op: releaseOp(l.lock.Hold), AtLeast: l.lock.revision()})
	}
	for _, l := range s.all() {
		if l.intent != nil {
			l.intent.leave(s)
		}
	}
	s.s.doAll(context.Background(), calls, engine.Options{Bound: releaseTimeout, Stop: s.s.m.gone})
	for i, l := range locks {
		err := l.releaseError(calls[i].Outcome, calls[i].Err)
		l.releaseDone(events[i], err)
		errs = append(errs, err)
	}
	s.released = errors.Join(errs...)
}

// end makes the handle invalid, once.
func (s *Set) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.finish(err)
	}
}

// stop returns a channel that ends the wait for a member: it is closed when the lease or another member is lost.
func (s *Set) stop(sl *leaseShare) <-chan struct{} {
	if !slices.ContainsFunc(s.all(), func(l *level) bool { return l.hold() != nil }) {
		return sl.lease.Lost()
	}
	return s.Lost() // a lost lease loses all members
}

// Convert changes the mode of a member, as [Lock.Convert] does. Intents above that must be stronger are converted before,
// from the root down; those that can be weaker afterwards, from below. A failure in between leaves the stronger intents.
// Key of the *ConvertError names the level that failed. A Convert during another Convert or Narrow of the set returns
// ErrConverting, a mode that is too weak for the members below ErrMember, and a key that is no member ErrInvalidOption.
func (s *Set) Convert(ctx context.Context, key string, mode Mode) error {
	l := s.level(key)
	if l == nil {
		return &ConvertError{Key: key, To: mode, Cause: fmt.Errorf("%w: it is no member of the set", ErrInvalidOption)}
	}
	to, err := mode.record()
	if err == nil && !s.converting.CompareAndSwap(false, true) {
		err = ErrConverting
	}
	if err != nil {
		return l.refusal(mode, err)
	}
	defer s.converting.Store(false)
	if needed := s.needed(l); needed != record.None && !to.Covers(needed) {
		return l.refusal(mode, fmt.Errorf("%w: members below need %s of %q", ErrMember, needed, key))
	}
	for _, a := range l.above {
		if more := cover(a.mode(), intent(to)); more != a.mode() {
			if err := a.convert(ctx, more); err != nil {
				return err
			}
		}
	}
	if err := l.own(ctx, mode); err != nil {
		return err
	}
	if err := l.lock.convertAlone(ctx, mode); err != nil {
		return err
	}
	l.base = to
	for _, a := range slices.Backward(l.above) {
		if less := cover(a.base, s.needed(a)); less != a.mode() && a.mode().Covers(less) {
			if err := a.convert(ctx, less); err != nil {
				return err
			}
		}
	}
	return nil
}

// refusal returns the error of a conversion that was not begun.
func (l *level) refusal(to Mode, cause error) error {
	e := &ConvertError{Key: l.key, To: to, Cause: cause}
	if l.set.Err() == nil {
		e.Held = modeOf(l.mode())
	}
	return e
}

func (l *level) mode() record.Mode {
	if l.lock == nil {
		return l.op.Mode
	}
	l.lock.mu.Lock()
	defer l.lock.mu.Unlock()
	return l.lock.mode
}

// convert changes a level's mode for another level. A shared intent that covers the new mode stays as it is.
func (l *level) convert(ctx context.Context, to record.Mode) error {
	if l.lock == nil && l.intent.at.mode.Covers(to) {
		l.op.Mode = to
		return nil
	}
	if err := l.own(ctx, modeOf(to)); err != nil {
		return err
	}
	return l.lock.convertAlone(ctx, modeOf(to))
}

// own replaces a shared intent by a lock of the level's own: it takes over an intent without other users, or tries to get
// a lock. It does not queue: behind a process that waits for the shared intent, it would wait for itself.
func (l *level) own(ctx context.Context, to Mode) error {
	if l.lock != nil {
		return nil
	}
	p := l.intent
	l.began, l.queued = time.Now(), nil
	h := p.hold
	if !p.makeOwn(l.set) {
		l.op.Verb = record.OpTry
		var err error
		if h, _, err = l.tryOnce(ctx); err != nil {
			if refused, ok := errors.AsType[*engine.RefusedError](err); ok && refused.Verdict == record.Held {
				err = fmt.Errorf("%w: others wait for the intent on %q, which other paths of this process use", ErrConvertDeadlock, l.key)
			}
			return l.refusal(to, l.m.explain(ctx, err))
		}
	}
	s := l.set
	s.mu.Lock()
	if err := s.err; err != nil { // the set has ended meanwhile
		s.mu.Unlock()
		discard(h)
		return l.refusal(to, err)
	}
	l.lock, l.intent = &Lock{h}, nil
	s.mu.Unlock()
	if h != p.hold {
		p.leave(s)
	}
	l.lock.handOut(&l.attempt)
	return nil
}

// needed returns the intent that the levels below a level need on it; None if there are none.
func (s *Set) needed(of *level) (m record.Mode) {
	for _, l := range s.all() {
		if slices.Contains(l.above, of) {
			m = cover(m, intent(l.mode()))
		}
	}
	return m
}
