package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestCondConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"wait or signal without the lock is an error", condNeedsLock},
		{"signal wakes one, in order, and wait returns holding a new token", condSignalOrder},
		{"broadcast wakes all who wait then", condBroadcast},
		{"no signal is stolen by a later waiter", condNotStolen},
		{"no wakeup is lost between release and wait", condNoLostWakeup},
		{"a wait that times out comes back holding", condTimeout},
		{"a wait that is cancelled and signalled is a success", condCancelledAndSignalled},
		{"conditions of one mutex are apart", condTwo},
		{"two goroutines that signal with one handle wake two", condOneHandleTwoSignals},
		{"a waiter that crashes doesn't swallow a signal", condCrash},
		{"a lost lease ends the wait without the lock", condLost},
		{"close ends the wait and passes its signal on", condClose},
		{"wait, signal and broadcast are one write each", condWrites},
	})
}

// condPair is a mutex with a condition as two processes see it.
type condPair struct {
	t     *testing.T
	s     *site
	m     *fabric.Manager
	key   string
	mus   [2]*primitives.Mutex
	cond  [2]*primitives.Cond
	ended []string // holds that a wait has given up: on both roads, an owner that is behind may write one once more
}

func newCondPair(t *testing.T, s *site, opts ...fabric.Option) *condPair {
	p := &condPair{t: t, s: s, m: s.manager(t), key: s.key(t)}
	for i, m := range []*fabric.Manager{p.m, s.manager(t, opts...)} {
		p.mus[i] = primitives.NewMutex(m, p.key)
		p.cond[i] = primitives.NewCond(p.mus[i], "full")
	}
	return p
}

// wait has the i-th process wait for the condition, as its n-th waiter.
func (p *condPair) wait(ctx context.Context, i, n int) <-chan result[*primitives.Lock] {
	p.t.Helper()
	l := lock(p.t, p.mus[i])
	p.ended = append(p.ended, l.ID())
	out := async(func() (*primitives.Lock, error) { return p.cond[i].Wait(ctx, l) })
	p.waiters("full", n)
	return out
}

// waiters waits until n wait for the condition.
func (p *condPair) waiters(name string, n int) {
	p.t.Helper()
	waitInfo(p.t, p.m, p.key, fmt.Sprintf("%d waiters of %s", n, name), func(i fabric.Info) bool {
		for _, c := range i.Conditions {
			if c.Name == name {
				return len(c.Waiters) == n
			}
		}
		return n == 0
	})
}

// free expects that nobody holds the lock, or waits.
func (p *condPair) free() {
	p.t.Helper()
	if p.s.road == fabric.RoadBoth {
		waitInfo(p.t, p.m, p.key, "free", func(i fabric.Info) bool { return i.Kind == "" })
		return
	}
	expectFree(p.t, p.m, p.key)
}

func (p *condPair) signal(l *primitives.Lock) {
	p.t.Helper()
	if err := p.cond[0].Signal(waitContext(p.t), l); err != nil {
		p.t.Fatal(err)
	}
}

// pending makes sure that nothing came.
func pending(t *testing.T, c <-chan result[*primitives.Lock]) {
	t.Helper()
	select {
	case r := <-c:
		t.Fatalf("woken without a signal: %+v", r)
	default:
	}
}

