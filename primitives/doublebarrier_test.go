package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestDoubleBarrierConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"enter and leave", doubleEnterLeave},
		{"many parties × many times", doubleMany},
		{"enter and leave are one write each", doubleWrites},
		{"one that dies while it enters leaves its place to another", doubleDiesEntering},
		{"one that dies inside has left", doubleDiesInside},
		{"who comes while they are inside waits for the next time", doubleLate},
		{"a cancelled enter leaves nothing behind", doubleCancelled},
		{"leave under an ended context doesn't wait", doubleLeaveEnded},
		{"leave twice, and of a lost membership", doubleLeaveTwice},
		{"other numbers of parties are refused while it is used", doubleParties},
	})
}

type member = *primitives.Member

// enter goes in in the background, and returns when it stands there as the n-th.
func enter(t testing.TB, m *fabric.Manager, key string, d *primitives.DoubleBarrier, n int) <-chan result[member] {
	t.Helper()
	c := async(func() (member, error) { return d.Enter(waitContext(t)) })
	waitInfo(t, m, key, fmt.Sprintf("%d there", n), func(i fabric.Info) bool { return len(i.Holders)+len(i.Waiters) == n })
	return c
}

func leave(t testing.TB, mb member) <-chan result[struct{}] {
	return async(func() (struct{}, error) { return struct{}{}, mb.Leave(waitContext(t)) })
}

