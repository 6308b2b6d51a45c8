package primitives_test

import (
	"context"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// free are operations that write nothing.
var free = []change{
	{"Latch.Wait of an open one", 0, 2, func(l *lossy) (func(context.Context) error, func()) {
		la := primitives.NewLatch(l.look, l.key, 1)
		l.ok(la.CountDown(waitContext(l.t)))
		return primitives.NewLatch(l.m, l.key, 1).Wait, func() {}
	}},
	{"Once.Do, later", 0, 1, func(l *lossy) (func(context.Context) error, func()) {
		run := func(m *fabric.Manager) error {
			_, err := primitives.NewOnce(m, l.key).Do(waitContext(l.t), func(context.Context, uint64) ([]byte, error) { return nil, nil })
			return err
		}
		l.ok(run(l.look))
		return func(context.Context) error { return run(l.m) }, func() {}
	}},
	{"Election.Leader", 0, 1, func(l *lossy) (func(context.Context) error, func()) {
		lead, err := primitives.NewElection(l.look, l.key).Campaign(waitContext(l.t), nil)
		l.ok(err)
		return func(ctx context.Context) error { _, err := primitives.NewElection(l.m, l.key).Leader(ctx); return err },
			func() { l.ok(lead.Resign(waitContext(l.t))) }
	}},
	{"Signal without a waiter", 0, 1, func(l *lossy) (func(context.Context) error, func()) {
		mu := primitives.NewMutex(l.m, l.key)
		held := lock(l.t, mu)
		return func(ctx context.Context) error { return primitives.NewCond(mu, "c").Signal(ctx, held) }, func() { release(l.t, held) }
	}},
	{"RWMutex.RLock", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		var held *primitives.Lock
		return func(ctx context.Context) (err error) {
				held, err = primitives.NewRWMutex(l.m, l.key).RLock(ctx)
				return err
			},
			func() { release(l.t, held) }
	}},
}

// What docs/choosing.md says of writes and reads, exactly, where nobody else wants the name at the same time.
func TestCosts(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		look := s.manager(t)
		for _, c := range append(free, changes...) {
			t.Run(c.name, func(t *testing.T) {
				m := s.manager(t)
				release(t, lock(t, primitives.NewMutex(m, s.key(t)))) // makes the lease
				do, made := c.prepare(&lossy{t: t, m: m, look: look, key: s.key(t)})
				before, began := m.Stats(), time.Now()
				if err := do(waitContext(t)); err != nil {
					t.Fatal(err)
				}
				after := m.Stats()
				looks := uint64(time.Since(began) / (500 * time.Millisecond)) // of who waits for so long
				if w, r := after.Writes-before.Writes, after.Reads-before.Reads; after.Unknown+after.Busy+after.Timeouts == 0 && (w != c.writes || r < c.reads || r > c.reads+looks) {
					t.Errorf("%d writes and %d reads, expected %d and %d", w, r, c.writes, c.reads)
				}
				made()
			})
		}
	})
}
