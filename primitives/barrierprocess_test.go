package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// partiesOfProcesses is one more than there are processes, so that all of them wait.
const partiesOfProcesses = 6

// party is a process that waits at a barrier again and again, and says how each wait ended.
func party(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	b := primitives.NewBarrier(m, key, partiesOfProcesses)
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

// Five processes wait, and one of them is killed: the others are told within a TTL, its margin and a second, and
// are the first of the next generation, which is whole.
func TestBarrierOfProcesses(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		var all []*process
		arrived := func(n int) {
			waitInfo(t, m, key, fmt.Sprintf("%d arrived", n), func(i fabric.Info) bool { return i.Arrived == n })
		}
		for range partiesOfProcesses - 1 {
			all = append(all, startProcess(t, s, "party", key))
			arrived(len(all))
		}
		all[0].kill() // the first one, who looks after the others
		killed := time.Now()
		all = all[1:]
		for i, p := range all {
			if got := p.next(); got != "died" {
				t.Errorf("process %d: %s", i, got)
			}
		}
		const promised = processTTL + processTTL/20 + time.Second
		const room = 5 * time.Second // for a busy machine
		if took := time.Since(killed); took > promised+room {
			t.Errorf("told after %v, promised are %v", took, promised)
		} else {
			t.Logf("told after %v, promised are %v", took, promised)
		}
		arrived(len(all))
		b := primitives.NewBarrier(m, key, partiesOfProcesses)
		first := arrive(t, m, key, b, len(all)+1)
		if i, err := b.Wait(waitContext(t)); i != 0 || err != nil {
			t.Errorf("%d, %v", i, err)
		}
		if i := must(t, first); i != 1 {
			t.Error(i)
		}
		for i, p := range all {
			if got := p.next(); got != "passed" {
				t.Errorf("process %d: %s", i, got)
			}
		}
	})
}
