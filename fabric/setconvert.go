package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Convert changes the mode of a member, as [Lock.Convert] does. Intents follow: if the new mode
// needs stronger ones on the levels above it, these are converted first, from the root down; and
// if it needs weaker ones, afterwards, from below. A failure in between leaves the stronger
// intents; Key of the *ConvertError names the level that failed. One Convert of a set is made at
// a time, another one meanwhile is ErrConverting. A mode that is too weak for the members below
// is ErrMember; a key that is no member is ErrInvalidOption.
func (s *Set) Convert(ctx context.Context, key string, mode Mode) error {
	i := slices.IndexFunc(s.levels, func(l *level) bool { return l.key == key })
	if i < 0 {
		return &ConvertError{Key: key, To: mode, Cause: fmt.Errorf("%w: it is no member of the set", ErrInvalidOption)}
	}
	l := s.levels[i]
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

// refusal is the error of a conversion that was not begun.
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
	return l.lock.entry.Mode
}

// convert changes the mode of a level that is converted for the sake of one below. A shared intent
// that covers it does as it is.
func (l *level) convert(ctx context.Context, to record.Mode) error {
	if l.lock == nil && l.pin.at.mode.Covers(to) {
		l.op.Mode = to
		return nil
	}
	if err := l.own(ctx, modeOf(to)); err != nil {
		return err
	}
	return l.lock.convertAlone(ctx, modeOf(to))
}

// own replaces a shared intent by one of the level's own, as others count on it: its only user
// takes it over. Else an own one is tried before the shared one is left. Queued behind who waits
// for the shared one it would wait for itself.
func (l *level) own(ctx context.Context, to Mode) error {
	if l.lock != nil {
		return nil
	}
	p := l.pin
	l.began, l.queued = time.Now(), nil
	h := p.hold
	if !p.give(l.set) {
		l.op.Verb = record.OpTry
		var err error
		if h, _, err = l.tryOnce(ctx); err != nil {
			var refused *engine.RefusedError
			if errors.As(err, &refused) && refused.Verdict == record.Held {
				err = fmt.Errorf("%w: others wait for the intent on %q, which other paths of this process use", ErrConvertDeadlock, l.key)
			}
			return l.refusal(to, l.m.explain(ctx, err))
		}
	}
	s := l.set
	s.mu.Lock()
	if err := s.err; err != nil { // meanwhile
		s.mu.Unlock()
		discard(h)
		return l.refusal(to, err)
	}
	l.lock, l.pin = &Lock{h}, nil
	s.mu.Unlock()
	if h != p.hold {
		p.leave(s)
	}
	l.lock.handOut(&l.attempt)
	return nil
}

// needed is the intent that the levels below need of a level; None if there are none.
func (s *Set) needed(of *level) (m record.Mode) {
	for _, l := range s.levels {
		if slices.Contains(l.above, of) {
			m = cover(m, intent(l.mode()))
		}
	}
	return m
}
