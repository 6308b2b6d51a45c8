package primitives_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

var (
	parties    = flag.Int("parties", 6, "of TestBarrierOfProcesses: how many parties there are, all but one a process")
	partiesTTL = flag.Duration("parties.ttl", processTTL, "TTL of these processes")
)

// party is a process that waits at a barrier again and again, and says how each wait ended.
func party(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	n, err := strconv.Atoi(os.Getenv("PARTIES"))
	if err != nil {
		return err
	}
	b := primitives.NewBarrier(m, key, n)
	for {
		_, err := b.Wait(ctx)
		var broken *fabric.BrokenError
		switch {
		case err == nil:
			say("passed")
		case ctx.Err() != nil:
			return ctx.Err() // the test has ended
		case errors.As(err, &broken):
			say("%s", broken.Why)
		default:
			return err
		}
	}
}

// observers waits until so many observe a lease. Its own process watches it, too.
func (s *site) observers(t *testing.T, lease string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d observe %s", want, lease), func() bool { return s.watchers(t, lease) == 1+want })
}

// watchers counts the watchers of a lease.
func (s *site) watchers(t *testing.T, lease string) (n int) {
	t.Helper()
	bucket := fabric.DefaultFabric + "-leases"
	stream, err := s.jetStream(t).Stream(waitContext(t), "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	list := stream.ListConsumers(waitContext(t))
	for c := range list.Info() {
		if slices.Contains(append(c.Config.FilterSubjects, c.Config.FilterSubject), "$KV."+bucket+"."+lease) {
			n++
		}
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// Processes wait, and one of them is killed: the others are told within a TTL, its margin and a second, and
// are the first of the next generation, which is whole. P22: of however many, three observe the one that dies.
func TestBarrierOfProcesses(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		var all []*process
		arrived := func(n int) {
			waitInfo(t, m, key, fmt.Sprintf("%d arrived", n), func(i fabric.Info) bool { return i.Arrived == n })
		}
		lease := func(i int) string { return read(t, m, key).Waiters[i].Lease.ID }
		for range *parties - 1 {
			all = append(all, startProcess(t, s, "party", key, fmt.Sprint("PARTIES=", *parties), fmt.Sprint("LOCKFABRIC_TEST_TTL=", *partiesTTL)))
			arrived(len(all))
		}
		first, fourth, last := lease(0), lease(3), lease(len(all)-1)
		s.observers(t, first, len(all)-1)
		s.observers(t, last, 3)
		s.observers(t, fourth, 3)
		// The first one observes all others, and is observed by all; the last one by three.
		for _, dies := range []int{0, len(all) - 2} {
			all[dies].kill()
			killed := time.Now()
			all = slices.Delete(all, dies, dies+1)
			for i, p := range all {
				if got := p.next(); got != "died" {
					t.Errorf("process %d: %s", i, got)
				}
			}
			promised := *partiesTTL + *partiesTTL/20 + time.Second
			const room = 30 * time.Second // for a busy machine
			if took := time.Since(killed); took > promised+room {
				t.Errorf("told after %v, promised are %v", took, promised)
			} else {
				t.Logf("told after %v, promised are %v", took, promised)
			}
			arrived(len(all))
		}
		b := primitives.NewBarrier(m, key, *parties)
		mine := []<-chan result[int]{arrive(t, m, key, b, len(all)+1), arrive(t, m, key, b, len(all)+2)}
		if i, err := b.Wait(waitContext(t)); i != 0 || err != nil {
			t.Errorf("%d, %v", i, err)
		}
		for i, w := range mine {
			if got := must(t, w); got != 2-i {
				t.Errorf("%d is %d from the end", i, got)
			}
		}
		for i, p := range all {
			if got := p.next(); got != "passed" {
				t.Errorf("process %d: %s", i, got)
			}
		}
	})
}

// condWaiter is a process that waits for a condition.
func condWaiter(ctx context.Context, m *fabric.Manager, key string, _ func(string, ...any)) error {
	mu := primitives.NewMutex(m, key)
	l, err := mu.Lock(ctx)
	if err == nil {
		l, err = primitives.NewCond(mu, "full").Wait(ctx, l)
	}
	if l != nil {
		_ = l.Release(ctx)
	}
	return err
}

// P22: who waits for a condition observes all ahead of it there from the start, so that three that die together are
// gone after one TTL, and the signal is that of the fourth.
func TestP22_DeadWaitersOfACondition(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		p := newCondPair(t, s)
		leases := func() (ids []string) {
			for _, w := range read(t, p.m, p.key).Conditions[0].Waiters {
				ids = append(ids, w.Lease.ID)
			}
			return ids
		}
		var dying []*process
		for i := range 3 {
			dying = append(dying, startProcess(t, s, "condwaiter", p.key))
			p.waiters("full", i+1)
		}
		lives := p.wait(waitContext(t), 1, 4)
		for i, lease := range leases()[:3] {
			s.observers(t, lease, 3-i)
		}
		for _, d := range dying {
			d.kill()
		}
		p.waiters("full", 1)
		l := lock(t, p.mus[0])
		p.signal(l)
		release(t, l)
		release(t, must(t, lives))
		expectFree(t, p.m, p.key)
	})
}
