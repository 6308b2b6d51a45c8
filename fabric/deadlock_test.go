package fabric_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
)

// soon is a delay of detection that tests have time for.
func soon() fabric.Option { return fabric.WithDeadlockDelay(100 * time.Millisecond) }

// A circle of units of work over connections of their own has one victim, whose error names the circle; when it
// lets go the others get their locks.
func TestDeadlockOfSeveralManagers(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		for _, n := range []int{2, 3, 5} {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				resolve(t, s, n)
			})
		}
	})
	for _, s := range []*site{clusterSite, coalescedSite, beltSite} {
		onSite(t, s, func(t *testing.T, s *site) { resolve(t, s, 3) })
	}
}

func resolve(t *testing.T, s *site, n int) {
	ctx := waitContext(t)
	key := s.key(t)
	name := func(i int) string { return fmt.Sprintf("%s/%d", key, i%n) }
	type end struct {
		i   int
		err error
	}
	ends := make(chan end, n)
	hold := make([]*fabric.Lock, n)
	units := make([]context.Context, n)
	managers := make([]*fabric.Manager, n)
	for i := range n {
		managers[i], units[i] = s.manager(t, soon()), fabric.WithUnit(ctx)
		var err error
		if hold[i], err = managers[i].Acquire(units[i], name(i)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	for i := range n {
		go func() {
			l, err := managers[i].Acquire(units[i], name(i+1))
			if err == nil {
				err = l.Release(ctx)
			}
			ends <- end{i, err}
		}()
	}
	for k := range n {
		e := receive(t, ends)
		if k > 0 {
			if e.err != nil {
				t.Errorf("after the victim: %v", e.err)
			}
			release(t, hold[e.i])
			continue
		}
		t.Logf("resolved after %v", time.Since(began))
		var d *fabric.DeadlockError
		if !errors.As(e.err, &d) || !errors.Is(e.err, fabric.ErrDeadlock) || !errors.Is(e.err, fabric.ErrNotAcquired) {
			t.Fatalf("got %v, want a DeadlockError", e.err)
		}
		if d.Key != name(e.i+1) || len(d.Cycle) != n || strings.Count(d.Error(), "waits for") != n-1 {
			t.Errorf("%v", d)
		}
		for j, edge := range d.Cycle {
			if edge.Waits != name(e.i+1+j) || edge.Mode != fabric.Exclusive || edge.Holder != hold[(e.i+1+j)%n].ID() || edge.PID == 0 || edge.Unit == "" || edge.Since.IsZero() {
				t.Errorf("edge %d: %+v", j, edge)
			}
		}
		if hold[e.i].Err() != nil {
			t.Errorf("the victim lost what it held: %v", hold[e.i].Err())
		}
		release(t, hold[e.i])
	}
	victims := uint64(0)
	eventually(t, "the victim in the statistics", func() bool {
		victims = 0
		for _, m := range managers {
			victims += m.Stats().Deadlocks
		}
		return victims > 0
	})
	if victims != 1 {
		t.Errorf("%d victims", victims)
	}
	for i := range n {
		expectFree(t, managers[0], name(i))
	}
}

// So it is while the leader of the bucket of waits resigns, three times.
func TestDeadlockWhileLeadersResign(t *testing.T) {
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		ctx, cancel := context.WithCancel(waitContext(t))
		var wg sync.WaitGroup
		var resigned atomic.Int32
		wg.Go(func() {
			for ; ctx.Err() == nil && resigned.Load() < 3; time.Sleep(200 * time.Millisecond) { // then it has to be found
				if s.cluster.StepDown(ctx, "KV_"+fabric.DefaultFabric+"-waits") == nil {
					resigned.Add(1)
				}
			}
		})
		resolve(t, s, 3)
		eventually(t, "a leader has resigned", func() bool { return resigned.Load() > 0 })
		cancel()
		wg.Wait()
	})
}

