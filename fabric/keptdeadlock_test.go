package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// A unit of work that waits for a kept lock which it uses itself is told at once.
func TestK7_AUnitThatWaitsForItself(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(5*time.Second), fabric.WithDeadlockDelay(time.Hour))
		key := s.keptAlready(t, m)
		err := m.Do(waitContext(t), key, func(ctx context.Context, _ *fabric.Lock) error {
			_, err := m.Acquire(ctx, key, fabric.WithWaitLimit(10*time.Second))
			return err
		})
		var d *fabric.DeadlockError
		if !errors.As(err, &d) || len(d.Cycle) != 1 || d.Key != key {
			t.Errorf("got %v, want a DeadlockError", err)
		}
		expectFree(t, m, key)
	})
}

// A kept lock stands for the unit of work that uses it now: one unit holds k2 and waits in the process for k1, which
// is kept, and whose user waits for k2.
func TestK7_ACircleOverAKeptLock(t *testing.T) {
	onBothSites(t, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(time.Minute), soon())
		k1, k2 := s.keptAlready(t, m), s.key(t)
		ctx := waitContext(t)
		first, second := fabric.WithUnit(ctx), fabric.WithUnit(ctx)
		held := map[context.Context]*fabric.Lock{}
		for unit, key := range map[context.Context]string{first: k1, second: k2} {
			var err error
			if held[unit], err = m.Acquire(unit, key); err != nil {
				t.Fatal(err)
			}
		}
		if m.Stats().KeptJoins < 2 {
			t.Fatalf("%d joins: the lock was not taken over", m.Stats().KeptJoins)
		}
		ends := make(chan error, 2)
		for unit, key := range map[context.Context]string{first: k2, second: k1} {
			go func() {
				l, err := m.Acquire(unit, key, fabric.WithWaitLimit(15*time.Second))
				if err == nil {
					err = l.Release(ctx)
				}
				_ = held[unit].Release(ctx)
				ends <- err
			}()
		}
		var victims int
		for range 2 {
			switch err := receive(t, ends); {
			case errors.Is(err, fabric.ErrDeadlock):
				victims++
			case err != nil:
				t.Error(err)
			}
		}
		if victims != 1 || m.Stats().Deadlocks != 1 {
			t.Errorf("%d victims, %d in the statistics", victims, m.Stats().Deadlocks)
		}
	})
}

// What others read to be held by a unit of work that waits is nobody else's, as long as it stands: it is released, and
// not handed on. Else a look after that would still find the unit in the way of who waits for the entry.
func TestK7_WhatIsToldToBeHeldIsReleased(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other := s.manager(t, fabric.WithKeep(time.Minute), soon()), s.manager(t)
		kept, wanted := s.keptAlready(t, m), s.key(t)
		unit, cancel := context.WithCancel(fabric.WithUnit(waitContext(t)))
		l, err := m.Acquire(unit, kept)
		if err != nil {
			t.Fatal(err)
		}
		theirs := acquire(t, other, wanted)
		end := make(chan error, 1)
		go func() {
			_, err := m.Acquire(unit, wanted)
			end <- err
		}()
		eventually(t, "a document of the wait", func() bool { return m.Stats().DeadlockProbes > 0 })
		id := l.ID()
		release(t, l)
		next := acquire(t, m, kept)
		if next.ID() == id {
			t.Error("another unit of work holds by an entry that is told to be the first one's")
		}
		release(t, next)
		cancel()
		if err := receive(t, end); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		release(t, theirs)
	})
}
