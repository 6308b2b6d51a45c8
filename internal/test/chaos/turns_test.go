package chaos_test

import (
	"context"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
)

// withTurns are the options of a manager that takes turns.
var withTurns = []fabric.Option{fabric.WithRoad(fabric.RoadCoalesced)}

// awaitOwner waits until the manager knows a coalescer. It looks for one from its first use on.
func awaitOwner(ctx context.Context, m *fabric.Manager) error {
	l, err := m.Acquire(ctx, "owner")
	if err != nil {
		return err
	}
	for m.Stats().CoalescerTerm == 0 {
		time.Sleep(time.Millisecond)
	}
	return l.Release(ctx)
}

// Owners pass locks on by turns and are replaced. All calls still have
// an order in which no lock was held twice and the tokens rose.
func TestHistoryOfTurnsIsLinearizable(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	managers := newManagers(t, 8, func(int) string { return srv.ClientURL() }, connOptions(), withTurns...)
	w := &chaos.Workload{Managers: managers, Workers: 16, Keys: 2, Recorder: chaos.NewRecorder()}
	turns := func() (n uint64) {
		for _, m := range managers {
			n += m.Stats().Turns
		}
		return n
	}
	s := begin(t, w)
	for n, end := 0, time.Now().Add(lasts(0)); n < 2 || time.Now().Before(end); n++ {
		before := turns()
		serveUntil(t, srv.ClientURL(), func() bool { return turns() > before+10 })
	}
	s.finish()
	if got := w.Recorder.Linearizable(checkLimit); got != porcupine.Ok {
		t.Errorf("history of %d operations: %s", w.Recorder.Len(), got)
	}
	t.Logf("%d operations in the history, %d turns", w.Recorder.Len(), turns())
}

// serveUntil makes this process serve as a coalescer until something has happened.
func serveUntil(t *testing.T, url string, is func() bool) {
	t.Helper()
	nc, err := nats.Connect(url, connOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, stop := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() { ended <- fabric.StandBy(ctx, nc) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("it serves no more: %v", err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
