package chaos_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// permitsEnv makes the test binary a process that takes permits of a semaphore, again and again. Its
// value is "<url> <name> <seed>".
const permitsEnv = "LOCKFABRIC_TEST_PERMITS"

// permitCount is the size of the semaphore.
const permitCount = 3

// permitTTL is that of the processes that take permits. They may lose some.
const permitTTL = time.Second

// permitHolder prints "valid <hold> <permits> <time>" while it holds: at that time the handle was valid. It
// ends at the end of its input.
func permitHolder() int {
	var url, name string
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv(permitsEnv), &url, &name, &seed); err != nil {
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		}
		cancel()
	}()
	m, err := fabric.Connect(ctx, url, patiently, fabric.WithTTL(permitTTL))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	s := primitives.NewSemaphore(m, name, permitCount)
	for hold := 0; ctx.Err() == nil; hold++ {
		p, err := s.AcquireN(ctx, 1+rng.IntN(2))
		if err != nil {
			if ctx.Err() == nil {
				fmt.Println("error", err)
			}
			continue
		}
		usePermits(p, hold, rng)
		_ = p.Release(ctx)
	}
	_ = m.Close()
	return 0
}

func usePermits(p *primitives.Permit, hold int, rng *rand.Rand) {
	// Some keep theirs for so long that they can be stopped, or killed, meanwhile.
	for n := rng.IntN(30); n >= 0; n-- {
		at := time.Now() // before the look at the handle: it was valid then
		if p.Err() != nil {
			return
		}
		fmt.Println("valid", hold, p.Permits(), at.UnixNano())
		if p.Permits() > 1 && rng.IntN(10) == 0 {
			_ = p.ReleaseN(context.Background(), 1)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// use is a time for which a process certainly held permits.
type use struct {
	process, hold, permits int
	from, to               int64
}

// uses collects the uses that the processes report.
type uses struct {
	t    *testing.T
	mu   sync.Mutex
	list []use
	all  sync.WaitGroup
}

func (u *uses) follow(process int, p *process) {
	u.all.Go(func() {
		now := use{process: process, hold: -1}
		for line := range p.lines {
			said := use{process: process}
			if _, err := fmt.Sscanf(line, "valid %d %d %d", &said.hold, &said.permits, &said.from); err != nil {
				if strings.HasPrefix(line, "error ") {
					u.t.Errorf("process %d: %s", process, line)
				}
				continue // killed within a line
			}
			if said.hold != now.hold || said.permits != now.permits {
				u.add(now)
				now = said
			}
			now.to = said.from
		}
		u.add(now)
	})
}

func (u *uses) add(one use) {
	if one.hold < 0 || one.permits == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.list = append(u.list, one)
}

func (u *uses) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.list)
}

// check returns the most permits that were in use at one time.
func (u *uses) check() (most int) {
	u.all.Wait()
	type change struct {
		at int64
		n  int
	}
	var changes []change
	for _, one := range u.list {
		changes = append(changes, change{one.from, one.permits}, change{one.to, -one.permits})
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n)) })
	out := 0
	for _, c := range changes {
		out += c.n
		most = max(most, out)
	}
	return most
}
