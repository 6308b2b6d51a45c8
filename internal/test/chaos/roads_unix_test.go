//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
)

// Clients on every road use the same locks and permits while owners are killed, closed, stopped past their term, cut
// off and deposed, and while messages get lost and come twice. At times there are two owners. All guarantees hold as without a
// coalescer, and no entry is left.
func TestSoakRoads(t *testing.T) {
	t.Parallel()
	url := startServer(t).ClientURL()
	soakRoads(t, url, url, nil)
}

// The same on three servers, whose leaders resign.
func TestSoakRoadsOnThree(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	soakRoads(t, c.URL(), c.Node(0).ClientURL(), c)
}

var allRoads = []fabric.Road{fabric.RoadCoalesced, fabric.RoadAutomatic, fabric.RoadDirect, fabric.RoadBoth}

// soakRoads runs clients of the servers at url. A proxy is between some of them and one of the servers.
func soakRoads(t *testing.T, url, server string, c *cluster.Cluster) {
	var managers []*fabric.Manager
	lossy := faultproxy.New(t, server)
	for i := range 2 * len(allRoads) {
		to := url
		if i >= len(allRoads) {
			to = lossy.URL()
		}
		managers = append(managers, newManagers(t, 1, func(int) string { return to }, connOptions(), fabric.WithRoad(allRoads[i%len(allRoads)]))...)
	}
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 16, Keys: 4, Seed: gateSeed(), Tolerance: chaos.Tolerance{Unconfirmed: true}})
	users := useBeside(t, s)
	some := func(pattern string) faultproxy.Match {
		match := faultproxy.Subject(pattern)
		return func(subject string, header, payload []byte) bool {
			return match(subject, header, payload) && rand.IntN(50) == 0
		}
	}
	rules := []*faultproxy.Rule{
		lossy.DropRequests(some("lf.*.*.*.op")), lossy.DuplicateRequests(some("lf.*.*.*.op")),
		lossy.DropReplies(some("lf.*.n.*.r")), lossy.DuplicateReplies(some("lf.*.n.*.r")),
		lossy.DropRepliesTo(share(200)), lossy.DropRequests(share(400)),
	}
	o := appoint(t, s, server)
	o.c = c
	o.disturb(lasts(4 * time.Second))
	if c != nil {
		leader(t, c, locksStream)
	}
	for _, r := range rules {
		r.Remove()
	}
	users.stop()
	t.Logf("%d candidates, %v", o.made, o.did)
	s.end()
	users.check()
	s.finish()
}

// sharers use the locks of a load in ways of its own: conversions, and permits.
type sharers struct {
	t         *testing.T
	s         *scenario
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	out       atomic.Int32 // permits
	upgrades  atomic.Int32
	downs     atomic.Int32
	deadlocks atomic.Int32
	permits   atomic.Int32
	refused   atomic.Int32
}

func useBeside(t *testing.T, s *scenario) *sharers {
	b := &sharers{t: t, s: s}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	t.Cleanup(b.stop)
	for i, m := range s.w.Managers {
		rng := rand.New(rand.NewPCG(s.w.Seed, uint64(100+i)))
		b.wg.Go(func() {
			for ctx.Err() == nil {
				if rng.IntN(2) == 0 {
					b.convert(m, rng)
				} else {
					b.permit(m, rng)
				}
			}
		})
	}
	return b
}

func (b *sharers) stop() {
	b.cancel()
	b.wg.Wait()
}

// bounded is how long a call that must end may take.
func (b *sharers) bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

func (b *sharers) convert(m *fabric.Manager, rng *rand.Rand) {
	ctx, cancel := b.bounded()
	defer cancel()
	key := b.s.w.Names()[rng.IntN(b.s.w.Keys)]
	oracle := &b.s.w.Oracle
	before := oracle.Mark(key)
	l, err := m.Acquire(ctx, key, fabric.WithMode(fabric.Shared))
	if err != nil {
		b.t.Errorf("acquire: %v", err)
		return
	}
	oracle.Granted(l, before)
	short, stop := context.WithTimeout(ctx, time.Duration(1+rng.IntN(8))*time.Millisecond)
	defer stop()
	before = oracle.Mark(key)
	err = l.Convert(short, fabric.Exclusive)
	switch {
	case err == nil:
		b.upgrades.Add(1)
		oracle.Ending(l)
		oracle.Granted(l, before)
		if rng.IntN(2) == 0 {
			if err := l.Convert(ctx, fabric.Shared); err != nil {
				b.t.Errorf("downgrade: %v", err)
			}
			b.downs.Add(1)
		}
	case errors.Is(err, fabric.ErrConvertDeadlock):
		b.deadlocks.Add(1)
	case errors.Is(err, context.DeadlineExceeded):
	default:
		b.t.Errorf("upgrade: %v", err)
	}
	oracle.Ending(l)
	b.ended(l.Release(ctx))
}

func (b *sharers) ended(err error) {
	if err != nil && !errors.Is(err, fabric.ErrUnconfirmed) {
		b.t.Errorf("release: %v", err)
	}
}

const permitsName = "roads/permits"

func (b *sharers) permit(m *fabric.Manager, rng *rand.Rand) {
	ctx, cancel := b.bounded()
	defer cancel()
	s := primitives.NewSemaphore(m, permitsName, permitCount)
	n := 1 + rng.IntN(2)
	var p *primitives.Permit
	var err error
	switch rng.IntN(4) {
	case 0:
		if p, err = s.TryAcquireN(ctx, n); errors.Is(err, fabric.ErrHeld) {
			b.refused.Add(1)
			return
		}
	case 1:
		short, stop := context.WithTimeout(ctx, time.Duration(rng.IntN(20))*time.Millisecond)
		defer stop()
		if p, err = s.AcquireN(short, n); errors.Is(err, context.DeadlineExceeded) && short.Err() != nil {
			return
		}
	default:
		p, err = s.AcquireN(ctx, n)
	}
	if err != nil {
		b.t.Errorf("permits: %v", err)
		return
	}
	b.permits.Add(1)
	if out := b.out.Add(int32(n)); out > permitCount {
		b.t.Errorf("%d permits are out", out)
	}
	time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
	b.out.Add(int32(-n))
	b.ended(p.Release(ctx))
}

// check shows that all permits have come back.
func (b *sharers) check() {
	b.t.Helper()
	b.t.Logf("upgrades %d, downgrades %d, deadlocks %d, permits %d, refused %d", b.upgrades.Load(), b.downs.Load(), b.deadlocks.Load(), b.permits.Load(), b.refused.Load())
	if b.permits.Load() == 0 {
		b.t.Error("this showed nothing")
	}
	ctx, cancel := b.bounded()
	defer cancel()
	p, err := primitives.NewSemaphore(b.s.w.Managers[0], permitsName, permitCount).AcquireN(ctx, permitCount)
	if err != nil {
		info, _ := b.s.w.Managers[0].Inspect(context.Background(), permitsName)
		b.t.Fatalf("not all permits came back: %v: %+v", err, info)
	}
	b.ended(p.Release(ctx))
}
