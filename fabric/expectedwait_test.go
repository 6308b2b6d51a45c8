package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestExpectedWait(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"more than the deadline allows is refused at once", refusedInTime},
		{"less than it allows queues", queuedInTime},
		{"nothing known refuses nobody", nothingKnown},
		{"no deadline refuses nobody", noDeadline},
		{"the hold time outlives the record", holdTimeRemembered},
		{"and others' holds are remembered, too", othersHoldTimeRemembered},
		{"a dead holder is replaced all the same", deadHolderInTime},
		{"a holder that lives is not replaced", heldBeyondDeadline},
	})
}

// longHold is how long a hold lasts here that is to be known as long.
const longHold = 400 * time.Millisecond

// refused acquires with a deadline that leaves half of the expected time, until it is refused for
// that: a busy machine may take longer to say so.
func refused(t *testing.T, m *fabric.Manager, key string) (late *fabric.WaitTooLongError, tries int) {
	t.Helper()
	eventually(t, "a refusal", func() bool {
		tries++
		_, err := m.Acquire(waitContext(t), key, fabric.WithWaitLimit(longHold/2), fabric.WithDeadlineCheck())
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, fabric.ErrWaitTooLong) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Fatalf("ended with %v", err)
		}
		return errors.As(err, &late) && !errors.Is(err, context.DeadlineExceeded)
	})
	return late, tries
}

// heldLong returns a hold of m on a key whose holds are known to last longHold.
func heldLong(t *testing.T, s *site, m *fabric.Manager, key string, opts ...fabric.AcquireOption) *fabric.Lock {
	t.Helper()
	first := acquire(t, s.manager(t), key)
	next := queue(t, waitContext(t), m, key, opts...)
	time.Sleep(longHold)
	release(t, first)
	l := granted(t, next)
	eventually(t, "the record follows the turn", func() bool {
		h := inspect(t, m, key).Holders
		return len(h) > 0 && h[0].ID == l.ID() || l.Err() != nil
	})
	return l
}

func refusedInTime(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := heldLong(t, s, s.manager(t), key)
	before := inspect(t, m, key).Revision
	late, tries := refused(t, m, key)
	if late.Key != key || late.Expected < longHold || late.Allowed > longHold/2 || late.Position != 0 || late.Owner != holder.ID() {
		t.Errorf("%+v", late)
	}
	// On both roads one may write the same record again, to prove that what the other one has carried out is over.
	if info := inspect(t, m, key); tries == 1 && (len(info.Waiters) > 0 || info.Revision != before && s != beltSite) {
		t.Errorf("it left something behind: %+v", info)
	}
	expectHolder(t, m, key, holder)
}

func queuedInTime(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := heldLong(t, s, s.manager(t), key)
	var waits []<-chan grant
	for range 2 {
		waits = append(waits, queue(t, waitContext(t), m, key, fabric.WithWaitLimit(time.Hour), fabric.WithDeadlineCheck()))
	}
	info := inspect(t, m, key)
	if info.HoldTime < longHold || len(info.Waiters) != 2 || info.Waiters[0].ExpectedWait != info.HoldTime ||
		info.Waiters[1].ExpectedWait != 2*info.HoldTime || info.Holders[0].ExpectedWait != 0 {
		t.Errorf("%+v", info)
	}
	eventually(t, "statistics of the wait", func() bool {
		st := m.Stats()
		return st.Waiting == 2 && st.ExpectedWait == 2*info.HoldTime
	})
	// A third one would wait for three holds.
	third := s.manager(t)
	var late *fabric.WaitTooLongError
	eventually(t, "a refusal", func() bool { // before its deadline
		_, err := third.Acquire(waitContext(t), key, fabric.WithWaitLimit(2*info.HoldTime), fabric.WithDeadlineCheck())
		if !errors.As(err, &late) && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ended with %v", err)
		}
		waitQueue(t, m, key, 2)
		return late != nil
	})
	if late.Position != 2 || late.Expected != 3*info.HoldTime {
		t.Errorf("%+v", late)
	}
	release(t, holder)
	for _, w := range waits {
		release(t, granted(t, w))
	}
	expectFree(t, m, key)
	if st := m.Stats(); st.Waiting != 0 || st.ExpectedWait != 0 || st.HoldTime <= 0 {
		t.Errorf("%+v", st)
	}
}

func nothingKnown(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	acquire(t, s.manager(t), key)
	_, err := m.Acquire(waitContext(t), key, fabric.WithWaitLimit(50*time.Millisecond), fabric.WithDeadlineCheck())
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fabric.ErrWaitTooLong) {
		t.Errorf("ended with %v", err)
	}
	if info := inspect(t, m, key); info.HoldTime != 0 {
		t.Errorf("%+v", info)
	}
}

func noDeadline(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := heldLong(t, s, s.manager(t), key)
	ctx, cancel := context.WithCancel(context.Background()) // has none
	defer cancel()
	next := queue(t, ctx, m, key, fabric.WithDeadlineCheck())
	release(t, holder)
	release(t, granted(t, next))
}

func holdTimeRemembered(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	l := acquire(t, m, key)
	time.Sleep(longHold)
	release(t, l)
	expectFree(t, m, key)
	if st := m.Stats(); st.HoldTime < longHold {
		t.Errorf("%+v", st)
	}
	// The record is gone; the next one that this process makes knows.
	acquire(t, m, key)
	refused(t, s.manager(t), key)
}

func othersHoldTimeRemembered(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	release(t, heldLong(t, s, m, key)) // not long itself
	expectFree(t, m, key)
	acquire(t, m, key)
	refused(t, s.manager(t), key)
}

// Whoever only ever asks with a check must not be kept out for ever by one that has crashed.
func deadHolderInTime(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	nc := s.conn(t)
	crashing := newManager(t, nc, fabric.WithTTL(2*time.Second))
	heldLong(t, s, crashing, key)
	nc.Close()
	inTheWay, limit := 0, longHold/2
	eventually(t, "grant after a crash", func() bool {
		l, err := m.Acquire(waitContext(t), key, fabric.WithWaitLimit(limit), fabric.WithDeadlineCheck())
		limit += limit / 20 // so that it is longer than an answer takes, however busy the machine
		switch {
		case err == nil:
			release(t, l)
			return true
		case errors.Is(err, fabric.ErrWaitTooLong), errors.Is(err, context.DeadlineExceeded):
			inTheWay++
		default:
			t.Fatal(err)
		}
		return false
	})
	if inTheWay == 0 {
		t.Error("the crashed holder was never in the way")
	}
}

func heldBeyondDeadline(t *testing.T, s *site) {
	withTTL(t, time.Second, func(ttl time.Duration) bool { return heldBeyond(t, s, ttl) })
}

func heldBeyond(t *testing.T, s *site, ttl time.Duration) (tooSoon bool) {
	key, m := s.key(t), s.manager(t)
	holder := heldLong(t, s, s.manager(t, fabric.WithTTL(ttl)), key)
	for end := time.Now().Add(ttl * 5 / 2); time.Now().Before(end); {
		_, err := m.Acquire(waitContext(t), key, fabric.WithWaitLimit(longHold/2), fabric.WithDeadlineCheck())
		if errors.Is(holder.Err(), fabric.ErrExpired) {
			return true
		}
		if !errors.Is(err, fabric.ErrWaitTooLong) && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ended with %v", err)
		}
	}
	expectHolder(t, m, key, holder)
	return false
}