var liveRun = flag.Duration("deadlock.live", 0, "how long TestNoVictimOnBusyLocks runs on each site; 0 is the short form")

// Units of work that take busy locks in one order, and wait for them long enough to be looked at, are never
// taken for a deadlock.
func TestNoVictimOnBusyLocks(t *testing.T) {
	run := func(t *testing.T, s *site) {
		key := s.key(t)
		end := time.Now().Add(max(*liveRun, time.Second))
		looks := func(of []*fabric.Manager) (n uint64) {
			for _, m := range of {
				n += m.Stats().DeadlockProbes
			}
			return n
		}
		var wg sync.WaitGroup
		var managers []*fabric.Manager
		for i := range 3 {
			m := s.manager(t, fabric.WithDeadlockDelay(time.Duration(i)*5*time.Millisecond))
			managers = append(managers, m)
			for j := range 4 {
				r := rand.New(rand.NewPCG(1, uint64(4*i+j)))
				wg.Go(func() {
					for (time.Now().Before(end) || looks([]*fabric.Manager{m}) == 0) && !t.Failed() {
						busyUnit(t, m, r, key)
					}
				})
			}
		}
		wg.Wait()
		for _, m := range managers {
			if n := m.Stats().Deadlocks; n > 0 {
				t.Errorf("%d victims", n)
			}
		}
		t.Logf("%d looks", looks(managers))
	}
	onSite(t, singleSite, run)
	if *liveRun > 0 {
		for _, s := range []*site{clusterSite, coalescedSite, beltSite} {
			onSite(t, s, run)
		}
	}
}

// busyUnit takes some of four locks, in their order, and gives them back.
func busyUnit(t *testing.T, m *fabric.Manager, r *rand.Rand, key string) {
	ctx := fabric.WithUnit(waitContext(t))
	var held []*fabric.Lock
	for i := range 4 {
		if r.IntN(2) == 0 {
			continue
		}
		mode := []fabric.Mode{fabric.Exclusive, fabric.Shared, fabric.Update}[r.IntN(3)]
		l, err := m.Acquire(ctx, fmt.Sprintf("%s/%d", key, i), fabric.WithMode(mode))
		if err != nil {
			t.Error(err)
			break
		}
		held = append(held, l)
		time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
	}
	for _, l := range held {
		release(t, l)
	}
}

// A unit of work that waits for an entry of its own is told at once, without documents: where locks are taken
// again inside of Do, with the context of a hold, or while it is named.
func TestUnitThatWaitsForItself(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, key := waitContext(t), s.key(t)
		m := s.manager(t, fabric.WithDeadlockDelay(time.Hour))
		isDeadlock := func(what string, err error) {
			t.Helper()
			var d *fabric.DeadlockError
			if !errors.As(err, &d) || len(d.Cycle) != 1 || d.Key != key || d.Cycle[0].Waits != key {
				t.Errorf("%s: %v", what, err)
			}
		}
		isDeadlock("inside of Do", m.Do(ctx, key, func(ctx context.Context, l *fabric.Lock) error {
			_, err := m.Acquire(ctx, key)
			return err
		}))
		isDeadlock("two levels inside", m.Do(ctx, key, func(ctx context.Context, l *fabric.Lock) error {
			return m.Do(ctx, key+"/other", func(ctx context.Context, _ *fabric.Lock) error {
				_, err := m.Acquire(ctx, key)
				return err
			})
		}))
		l := acquire(t, m, key)
		_, err := m.Acquire(l.Context(), key)
		isDeadlock("the hold's context", err)
		_, err = m.Acquire(ctx, key, fabric.WithHolding(l))
		isDeadlock("named", err)
		if l.Err() != nil {
			t.Error(l.Err())
		}
		release(t, l)
		expectFree(t, m, key)
	})
}

