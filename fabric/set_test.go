package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestSets(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"all or nothing, in any order", setAllOrNothing},
		{"a try names the first in the way and leaves nothing", setTry},
		{"members", setMembers},
		{"the same key twice", setSameKeyTwice},
		{"what is no set", setNonsense},
	}, coalescedSite, beltSite, shardedSite)
}

func acquireAll(t testing.TB, m *fabric.Manager, wants []fabric.Want, opts ...fabric.AcquireOption) *fabric.Set {
	t.Helper()
	s, err := m.AcquireAll(waitContext(t), wants, opts...)
	if err != nil {
		t.Fatalf("acquire: %v", err)
	}
	return s
}

func releaseSet(t testing.TB, s *fabric.Set) {
	t.Helper()
	if err := s.Release(waitContext(t)); err != nil {
		t.Fatalf("release: %v", err)
	}
}

// setGrant is what an acquire of a set in the background came to.
type setGrant struct {
	set *fabric.Set
	err error
}

func acquireAllAsync(ctx context.Context, m *fabric.Manager, wants []fabric.Want, opts ...fabric.AcquireOption) <-chan setGrant {
	out := make(chan setGrant, 1)
	go func() {
		s, err := m.AcquireAll(ctx, wants, opts...)
		out <- setGrant{s, err}
	}()
	return out
}

// keys returns names of which none is a prefix of another.
func (s *site) keys(t testing.TB, n int) []string {
	var keys []string
	base := s.key(t)
	for i := range n {
		keys = append(keys, fmt.Sprintf("%s-%d", base, i))
	}
	return keys
}

func setAllOrNothing(t *testing.T, s *site) {
	m, other := s.manager(t), s.manager(t)
	k := s.keys(t, 3)
	set := acquireAll(t, m, fabric.Names(k[2], k[0], k[1]))
	for i, l := range set.Locks() {
		if want := []string{k[2], k[0], k[1]}[i]; l.Key() != want || set.Lock(want) != l || set.Tokens()[want] != l.Token() {
			t.Errorf("member %d is %s", i, l.Key())
		}
		expectHolder(t, other, l.Key(), l)
	}
	if set.Key() != k[1] || set.Token() != set.Lock(k[1]).Token() || set.Lock("nobody") != nil {
		t.Errorf("the set is %s with token %d", set.Key(), set.Token())
	}
	if !set.IsValid(waitContext(t)) || set.ValidUntil().IsZero() || set.Err() != nil {
		t.Error("a set that was just granted is not valid")
	}
	waiting := acquireAllAsync(waitContext(t), other, fabric.Names(k[1], k[0]))
	waitQueue(t, m, k[0], 1)
	ctx := set.Context()
	releaseSet(t, set)
	g := receive(t, waiting)
	if g.err != nil {
		t.Fatal(g.err)
	}
	if !errors.Is(set.Err(), fabric.ErrReleased) || !errors.Is(context.Cause(ctx), fabric.ErrReleased) || !set.ValidUntil().IsZero() {
		t.Errorf("after Release Err is %v", set.Err())
	}
	for _, l := range set.Locks() {
		if !errors.Is(l.Err(), fabric.ErrReleased) {
			t.Errorf("after Release a member says %v", l.Err())
		}
	}
	if err := set.Release(waitContext(t)); err != nil {
		t.Errorf("releasing again: %v", err)
	}
	releaseSet(t, g.set)
	expectAllFree(t, m, k...)
}

// expectAllFree expects that nobody holds these.
func expectAllFree(t *testing.T, m *fabric.Manager, keys ...string) {
	t.Helper()
	for _, key := range keys {
		expectFree(t, m, key)
	}
}

func setTry(t *testing.T, s *site) {
	m, other := s.manager(t), s.manager(t)
	k := s.keys(t, 4)
	busy := acquire(t, other, k[2])
	for range 2 { // not known, and known
		_, err := m.TryAcquireAll(waitContext(t), fabric.Names(k...), fabric.WithoutTakeover())
		var held *fabric.HeldError
		if !errors.Is(err, fabric.ErrNotAcquired) || !errors.Is(err, fabric.ErrHeld) || !errors.As(err, &held) || held.Key != k[2] {
			t.Errorf("refused with %v", err)
		}
		expectAllFree(t, other, k[0], k[1], k[3])
	}
	release(t, busy)
	set, err := m.TryAcquireAll(waitContext(t), fabric.Names(k...))
	if err != nil {
		t.Fatal(err)
	}
	releaseSet(t, set)
}

func setMembers(t *testing.T, s *site) {
	m := s.manager(t)
	k := s.keys(t, 2)
	set := acquireAll(t, m, fabric.Names(k...), fabric.WithOwner("me"))
	l := set.Lock(k[0])
	if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrMember) || l.Err() != nil {
		t.Errorf("a member was released: %v", err)
	}
	if err := l.Convert(waitContext(t), fabric.Shared); err != nil || l.Mode() != fabric.Shared {
		t.Errorf("convert: %v", err)
	}
	_, err := m.AcquireAll(waitContext(t), fabric.Names(k[1]), fabric.WithOwner("me"))
	if !errors.Is(err, fabric.ErrAlreadyHeld) {
		t.Errorf("the same owner: %v", err)
	}
	if _, err := m.ForceRelease(waitContext(t), k[0], fabric.ForceNow()); err != nil {
		t.Fatal(err)
	}
	receive(t, set.Lost())
	var lost *fabric.LostError
	if err := set.Err(); !errors.As(err, &lost) || lost.Key != k[0] || !errors.Is(err, fabric.ErrRemoved) {
		t.Errorf("lost with %v", err)
	}
	if err := set.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("release of a lost set: %v", err)
	}
	expectAllFree(t, m, k[1])
	err = m.DoAll(waitContext(t), fabric.Names(k...), func(ctx context.Context, set *fabric.Set) error {
		releaseSet(t, set)
		receive(t, ctx.Done())
		return context.Cause(ctx)
	})
	if !errors.Is(err, fabric.ErrReleased) {
		t.Errorf("do: %v", err)
	}
}

func setSameKeyTwice(t *testing.T, s *site) {
	m := s.manager(t)
	key := s.key(t)
	set := acquireAll(t, m, []fabric.Want{{Key: key, Mode: fabric.Shared}, {Key: key + "/below", Path: true}, {Key: key, Mode: fabric.Update}})
	if l := set.Lock(key); l.Mode() != fabric.SharedIntentExclusive {
		t.Errorf("%s", l.Mode())
	}
	releaseSet(t, set)
}

func setNonsense(t *testing.T, s *site) {
	m := s.manager(t)
	key := s.key(t)
	for name, c := range map[string]struct {
		wants []fabric.Want
		opts  []fabric.AcquireOption
		is    error
	}{
		"none":      {nil, nil, fabric.ErrInvalidOption},
		"many":      {fabric.Names(s.keys(t, fabric.MaxSet+1)...), nil, fabric.ErrInvalidOption},
		"mode":      {[]fabric.Want{{Key: key, Mode: "Y"}}, nil, fabric.ErrInvalidOption},
		"with mode": {fabric.Names(key), []fabric.AcquireOption{fabric.WithMode(fabric.Shared)}, fabric.ErrInvalidOption},
		"name":      {fabric.Names(key, ""), nil, fabric.ErrInvalidName},
	} {
		set, err := m.AcquireAll(waitContext(t), c.wants, c.opts...)
		if set != nil || !errors.Is(err, c.is) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("%s: %v", name, err)
		}
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.AcquireAll(done, fabric.Names(key)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}
