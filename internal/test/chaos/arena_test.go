package chaos_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
	"github.com/lockfabric/lockfabric/primitives"
)

// arenaPatience bounds a call that is not ended on purpose. Reaching it is a violation.
const arenaPatience = 2 * time.Minute

// arena uses a semaphore, a barrier, an election and conditions at the same time, with the same managers and
// faults. Each has its own checker: permits never exceed the size, a generation passes for all or for none, there is one
// leader at a time and the terms rise, and no signal is lost.
type arena struct {
	t        *testing.T
	managers []*fabric.Manager
	allowed  []error // errors that a caller may see in addition to those it causes on purpose
	ctx      context.Context
	stop     context.CancelFunc
	all      sync.WaitGroup

	mu         sync.Mutex
	done       map[string]int // numbers of successful calls
	violations []string

	permits   permitsOut
	meetings  [arenaParties][]meeting
	unknown   int // meetings whose outcome is unknown
	leaders   chaos.Oracle
	turnstile [2]turnstile
}

// player is one goroutine of the arena.
type player struct {
	*arena
	m    *fabric.Manager
	id   int
	rand *rand.Rand
}

func enter(t *testing.T, managers []*fabric.Manager, allowed ...error) *arena {
	t.Helper()
	seed := cmp.Or(*seed, uint64(time.Now().UnixNano()))
	t.Logf("-soak.seed %d", seed)
	a := &arena{t: t, managers: managers, allowed: allowed, done: map[string]int{}}
	a.ctx, a.stop = context.WithCancel(context.Background())
	play := func(n int, step func(p *player)) {
		for id := range n {
			p := &player{arena: a, m: managers[id%len(managers)], id: id, rand: rand.New(rand.NewPCG(seed, uint64(id)))}
			a.all.Go(func() {
				for a.ctx.Err() == nil {
					step(p)
				}
			})
		}
	}
	play(5, (*player).takePermits)
	play(arenaParties, (*player).meet)
	play(4, (*player).lead)
	play(1, (*player).observe)
	play(2, (*player).produce)
	play(2, (*player).consume)
	play(2, (*player).disturb)
	t.Cleanup(func() {
		a.stop()
		a.all.Wait()
	})
	return a
}

func (a *arena) violated(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.violations) < 20 {
		a.violations = append(a.violations, fmt.Sprintf(format, args...))
	}
}

// did counts one success.
func (a *arena) did(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done[what]++
}

// grow waits until each of these calls has succeeded some times more.
func (a *arena) grow(what ...string) {
	a.t.Helper()
	count := func(what string) int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.done[what]
	}
	end := time.Now().Add(3*arenaPatience/2 + *soak) // a call that is too slow says so first
	for _, w := range what {
		for was := count(w); count(w) < was+3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				a.mu.Lock()
				defer a.mu.Unlock()
				a.t.Fatalf("%s doesn't go on after %v: %q", w, a.done, a.violations)
			}
		}
	}
}

// finish ends the load, checks what all players saw, and checks that no entry is left while the managers are open.
func (a *arena) finish() {
	a.t.Helper()
	a.stop()
	a.all.Wait()
	a.checkMeetings()
	for _, v := range append(a.violations, a.leaders.Stats().Violations...) {
		a.t.Error(v)
	}
	ctx, m := testContext(a.t), a.managers[0]
	again := func(err error) bool { return errors.Is(err, fabric.ErrExpired) } // a short lease can expire on a busy machine
	use := func(key string, use func() error) {
		err := use()
		for again(err) {
			err = use()
		}
		info, rerr := m.Read(ctx, key)
		if err := errors.Join(err, rerr); err != nil || info.Kind != "" {
			a.t.Errorf("%s is left: %+v, %v", key, info, err)
		}
	}
	use("permits", func() error {
		p, err := primitives.NewSemaphore(m, "permits", permitCount).AcquireN(ctx, permitCount)
		if err != nil {
			return err
		}
		return p.Release(ctx)
	})
	use("leaders", func() error {
		l, err := primitives.NewElection(m, "leaders").Campaign(ctx, nil)
		if err != nil {
			return err
		}
		return l.Resign(ctx)
	})
	for i := range a.turnstile {
		key := turnstileKey(i)
		use(key, func() error {
			l, err := primitives.NewMutex(m, key).Lock(ctx)
			if err != nil {
				return err
			}
			return l.Release(ctx)
		})
	}
	use("meetings", func() error { return primitives.NewBarrier(m, "meetings", arenaParties).Delete(ctx) })
	a.t.Logf("%v, %d meetings not known", a.done, a.unknown)
	for _, what := range []string{"permits", "meetings", "broken", "terms", "observed", "turns/0", "turns/1"} {
		if a.done[what] == 0 {
			a.t.Errorf("no %s: this showed nothing", what)
		}
	}
}

