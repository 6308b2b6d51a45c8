package chaos_test

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
)

// checkLimit bounds the search for an order. The search usually takes milliseconds.
const checkLimit = 30 * time.Second

// The leader resigns under contention. All calls still have an
// order in which the lock was never held twice and the tokens rose.
func TestHistoryIsLinearizable(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	managers := newManagers(t, 8, func(int) string { return c.URL() }, connOptions())
	w := &chaos.Workload{Managers: managers, Workers: 32, Keys: 4, Recorder: chaos.NewRecorder()}
	s := begin(t, w)
	stepDowns(t, s, c, lasts(2*time.Second))
	s.finish()
	if got := w.Recorder.Linearizable(checkLimit); got != porcupine.Ok {
		t.Errorf("history of %d operations: %s", w.Recorder.Len(), got)
	}
	t.Logf("%d operations in the history", w.Recorder.Len())
}

// The same check, and the oracle's, on a lock whose writes are not
// compare-and-set: both must fail.
func TestWithoutCASTheHistoryIsRefused(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	url := func(int) string { return srv.ClientURL() }
	managers := newManagers(t, 8, url, connOptions(chaos.WithoutCAS()), fabric.WithTTL(2*time.Second))
	w := &chaos.Workload{
		Managers: managers, Workers: 32, Keys: 2, Patience: time.Second, Recorder: chaos.NewRecorder(),
		Tolerance: chaos.Tolerance{Anything: true},
	}
	s := begin(t, w)
	ctx := testContext(t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(w.Progress().OracleStats.Violations) == 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("no overlap, without any compare-and-set")
		}
	}
	r := s.end()
	t.Log(r)
	t.Log(r.Violations[0])
	if got := w.Recorder.Linearizable(checkLimit); got != porcupine.Illegal {
		t.Errorf("history of %d operations without compare-and-set: %s", w.Recorder.Len(), got)
	}
}