// Goroutines that each acquire in the context of one hold don't wait for each other: what one of them holds it
// lets go of by itself.
func TestGoroutinesInTheContextOfOneHold(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, key := waitContext(t), s.key(t)
		m := s.manager(t, fabric.WithDeadlockDelay(0))
		err := m.Do(ctx, key, func(ctx context.Context, l *fabric.Lock) error {
			ends := make(chan error, 3)
			for range cap(ends) {
				go func() {
					ends <- m.Do(ctx, key+"/other", func(ctx context.Context, _ *fabric.Lock) error {
						eventually(t, "a look", func() bool { return m.Stats().DeadlockProbes > 0 })
						return nil
					})
				}()
			}
			return errors.Join(receive(t, ends), receive(t, ends), receive(t, ends))
		})
		if err != nil || m.Stats().Deadlocks > 0 {
			t.Error(err)
		}
	})
}

// The victim of a circle over a conversion has the mode that it had.
func TestDeadlockOverAConversion(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, k1, k2 := waitContext(t), s.key(t)+"/1", s.key(t)+"/2"
		a, b := s.manager(t, soon()), s.manager(t, soon())
		unitA, unitB := fabric.WithUnit(ctx), fabric.WithUnit(ctx)
		get := func(m *fabric.Manager, unit context.Context, key string, mode fabric.Mode) *fabric.Lock {
			l, err := m.Acquire(unit, key, fabric.WithMode(mode))
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		a1, a2 := get(a, unitA, k1, fabric.Shared), get(a, unitA, k2, fabric.Exclusive)
		b1 := get(b, unitB, k1, fabric.Shared)
		waits := acquireAsync(unitB, b, k2)
		waitQueue(t, a, k2, 1)
		err := a1.Convert(unitA, fabric.Exclusive)
		var c *fabric.ConvertError
		var d *fabric.DeadlockError
		if !errors.As(err, &c) || c.Held != fabric.Shared || !errors.As(err, &d) || len(d.Cycle) != 2 {
			t.Fatalf("%v", err)
		}
		if a1.Mode() != fabric.Shared || a1.Err() != nil || inspect(t, a, k1).Holders[0].Converting != "" {
			t.Errorf("%v, %v, %+v", a1.Mode(), a1.Err(), inspect(t, a, k1))
		}
		release(t, a2)
		release(t, granted(t, waits))
		release(t, b1)
		if err := a1.Convert(unitA, fabric.Exclusive); err != nil {
			t.Error(err)
		}
		release(t, a1)
	})
}

// Two who take two locks in opposite order again and again get through, and both lose no work.
func TestRetryDeadlock(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, key := waitContext(t), s.key(t)
		const rounds = 3
		ends := make(chan error, 2)
		for _, order := range [][2]string{{"/1", "/2"}, {"/2", "/1"}} {
			m := s.manager(t, fabric.WithDeadlockDelay(20*time.Millisecond))
			go func() {
				for range rounds {
					err := fabric.RetryDeadlock(ctx, func(ctx context.Context) error {
						return m.Do(ctx, key+order[0], func(ctx context.Context, _ *fabric.Lock) error {
							time.Sleep(20 * time.Millisecond) // so that the other one is here, too
							return m.Do(ctx, key+order[1], func(context.Context, *fabric.Lock) error { return nil })
						})
					})
					if err != nil {
						ends <- err
						return
					}
				}
				ends <- nil
			}()
		}
		if err := errors.Join(receive(t, ends), receive(t, ends)); err != nil {
			t.Error(err)
		}
	})
}

// An owner is a unit of work, without a context that says so. Of the same owner in two managers each is one.
func TestDeadlockOfOwners(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, k1, k2 := waitContext(t), s.key(t)+"/1", s.key(t)+"/2"
		a, b := s.manager(t, soon()), s.manager(t, soon())
		alice, bob := fabric.WithOwner("alice"), fabric.WithOwner("bob")
		a1, b2 := acquire(t, a, k1, alice), acquire(t, b, k2, bob)
		waits := acquireAsync(ctx, a, k2, alice)
		waitQueue(t, a, k2, 1)
		_, err := b.Acquire(ctx, k1, bob)
		if want := fmt.Sprintf(`deadlock: you (bob) wait for X on %q, held by alice (`, k1); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want %s", err, want)
		}
		if want := fmt.Sprintf(`), who waits for X on %q, held by you`, k2); !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		release(t, b2)
		release(t, granted(t, waits))
		release(t, a1)
	})
}