// bounded returns a context for one call: with arenaPatience, or one that soon ends.
func (p *player) bounded() (_ context.Context, soon bool, cancel context.CancelFunc) {
	d := arenaPatience
	if soon = p.rand.IntN(6) == 0; soon {
		d = time.Duration(p.rand.IntN(50_000)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(p.ctx, d)
	return ctx, soon, cancel
}

// failed checks an error. soon says that the call was ended on purpose.
func (p *player) failed(what string, soon bool, err error) {
	is := func(allowed error) bool { return errors.Is(err, allowed) }
	switch {
	case err == nil, slices.ContainsFunc(p.allowed, is):
	case p.ctx.Err() != nil && errors.Is(err, context.Canceled):
	case soon && errors.Is(err, context.DeadlineExceeded):
	default:
		p.violated("%s, player %d: %v", what, p.id, err)
	}
}

func (p *player) dawdle() {
	d := time.Duration(p.rand.IntN(5_000)) * time.Microsecond
	if p.rand.IntN(100) == 0 {
		d *= 100
	}
	time.Sleep(d)
}

// permitsOut checks the permits at every grant, as [chaos.Oracle] does for locks.
type permitsOut struct {
	mu  sync.Mutex
	all map[*primitives.Permit]struct{}
}

func (o *permitsOut) granted(p *primitives.Permit) (out int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out = p.Permits(); out == 0 {
		return 0 // it has ended
	}
	for other := range o.all {
		out += other.Permits() // permits of holds that are valid after the new hold was
	}
	if o.all == nil {
		o.all = map[*primitives.Permit]struct{}{}
	}
	o.all[p] = struct{}{}
	return out
}

func (o *permitsOut) ending(p *primitives.Permit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, p)
}

func (p *player) takePermits() {
	ctx, soon, cancel := p.bounded()
	defer cancel()
	s, n := primitives.NewSemaphore(p.m, "permits", permitCount), 1+p.rand.IntN(2)
	acquire := s.AcquireN
	try := p.rand.IntN(8) == 0
	if try {
		acquire = s.TryAcquireN
	}
	permit, err := acquire(ctx, n)
	if err != nil {
		if !try || !errors.Is(err, fabric.ErrHeld) {
			p.failed("acquire of permits", soon, err)
		}
		return
	}
	p.did("permits")
	if out := p.arena.permits.granted(permit); out > permitCount {
		p.violated("%d permits are valid of %d", out, permitCount)
	}
	p.dawdle()
	if n == 2 && p.rand.IntN(3) == 0 {
		p.failed("release of a permit", false, permit.ReleaseN(context.Background(), 1))
	}
	p.arena.permits.ending(permit)
	p.failed("release of permits", false, permit.Release(context.Background()))
}

// arenaParties is the number of parties and of players: every player takes part in every generation.
const arenaParties = 4

// meeting is a barrier wait that has passed.
type meeting struct {
	index            int
	called, returned time.Time
}

func (p *player) meet() {
	ctx, soon, cancel := p.bounded()
	defer cancel()
	called := time.Now()
	i, err := primitives.NewBarrier(p.m, "meetings", arenaParties).Wait(ctx)
	switch {
	case err == nil:
		p.did("meetings")
		p.mu.Lock()
		p.meetings[p.id] = append(p.meetings[p.id], meeting{i, called, time.Now()})
		p.mu.Unlock()
	case errors.Is(err, fabric.ErrUncertain), errors.Is(err, fabric.ErrLost):
		p.mu.Lock()
		p.unknown++
		p.mu.Unlock()
		p.failed("wait at the barrier", soon, err)
	case errors.Is(err, fabric.ErrBroken):
		p.did("broken")
	default:
		p.failed("wait at the barrier", soon, err)
	}
}

// checkMeetings checks that a generation passes for all four players or for none: the n-th generation of one player is the n-th of
// all, the players were there at the same time, and they have the indexes from first to last.
func (a *arena) checkMeetings() {
	least, most := len(a.meetings[0]), 0
	for _, list := range a.meetings {
		least, most = min(least, len(list)), max(most, len(list))
	}
	if most-least > a.unknown {
		a.violated("the barrier let one pass %d times and another %d times, %d outcomes are not known", most, least, a.unknown)
	}
	for n := 0; n < least && a.unknown == 0; n++ {
		var seen [arenaParties]bool
		var in, out time.Time
		for i, list := range a.meetings {
			m := list[n]
			if m.called.After(in) {
				in = m.called
			}
			if i == 0 || m.returned.Before(out) {
				out = m.returned
			}
			seen[m.index] = true
		}
		if out.Before(in) || seen != [arenaParties]bool{true, true, true, true} {
			a.violated("generation %d: the last one came at %v and the first one left at %v, places %v", n, in, out, seen)
			return
		}
	}
}