func condNeedsLock(t *testing.T, s *site) {
	p := newCondPair(t, s)
	ctx := waitContext(t)
	l := lock(t, p.mus[0])
	reader, err := primitives.NewRWMutex(p.m, s.key(t)).RLock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ofOther := lock(t, primitives.NewMutex(p.m, s.key(t)))
	gone := lock(t, primitives.NewMutex(p.m, s.key(t)))
	release(t, gone)
	for why, c := range map[string]struct {
		l    *primitives.Lock
		cond *primitives.Cond
		want error
	}{
		"no lock":             {nil, p.cond[0], fabric.ErrInvalidOption},
		"of another mutex":    {ofOther, p.cond[0], fabric.ErrInvalidOption},
		"a reader":            {reader, primitives.NewCond(primitives.NewMutex(p.m, reader.Key()), "full"), fabric.ErrInvalidOption},
		"released":            {gone, primitives.NewCond(primitives.NewMutex(p.m, gone.Key()), "full"), fabric.ErrReleased},
		"no name":             {l, primitives.NewCond(p.mus[0], ""), fabric.ErrInvalidOption},
		"a name that is long": {l, primitives.NewCond(p.mus[0], strings.Repeat("x", primitives.MaxCondName+1)), fabric.ErrInvalidOption},
	} {
		if back, err := c.cond.Wait(ctx, c.l); !errors.Is(err, c.want) || back != c.l {
			t.Errorf("wait, %s: %v, %v", why, back, err)
		}
		if err := c.cond.Signal(ctx, c.l); !errors.Is(err, c.want) {
			t.Errorf("signal, %s: %v", why, err)
		}
		if err := c.cond.Broadcast(ctx, c.l); !errors.Is(err, c.want) {
			t.Errorf("broadcast, %s: %v", why, err)
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if back, err := p.cond[0].Wait(ended, l); !errors.Is(err, context.Canceled) || back == nil || back.Err() != nil {
		t.Errorf("under a context that has ended: %v, %v", back, err)
	}
	release(t, l)
}

func condSignalOrder(t *testing.T, s *site) {
	p := newCondPair(t, s)
	a, b := p.wait(waitContext(t), 1, 1), p.wait(waitContext(t), 0, 2)
	l := lock(t, p.mus[0])
	p.signal(l)
	p.waiters("full", 1)
	token := l.Token()
	release(t, l)
	first := must(t, a)
	if first.Token() <= token || first.Err() != nil || first.Mode() != fabric.Exclusive {
		t.Errorf("token %d after %d, %v", first.Token(), token, first.Err())
	}
	release(t, first) // its signal is used: nobody else is woken
	if info := read(t, p.m, p.key); len(info.Conditions) != 1 || len(info.Holders)+len(info.Waiters) > 0 {
		t.Fatalf("woken without a signal: %+v", info)
	}
	l = lock(t, p.mus[1])
	if err := p.cond[1].Signal(waitContext(t), l); err != nil {
		t.Error(err)
	}
	release(t, l)
	release(t, must(t, b))
	p.free()
}

func condBroadcast(t *testing.T, s *site) {
	p := newCondPair(t, s)
	var all []<-chan result[*primitives.Lock]
	for i := range 4 {
		all = append(all, p.wait(waitContext(t), i%2, i+1))
	}
	l := lock(t, p.mus[0])
	if err := p.cond[0].Broadcast(waitContext(t), l); err != nil {
		t.Fatal(err)
	}
	p.waiters("full", 0)
	late := async(func() (*primitives.Lock, error) { return p.cond[0].Wait(waitContext(t), l) })
	for i, c := range all {
		woken := must(t, c)
		if i == len(all)-1 {
			p.waiters("full", 1)
			pending(t, late)
			p.signal(woken)
		}
		release(t, woken)
	}
	release(t, must(t, late))
}

// Who came later, and perhaps queues for the lock already, doesn't get the signal of one who waited.
func condNotStolen(t *testing.T, s *site) {
	p := newCondPair(t, s)
	a := p.wait(waitContext(t), 1, 1)
	l := lock(t, p.mus[0])
	late := async(func() (*primitives.Lock, error) { // holds before a does, and waits
		l, err := p.mus[1].Lock(waitContext(t))
		if err != nil {
			return nil, err
		}
		return p.cond[1].Wait(waitContext(t), l)
	})
	waitInfo(t, p.m, p.key, "one who queues", func(i fabric.Info) bool {
		return len(i.Waiters) == 1 && !slices.Contains(p.ended, i.Waiters[0].ID)
	})
	p.signal(l)
	release(t, l)
	woken := must(t, a)
	p.waiters("full", 1)
	pending(t, late)
	p.signal(woken)
	release(t, woken)
	release(t, must(t, late))
}

// The signaller queues for the lock while the waiter holds it: it signals the moment the waiter has let go.
func condNoLostWakeup(t *testing.T, s *site) {
	p := newCondPair(t, s)
	for range 20 {
		l := lock(t, p.mus[0])
		signalled := async(func() (*primitives.Lock, error) {
			l, err := p.mus[1].Lock(waitContext(t))
			if err != nil {
				return nil, err
			}
			return l, errors.Join(p.cond[1].Signal(waitContext(t), l), l.Release(waitContext(t)))
		})
		waitQueue(t, p.m, p.key, 1)
		back, err := p.cond[0].Wait(waitContext(t), l)
		if err != nil {
			t.Fatal(err)
		}
		must(t, signalled)
		release(t, back)
	}
}

func condTimeout(t *testing.T, s *site) {
	p := newCondPair(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	a := p.wait(ctx, 1, 1)
	l := lock(t, p.mus[0])
	cancel()
	p.waiters("full", 0) // it waits for the lock now
	waitQueue(t, p.m, p.key, 1)
	pending(t, a)
	release(t, l)
	r := receive(t, a)
	if !errors.Is(r.err, context.Canceled) || r.value == nil || r.value.Err() != nil || r.value.Token() <= l.Token() {
		t.Fatalf("%+v", r)
	}
	release(t, r.value)

	began := time.Now()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	back, err := p.cond[0].Wait(short, lock(t, p.mus[0]))
	if !errors.Is(err, context.DeadlineExceeded) || back == nil || back.Err() != nil || time.Since(began) < 50*time.Millisecond {
		t.Fatalf("%v, %v", back, err)
	}
	release(t, back)
	p.free()
}

func condCancelledAndSignalled(t *testing.T, s *site) {
	p := newCondPair(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	a := p.wait(ctx, 1, 1)
	l := lock(t, p.mus[0])
	p.signal(l)
	cancel()
	release(t, l)
	release(t, must(t, a)) // no error
	p.free()
}

func condTwo(t *testing.T, s *site) {
	p := newCondPair(t, s)
	a := p.wait(waitContext(t), 1, 1)
	empty := primitives.NewCond(p.mus[0], "empty")
	l := lock(t, p.mus[0])
	if err := empty.Broadcast(waitContext(t), l); err != nil {
		t.Error(err)
	}
	p.waiters("full", 1)
	p.signal(l)
	release(t, l)
	release(t, must(t, a))
}

func condOneHandleTwoSignals(t *testing.T, s *site) {
	p := newCondPair(t, s)
	a, b := p.wait(waitContext(t), 1, 1), p.wait(waitContext(t), 1, 2)
	l := lock(t, p.mus[0])
	ctx := waitContext(t)
	one := async(func() (int, error) { return 0, p.cond[0].Signal(ctx, l) })
	two := async(func() (int, error) { return 0, p.cond[0].Signal(ctx, l) })
	must(t, one)
	must(t, two)
	p.waiters("full", 0)
	release(t, l)
	release(t, must(t, a))
	release(t, must(t, b))
}

// crash has a manager's connection end for good, as its process's death does.
func crash(t *testing.T, s *site, opts ...fabric.Option) (m *fabric.Manager, die func()) {
	t.Helper()
	nc := s.conn(t)
	return newManager(t, nc, opts...), nc.Close
}

func condCrash(t *testing.T, s *site) {
	for _, when := range []string{"before the signal", "after the signal", "after its grant"} {
		p := newCondPair(t, s)
		m, die := crash(t, s, fabric.WithTTL(mortalTTL))
		mu := primitives.NewMutex(m, p.key)
		dying := lock(t, mu)
		waited := async(func() (*primitives.Lock, error) { return primitives.NewCond(mu, "full").Wait(waitContext(t), dying) })
		p.waiters("full", 1)
		next := p.wait(waitContext(t), 1, 2)
		l := lock(t, p.mus[0])
		if when == "before the signal" {
			die()
		}
		p.signal(l)
		if when == "after the signal" {
			die()
		}
		release(t, l)
		if when == "after its grant" {
			must(t, waited)
			die()
		}
		woken := must(t, next)
		release(t, woken)
		p.free()
	}
}

func condLost(t *testing.T, s *site) {
	p := newCondPair(t, s)
	m := s.manager(t)
	mu := primitives.NewMutex(m, p.key, fabric.WithTTL(mortalTTL), fabric.WithAutoRenew(false))
	back, err := primitives.NewCond(mu, "full").Wait(waitContext(t), lock(t, mu))
	if back != nil || !errors.Is(err, fabric.ErrLost) {
		t.Errorf("%v, %v", back, err)
	}
	release(t, lock(t, p.mus[0]))
}

func condClose(t *testing.T, s *site) {
	p := newCondPair(t, s)
	m := s.manager(t)
	mu := primitives.NewMutex(m, p.key)
	l := lock(t, mu)
	ending := async(func() (*primitives.Lock, error) { return primitives.NewCond(mu, "full").Wait(waitContext(t), l) })
	p.waiters("full", 1)
	next := p.wait(waitContext(t), 1, 2)
	l = lock(t, p.mus[0])
	p.signal(l)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if r := receive(t, ending); r.value != nil || !errors.Is(r.err, fabric.ErrClosed) {
		t.Errorf("%+v", r)
	}
	release(t, l)
	release(t, must(t, next))
	p.free()
}

func condWrites(t *testing.T, s *site) {
	p := newCondPair(t, s)
	ctx := waitContext(t)
	// On both roads the write of a lock can be answered after the lock was granted: this signal, which writes
	// nothing, comes behind it.
	settled := func(mu *primitives.Mutex, l *primitives.Lock) *primitives.Lock {
		if err := primitives.NewCond(mu, "nobody's").Signal(ctx, l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a := settled(p.mus[0], lock(t, p.mus[0]))
	waiting := make(chan (<-chan result[*primitives.Lock]), 1)
	if n := writes(func() {
		was := p.m.Stats()
		waiting <- async(func() (*primitives.Lock, error) { return p.cond[0].Wait(ctx, a) })
		p.waiters("full", 1)
		eventually(t, "the answer to the write", func() bool { st := p.m.Stats(); return st.Writes+st.Unknown > was.Writes+was.Unknown })
	}, p.m); n.not(1) {
		t.Errorf("wait: %d writes", n)
	}
	m := s.manager(t)
	mu := primitives.NewMutex(m, p.key)
	cond := primitives.NewCond(mu, "full")
	l := settled(mu, lock(t, mu))
	if n := writes(func() {
		if err := cond.Signal(ctx, l); err != nil {
			t.Error(err)
		}
	}, m, p.m); n.not(1) {
		t.Errorf("signal: %d writes", n)
	}
	if n := writes(func() {
		for _, signal := range []func(context.Context, *primitives.Lock) error{cond.Signal, cond.Broadcast} {
			if err := signal(ctx, l); err != nil {
				t.Error(err)
			}
		}
	}, m); n.not(0) {
		t.Errorf("a signal that meets nobody: %d writes", n)
	}
	if n := writes(func() {
		release(t, l)
		release(t, must(t, <-waiting))
	}, m, p.m); n.not(2) {
		t.Errorf("two releases: %d writes", n)
	}
}
