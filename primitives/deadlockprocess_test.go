package primitives_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var deadlockTimed = flag.Bool("deadlock.timed", false, "TestDeadlockOfProcesses also bounds the time: the delay of detection and a second")

// deadlocker is a process that holds one lock of a circle, and asks for the next one when somebody holds that.
func deadlocker(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	next := os.Getenv("LOCKFABRIC_TEST_NEXT")
	ctx = fabric.WithUnit(ctx)
	l, err := m.Acquire(ctx, key)
	if err != nil {
		return err
	}
	for held := false; !held; time.Sleep(5 * time.Millisecond) {
		info, err := m.Read(ctx, next)
		if err != nil {
			return err
		}
		held = len(info.Holders) > 0
	}
	say("waits")
	other, err := m.Acquire(ctx, next)
	var dead *fabric.DeadlockError
	switch {
	case errors.As(err, &dead):
		say("victim of %d", len(dead.Cycle))
		return l.Release(ctx)
	case err != nil:
		return err
	}
	say("granted")
	return errors.Join(other.Release(ctx), l.Release(ctx))
}

// Circles of two, three and five processes: one of each gives up, because of the circle, and the others go on.
func TestDeadlockOfProcesses(t *testing.T) {
	t.Parallel()
	on := func(t *testing.T, s *site) {
		for _, n := range []int{2, 3, 5} {
			base := fmt.Sprintf("%s/%d", s.key(t), n)
			all := make([]*process, n)
			for i := range all {
				all[i] = startProcess(t, s, "deadlocker", fmt.Sprint(base, "/", i), "LOCKFABRIC_TEST_NEXT="+fmt.Sprint(base, "/", (i+1)%n), immortal)
			}
			for i, p := range all {
				if got := p.next(); got != "waits" {
					t.Fatalf("process %d of %d: %s", i, n, got)
				}
			}
			began, victims := time.Now(), 0
			for i, p := range all {
				switch got := p.next(); got {
				case "granted":
				case fmt.Sprint("victim of ", n):
					victims++
				default:
					t.Errorf("process %d of %d: %s", i, n, got)
				}
			}
			took := time.Since(began)
			t.Logf("%d processes: all went on after %v", n, took)
			if victims != 1 {
				t.Errorf("%d victims of %d", victims, n)
			}
			if *deadlockTimed && took > fabric.DefaultDeadlockDelay+time.Second {
				t.Errorf("%d processes: all went on after %v, more than the delay and a second", n, took)
			}
			for _, p := range all {
				p.end()
			}
		}
	}
	onSite(t, singleSite, on)
	onSite(t, coalescedSite, on)
}