// Whoever holds nothing besides, or waits for a shorter time than the delay, costs no message.
func TestShortAndLoneWaitsSayNothing(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, key := waitContext(t), s.key(t)
		name := s.fabric(t)
		eager := s.manager(t, fabric.WithFabric(name), fabric.WithDeadlockDelay(0))
		patient := s.manager(t, fabric.WithFabric(name), fabric.WithDeadlockDelay(time.Hour))
		held := acquire(t, eager, key)
		lone := queue(t, ctx, eager, key)
		inUnit := queue(t, fabric.WithUnit(ctx), eager, key) // which holds nothing
		other, third := acquire(t, patient, key+"/other"), acquire(t, eager, key+"/third")
		short := queue(t, ctx, patient, key, fabric.WithHolding(other))
		control := queue(t, ctx, eager, key, fabric.WithHolding(third))
		eventually(t, "a look of the control", func() bool { return eager.Stats().DeadlockProbes > 0 })
		waits := s.bucket(t, name+"-waits")
		keys, err := waits.Keys(ctx)
		if err != nil || len(keys) != 1 || keys[0] != leaseOf(third.ID()) {
			t.Errorf("documents of %v, %v", keys, err)
		} else if e, err := waits.Get(ctx, keys[0]); err != nil || strings.Count(string(e.Value()), `"unit":`) != 1 || !strings.Contains(string(e.Value()), third.ID()) {
			t.Errorf("%s, %v", e.Value(), err)
		}
		if st := patient.Stats(); st.DeadlockProbes+st.DeadlockReads > 0 {
			t.Errorf("%+v", st)
		}
		release(t, third)
		release(t, other)
		release(t, held)
		for _, c := range []<-chan grant{lone, inUnit, short, control} {
			release(t, granted(t, c))
		}
		eventually(t, "no document any more", func() bool {
			_, err := waits.Get(ctx, leaseOf(third.ID()))
			return errors.Is(err, jetstream.ErrKeyNotFound)
		})
	})
}

// M38: a set that is the victim, and whose unit of work holds nothing else, rolls back and starts over: two
// hierarchies in opposite order get through without an error.
func TestM38_OppositeHierarchies(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		ctx, k1, k2 := waitContext(t), s.key(t)+"-1", s.key(t)+"-2"
		a, b, c := s.manager(t, soon()), s.manager(t, soon()), s.manager(t)
		s1, s2 := acquire(t, c, k1, fabric.WithMode(fabric.Shared)), acquire(t, c, k2, fabric.WithMode(fabric.Shared))
		ends := make(chan error, 2)
		for m, h := range map[*fabric.Manager]fabric.Hierarchy{a: fabric.NewHierarchy(k1, k2), b: fabric.NewHierarchy(k2, k1)} {
			go func() {
				set, err := m.AcquireHierarchy(ctx, h, fabric.Exclusive)
				if err == nil {
					err = set.Release(ctx)
				}
				ends <- err
			}()
		}
		waitQueue(t, c, k1, 1) // each waits for its root; then it waits for the root of the other
		waitQueue(t, c, k2, 1)
		release(t, s1)
		release(t, s2)
		if err := errors.Join(receive(t, ends), receive(t, ends)); err != nil {
			t.Error(err)
		}
		eventually(t, "a deadlock", func() bool { return a.Stats().Deadlocks+b.Stats().Deadlocks > 0 })
		expectFree(t, c, k1)
		expectFree(t, c, k2)
	})
}
