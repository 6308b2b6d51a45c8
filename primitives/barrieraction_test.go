package primitives_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func barrierAction(t *testing.T, s *site) {
	const parties, generations = 3, 5
	key := s.key(t)
	var running, ran atomic.Int32
	var token uint64
	action := func(_ context.Context, tok uint64) error {
		if running.Add(1) != 1 {
			t.Error("two actions run")
		}
		if tok <= token {
			t.Errorf("token %d after %d", tok, token)
		}
		token = tok
		ran.Add(1)
		running.Add(-1)
		return nil
	}
	var waits []<-chan result[int]
	for range parties {
		b := primitives.NewBarrier(s.manager(t), key, parties).WithAction(action)
		waits = append(waits, async(func() (last int, err error) {
			for g := range generations {
				if _, err = b.Wait(waitContext(t)); err != nil {
					return 0, err
				}
				if n := int(ran.Load()); n < g+1 || n > g+2 {
					t.Errorf("let go of generation %d after %d actions", g, n)
				}
			}
			return 0, nil
		}))
	}
	for _, c := range waits {
		must(t, c)
	}
	if n := ran.Load(); n != generations {
		t.Errorf("%d actions", n)
	}
}

var errAction = errors.New("action failed")

func barrierActionFails(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 2)
	first := arrive(t, m[0], key, b[0], 1)
	failing := b[1].WithAction(func(context.Context, uint64) error { return errAction })
	if _, err := failing.Wait(waitContext(t)); !errors.Is(err, errAction) || !errors.Is(err, fabric.ErrBroken) {
		t.Error(err)
	}
	broken(t, first, "failed")

	first = arrive(t, m[0], key, b[0], 1)
	panics := b[1].WithAction(func(context.Context, uint64) error { panic(errAction) })
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		_, _ = panics.Wait(waitContext(t))
	}()
	broken(t, first, "failed")
	if info := read(t, m[0], key); info.Generation != 3 || info.Acting {
		t.Errorf("%+v", info)
	}
}

// holdAction returns a barrier of n whose action, once started, ends when it is told to.
func holdAction(b *primitives.Barrier) (acts *primitives.Barrier, started chan context.Context, finish chan error) {
	started, finish = make(chan context.Context, 1), make(chan error)
	return b.WithAction(func(ctx context.Context, _ uint64) error {
		started <- ctx
		return <-finish
	}), started, finish
}

func barrierActionUnbroken(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 2)
	ctx, cancel := context.WithCancel(waitContext(t))
	acts, started, finish := holdAction(b[1])
	first := arriveUnder(t, ctx, m[0], key, b[0], 1)
	last := async(func() (int, error) { return acts.Wait(waitContext(t)) })
	receive(t, started)
	cancel() // it has arrived all the same
	if err := b[0].Reset(waitContext(t)); err != nil {
		t.Error(err)
	}
	if err := b[0].Delete(waitContext(t)); !errors.Is(err, fabric.ErrHeld) {
		t.Error(err)
	}
	// Others come for the next generation meanwhile, and more than it takes wait in their processes.
	one := arrive(t, m[0], key, b[0], 1)
	two := arrive(t, m[0], key, b[0], 2)
	three := async(func() (int, error) { return b[0].Wait(waitContext(t)) })
	finish <- nil
	if i, k := must(t, first), must(t, last); i != 1 || k != 0 {
		t.Errorf("%d, %d", i, k)
	}
	if i, k := must(t, one), must(t, two); i != 1 || k != 0 {
		t.Errorf("%d, %d", i, k)
	}
	if _, err := b[1].Wait(waitContext(t)); err != nil {
		t.Error(err)
	}
	must(t, three)
}

func barrierActionCrashes(t *testing.T, s *site) {
	key := s.key(t)
	m, b := s.parties(t, key, 2)
	p := s.proxied(t)
	gone := newManager(t, p.conn, fabric.WithTTL(mortalTTL))
	acts, started, finish := holdAction(primitives.NewBarrier(gone, key, 2))
	first := arrive(t, m[0], key, b[0], 1)
	last := async(func() (int, error) { return acts.Wait(waitContext(t)) })
	ctx := receive(t, started)
	p.cut()
	broken(t, first, "died")
	receive(t, ctx.Done())
	if !errors.Is(context.Cause(ctx), fabric.ErrLost) {
		t.Error(context.Cause(ctx))
	}
	finish <- nil
	if r := receive(t, last); !errors.Is(r.err, fabric.ErrLost) || r.value != -1 {
		t.Errorf("%d, %v", r.value, r.err)
	}
}
