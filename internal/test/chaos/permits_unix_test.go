//go:build unix

package chaos_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/primitives"
)

// TestPermitsOfKilledAndStoppedProcesses uses a semaphore of 3 in 8 processes that are killed and stopped
// at random. By the reports of the holders, never more than 3 permits are valid, and all permits come back.
func TestPermitsOfKilledAndStoppedProcesses(t *testing.T) {
	t.Parallel()
	const processes, enough = 8, 50
	ctx := testContext(t)
	s := startServer(t)
	seed := cmp.Or(*seed, 11)
	t.Logf("-soak.seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	u := &uses{t: t}
	started := 0
	start := func() *process {
		started++
		p := launchSelf(t, fmt.Sprintf("%s=%s permits %d", permitsEnv, s.ClientURL(), seed+uint64(started)))
		u.follow(started, p)
		return p
	}
	running := make([]*process, processes)
	for i := range running {
		running[i] = start()
	}
	stopped := make([]time.Time, processes) // until when; zero: it runs
	stops, kills := 0, 0
	for end := time.Now().Add(lasts(8 * time.Second)); time.Now().Before(end) || u.count() < enough; time.Sleep(time.Duration(100+rng.IntN(400)) * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("only %d uses", u.count())
		}
		for i, until := range stopped {
			if !until.IsZero() && time.Now().After(until) {
				signal(t, running[i], syscall.SIGCONT)
				stopped[i] = time.Time{}
			}
		}
		i := rng.IntN(processes)
		if !stopped[i].IsZero() {
			continue
		}
		if rng.IntN(2) == 0 {
			kills++
			running[i].kill()
			running[i] = start()
			continue
		}
		stops++
		signal(t, running[i], syscall.SIGSTOP)
		stopped[i] = time.Now().Add(time.Duration(rng.Int64N(int64(5 * permitTTL / 2))))
	}
	for _, p := range running {
		p.kill()
	}
	most := u.check()
	t.Logf("%d processes, %d stops, %d kills, %d uses, at most %d permits at one time", started, stops, kills, len(u.list), most)
	if most > permitCount {
		t.Errorf("%d permits valid at one time", most)
	}
	if most < permitCount {
		t.Error("never were all permits in use: this showed nothing")
	}
	m, _ := one(t, s)
	p, err := primitives.NewSemaphore(m, "permits", permitCount).AcquireN(testContext(t), permitCount)
	if err != nil {
		t.Fatalf("not all permits came back: %v", err)
	}
	if err := p.Release(testContext(t)); err != nil {
		t.Error(err)
	}
}