// inside returns the members of a double barrier that is open for two, each of a manager of its own.
func inside(t *testing.T, s *site, key string, managers ...*fabric.Manager) (a, b member) {
	t.Helper()
	first := enter(t, managers[0], key, primitives.NewDoubleBarrier(managers[0], key, 2), 1)
	b, err := primitives.NewDoubleBarrier(managers[1], key, 2).Enter(waitContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return must(t, first), b
}

func doubleEnterLeave(t *testing.T, s *site) {
	key, m1, m2 := s.key(t), s.manager(t), s.manager(t)
	a, b := inside(t, s, key, m1, m2)
	if a.Token() == 0 || a.Token() != b.Token() || a.Err() != nil || a.Key() != key {
		t.Errorf("tokens %d and %d, %v", a.Token(), b.Token(), a.Err())
	}
	if info, err := primitives.NewDoubleBarrier(m1, key, 2).State(waitContext(t)); err != nil || !info.Open || info.Arrived != 2 || info.Parties != 2 {
		t.Errorf("%+v, %v", info, err)
	}
	left := leave(t, a)
	waitInfo(t, m1, key, "one that has left", func(i fabric.Info) bool { return len(i.Holders) == 2 && (i.Holders[0].Leaving || i.Holders[1].Leaving) })
	if !errors.Is(a.Err(), fabric.ErrReleased) || b.Err() != nil {
		t.Errorf("%v, %v", a.Err(), b.Err())
	}
	select {
	case <-left:
		t.Error("it has left before the other")
	default:
	}
	must(t, leave(t, b))
	must(t, left)
	expectFree(t, m1, key)
	again, _ := inside(t, s, key, m1, m2)
	if again.Token() <= a.Token() {
		t.Errorf("token %d after %d", again.Token(), a.Token())
	}
}

func doubleMany(t *testing.T, s *site) {
	const parties, times = 4, 8
	key := s.key(t)
	var entered, left [times]atomic.Int32
	var wg sync.WaitGroup
	managers := []*fabric.Manager{s.manager(t), s.manager(t)}
	for p := range parties {
		d := primitives.NewDoubleBarrier(managers[p%2], key, parties)
		wg.Go(func() {
			for n := range times {
				entered[n].Add(1)
				mb, err := d.Enter(waitContext(t))
				if err != nil {
					t.Errorf("enter %d: %v", n, err)
					return
				}
				if got := entered[n].Load(); got != parties {
					t.Errorf("time %d: %d of %d are in", n, got, parties)
				}
				left[n].Add(1)
				if err := mb.Leave(waitContext(t)); err != nil {
					t.Errorf("leave %d: %v", n, err)
				}
				if got := left[n].Load(); got != parties {
					t.Errorf("time %d: %d of %d are out", n, got, parties)
				}
			}
		})
	}
	wg.Wait()
	expectFree(t, managers[0], key)
}

func doubleWrites(t *testing.T, s *site) {
	key, m1, m2 := s.key(t), s.manager(t), s.manager(t)
	a, b := inside(t, s, s.key(t), m1, m2) // opens what is opened once
	first := leave(t, a)
	must(t, leave(t, b))
	must(t, first)
	if n := writes(func() {
		a, b = inside(t, s, key, m1, m2)
	}, m1, m2); n.not(2) {
		t.Errorf("%d writes for two who enter", n)
	}
	if n := writes(func() {
		left := leave(t, a)
		waitInfo(t, m1, key, "one that has left", func(i fabric.Info) bool { return len(i.Holders) == 2 && i.Holders[0].Leaving })
		must(t, leave(t, b))
		must(t, left)
	}, m1, m2); n.not(2) {
		t.Errorf("%d writes for two who leave", n)
	}
}

func doubleDiesEntering(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	p := s.proxied(t)
	gone := newManager(t, p.conn, fabric.WithTTL(mortalTTL))
	d := primitives.NewDoubleBarrier(m, key, 3)
	ctx, cancel := context.WithCancel(waitContext(t))
	dies := async(func() (member, error) { return primitives.NewDoubleBarrier(gone, key, 3).Enter(ctx) })
	waitInfo(t, m, key, "the first", func(i fabric.Info) bool { return i.Arrived == 1 })
	first := enter(t, m, key, d, 2)
	p.cut()
	waitInfo(t, m, key, "its place to be free", func(i fabric.Info) bool { return i.Arrived == 1 })
	second := enter(t, m, key, d, 2)
	if _, err := d.Enter(waitContext(t)); err != nil {
		t.Error(err)
	}
	must(t, first)
	must(t, second)
	cancel()
	if r := receive(t, dies); r.err == nil {
		t.Error("it went in without a lease")
	}
}

func doubleDiesInside(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	p := s.proxied(t)
	gone := newManager(t, p.conn, fabric.WithTTL(mortalTTL))
	dies, b := inside(t, s, key, gone, m)
	left := leave(t, b)
	p.cut()
	must(t, left)
	receive(t, dies.Lost())
	if err := dies.Leave(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Error(err)
	}
	expectFree(t, m, key)
}

func doubleLate(t *testing.T, s *site) {
	key, m1, m2 := s.key(t), s.manager(t), s.manager(t)
	a, b := inside(t, s, key, m1, m2)
	d := primitives.NewDoubleBarrier(m2, key, 2)
	late, later := enter(t, m1, key, d, 3), enter(t, m1, key, d, 4)
	waitQueue(t, m1, key, 2)
	left := leave(t, a)
	must(t, leave(t, b))
	must(t, left)
	c, e := must(t, late), must(t, later)
	if c.Token() <= a.Token() || c.Token() != e.Token() {
		t.Errorf("tokens %d, %d after %d", c.Token(), e.Token(), a.Token())
	}
	release(t, c) // leaves without waiting
	must(t, leave(t, e))
	expectFree(t, m1, key)
}

func doubleCancelled(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	d := primitives.NewDoubleBarrier(m, key, 2)
	ctx, cancel := context.WithCancel(waitContext(t))
	c := async(func() (member, error) { return d.Enter(ctx) })
	waitInfo(t, m, key, "one", func(i fabric.Info) bool { return i.Arrived == 1 })
	cancel()
	if r := receive(t, c); !errors.Is(r.err, context.Canceled) || !errors.Is(r.err, fabric.ErrNotAcquired) || errors.Is(r.err, fabric.ErrUncertain) {
		t.Error(r.err)
	}
	waitInfo(t, m, key, "free", func(i fabric.Info) bool { return i.Kind == "" }) // it may leave later than its caller is told
}

func doubleLeaveEnded(t *testing.T, s *site) {
	key, m1, m2 := s.key(t), s.manager(t), s.manager(t)
	a, b := inside(t, s, key, m1, m2)
	ended, cancel := context.WithCancel(waitContext(t))
	cancel()
	if err := a.Leave(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if info := read(t, m1, key); len(info.Holders) != 1 {
		t.Errorf("%+v", info.Holders)
	}
	must(t, leave(t, b))

	// It ends while the others are inside: it has left all the same, and is no debt of its lease.
	a, b = inside(t, s, key, m1, m2)
	ctx, cancel := context.WithCancel(waitContext(t))
	left := async(func() (struct{}, error) { return struct{}{}, a.Leave(ctx) })
	waitInfo(t, m1, key, "one that has left", func(i fabric.Info) bool { return len(i.Holders) == 2 && i.Holders[0].Leaving })
	cancel()
	if r := receive(t, left); !errors.Is(r.err, context.Canceled) { // uncertain beside it where the write's answer is late
		t.Error(r.err)
	}
	must(t, leave(t, b))
	expectFree(t, m1, key)
}

func doubleLeaveTwice(t *testing.T, s *site) {
	key, m1, m2 := s.key(t), s.manager(t), s.manager(t)
	a, b := inside(t, s, key, m1, m2)
	if _, err := m1.ForceRelease(waitContext(t), key, fabric.ForceNow()); err != nil {
		t.Fatal(err)
	}
	receive(t, a.Lost())
	receive(t, b.Lost())
	if err := a.Leave(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Error(err)
	}
	a, b = inside(t, s, key, m1, m2)
	left := leave(t, a)
	must(t, leave(t, b))
	must(t, left)
	if err := a.Leave(waitContext(t)); !errors.Is(err, fabric.ErrReleased) && err != nil {
		t.Error(err)
	}
}

func doubleParties(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	first := enter(t, m, key, primitives.NewDoubleBarrier(m, key, 2), 1)
	var differ *fabric.SizeMismatchError
	if _, err := primitives.NewDoubleBarrier(m, key, 3).Enter(waitContext(t)); !errors.As(err, &differ) || differ.Have != 2 {
		t.Error(err)
	}
	b, err := primitives.NewDoubleBarrier(m, key, 2).Enter(waitContext(t))
	if err != nil {
		t.Fatal(err)
	}
	left := leave(t, b)
	must(t, leave(t, must(t, first)))
	must(t, left)
	one, err := primitives.NewDoubleBarrier(m, key, 1).Enter(waitContext(t)) // nobody used it
	if err != nil {
		t.Fatal(err)
	}
	must(t, leave(t, one))
}
