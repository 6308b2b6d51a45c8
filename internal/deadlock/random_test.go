package deadlock

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

var schedules = flag.Int("deadlock.schedules", 150, "random schedules of TestNoVictimWithoutADeadlock")

// Units of several processes acquire locks in any order, convert them, release them late, and start over as a
// victim. By the ground truth a victim waits for ever at that instant, or it did until the
// victim of another circle was aborted during its conviction, which is rare. All units
// finish, so no deadlock is missed. With ordered locks there is no deadlock, and no victim.
func TestNoVictimWithoutADeadlock(t *testing.T) {
	victims, late := 0, 0
	for seed := range *schedules {
		synctest.Test(t, func(t *testing.T) {
			v, l := runSchedule(t, uint64(seed))
			victims, late = victims+v, late+l
		})
	}
	t.Logf("%d victims in %d schedules, %d of them freed by another victim while they were judged", victims, *schedules, late)
	if late > 1+victims/1000 {
		t.Errorf("%d of %d victims had been freed by another", late, victims)
	}
	if victims < *schedules/4 {
		t.Errorf("only %d victims in %d schedules", victims, *schedules)
	}
}

func runSchedule(t *testing.T, seed uint64) (victims, late int) {
	w := newWorld(t, seed)
	w.freed = map[*simUnit]time.Time{}
	w.lag = time.Duration(w.rnd.IntN(3)) * 20 * time.Millisecond
	ordered := seed%4 == 0
	ctx, cancel := context.WithCancel(t.Context())
	defer synctest.Wait()
	defer cancel()
	var wg sync.WaitGroup
	for i := range 2 + w.rnd.IntN(3) {
		p := w.process(ctx, fmt.Sprintf("p%d", i), time.Duration(50+w.rnd.IntN(1000))*time.Millisecond)
		for k := range 1 + w.rnd.IntN(2) {
			u, own := p.unit(fmt.Sprintf("p%d.u%d", i, k)), rand.New(rand.NewPCG(seed, uint64(10*i+k)))
			wg.Go(func() {
				for range 3 {
					for !u.job(own, ordered) {
						time.Sleep(time.Duration(own.IntN(50)) * time.Millisecond)
					}
				}
			})
		}
	}
	wg.Wait()
	if n := w.counted(); n > 0 && ordered {
		t.Errorf("schedule %d: %d victims among those who take locks in order: %s", seed, n, w.latest)
	}
	return w.counted(), w.late
}

// job acquires a few locks and releases them. It reports whether it was done.
func (u *simUnit) job(rnd *rand.Rand, ordered bool) bool {
	defer func() { u.release(time.Duration(rnd.IntN(3)) * time.Duration(rnd.IntN(2500)) * time.Millisecond / 2) }()
	keys := rnd.Perm(4)[:2+rnd.IntN(2)]
	if ordered {
		keys = []int{0, 1, 2, 3}[rnd.IntN(2):]
	}
	for _, k := range keys {
		time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
		key, mode := fmt.Sprintf("k%d", k), record.IS+record.Mode(rnd.IntN(6))
		id, err := u.acquire(key, mode, "")
		if err == nil && !ordered && rnd.IntN(4) == 0 {
			_, err = u.acquire(key, record.X, id) // may be refused by the record itself
		}
		if err != nil {
			return false
		}
	}
	time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
	return true
}
