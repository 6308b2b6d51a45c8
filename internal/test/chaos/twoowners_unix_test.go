//go:build unix

package chaos_test

import (
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
)

// Two processes serve as the coalescer of one fabric, and clients send them all that they can. The active one is killed;
// stopped and deposed, so that both are active when it wakes; and stopped past its term. Each time the other one
// takes over, no hold is lost, and no lock is granted twice or with a token that does not rise.
func TestTwoOwnerProcesses(t *testing.T) {
	t.Parallel()
	url := startServer(t).ClientURL()
	road := fabric.WithRoad(fabric.RoadCoalesced)
	managers := newManagers(t, 6, func(int) string { return url }, connOptions(), road)
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 12, Keys: 3, Seed: gateSeed(), Tolerance: chaos.Tolerance{Unconfirmed: true}})
	o := appoint(t, s, url)
	o.add(true)
	// other waits for another owner than the one with the label, which serves a client that comes then.
	other := func(than string) (label string, x *candidate) {
		t.Helper()
		for label, x = o.another(); label == than; label, x = o.another() {
			// It was awake again before the other one was there.
			o.do("split", label, x)
		}
		m := newManagers(t, 1, func(int) string { return url }, connOptions(), road)[0]
		for ctx := testContext(t); m.Stats().Coalesced < 2; s.work(10 * time.Millisecond) {
			l, err := m.Acquire(ctx, s.w.Names()[0])
			if err != nil {
				t.Fatalf("the coalescer does not serve: %v, %+v", err, m.Stats())
			}
			release(t, l)
		}
		s.note("%s serves", label)
		return label, x
	}
	wake := func(x *candidate) {
		s.work(time.Until(x.until))
		o.wake(false)
	}
	for range max(1, int(*soak/(12*time.Second))) {
		label, x := other("")
		o.do("kill", label, x)
		label, x = other(label)
		o.add(true)

		o.do("split", label, x)
		label, next := other(label)
		wake(x)

		o.do("stop", label, next)
		other(label)
		wake(next)
	}
	other("")
	s.end()
	s.finish()
}
