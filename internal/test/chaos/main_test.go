package chaos_test

import (
	"cmp"
	"context"
	"flag"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
	"github.com/lockfabric/lockfabric/internal/test/sites"
)

var (
	soak    = flag.Duration("soak", 0, "how long each scenario runs; 0 is a few seconds")
	seed    = flag.Uint64("soak.seed", 0, "seed of the load; 0 is a new one")
	keep    = flag.Duration("soak.keep", 0, "have managers keep locks for so long, unless the scenario says it itself")
	verbose = flag.Bool("soak.log", false, "log what managers report")
)

// selves are the other programs that the test binary can be, by the environment variable that selects each.
var selves = map[string]func() int{holderEnv: holder, converterEnv: converter, permitsEnv: permitHolder, coalescerEnv: coalescerProcess, keeperEnv: keeper}

func TestMain(m *testing.M) {
	for env, self := range selves {
		if os.Getenv(env) != "" {
			os.Exit(self())
		}
	}
	sites.RunMoreAtOnce()
	goleak.VerifyTestMain(m)
}

// lasts returns how long a scenario works, without -soak the time given.
func lasts(short time.Duration) time.Duration {
	if *soak > 0 {
		return *soak
	}
	return short
}

// testContext bounds the wait for an event that never comes.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+*soak)
	t.Cleanup(cancel)
	return ctx
}

// Where nothing disturbs connections, a busy machine may take its time to make one.
var (
	connectTimeout = nats.Timeout(time.Minute)
	patiently      = fabric.WithNATS(connectTimeout)
)

// connOptions are the options of a connection for locks, with fast reconnects.
func connOptions(more ...nats.Option) []nats.Option {
	return append([]nats.Option{
		nats.ReconnectBufSize(-1), nats.MaxReconnects(-1),
		nats.ReconnectWait(50 * time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond),
		nats.Timeout(5 * time.Second),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // the default one prints
	}, more...)
}

// newManagers makes n managers, each on a connection of its own.
func newManagers(t *testing.T, n int, url func(i int) string, natsOpts []nats.Option, opts ...fabric.Option) []*fabric.Manager {
	t.Helper()
	if *verbose {
		opts = append(opts, fabric.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	}
	if *keep > 0 {
		opts = append([]fabric.Option{fabric.WithKeep(*keep)}, opts...)
	}
	managers := make([]*fabric.Manager, n)
	for i := range managers {
		nc, err := nats.Connect(url(i), natsOpts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		m, err := fabric.New(testContext(t), nc, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if n := m.Stats().KeptJoins; n > 0 {
				t.Logf("%d joins", n)
			}
			_ = m.Close()
		})
		managers[i] = m
	}
	return managers
}

// scenario runs the load in the background.
type scenario struct {
	t    *testing.T
	w    *chaos.Workload
	stop context.CancelFunc
	done chan chaos.Report

	began time.Time
}

// note logs what happens, with the time since the load began.
func (s *scenario) note(format string, args ...any) {
	s.t.Helper()
	s.t.Logf("%8v "+format, append([]any{time.Since(s.began).Round(time.Millisecond)}, args...)...)
}

// gateSeed is the seed of a load that is the same each time in the gate, and another one in each soak.
func gateSeed() uint64 {
	if *soak > 0 {
		return 0
	}
	return 11
}

// begin starts the load with -soak.seed, or its own seed, or else a new one.
func begin(t *testing.T, w *chaos.Workload) *scenario {
	t.Helper()
	w.Seed = cmp.Or(*seed, w.Seed, uint64(time.Now().UnixNano()))
	t.Logf("-soak.seed %d", w.Seed)
	ctx, cancel := context.WithCancel(context.Background())
	s := &scenario{t: t, w: w, stop: cancel, done: make(chan chaos.Report, 1), began: time.Now()}
	go func() { s.done <- w.Run(ctx) }()
	t.Cleanup(func() { // when the test ends before finish
		cancel()
		s.done <- <-s.done
	})
	return s
}

// finish ends the load and checks what must be true after every scenario: there is no
// violation, every lock becomes free while the managers are still open,
// so no orphan is left under a live lease, and the managers close.
func (s *scenario) finish() chaos.Report {
	s.t.Helper()
	s.note("ending")
	r := s.end()
	s.note("%v", r)
	if err := r.Err(); err != nil {
		s.t.Error(err)
	}
	if err := s.w.AwaitFree(testContext(s.t), s.w.Managers[0]); err != nil {
		s.t.Error(err)
	}
	s.note("every lock is free")
	var total fabric.Stats
	for _, m := range s.w.Managers {
		st := m.Stats()
		total.Writes, total.Reads, total.Conflicts = total.Writes+st.Writes, total.Reads+st.Reads, total.Conflicts+st.Conflicts
		total.Busy, total.Unknown = total.Busy+st.Busy, total.Unknown+st.Unknown
		if err := m.Close(); err != nil {
			s.t.Error(err)
		}
	}
	s.note("managers are closed: writes %d, reads %d, conflicts %d, busy %d, unknown %d", total.Writes, total.Reads, total.Conflicts, total.Busy, total.Unknown)
	if r.Granted == 0 || r.Handoffs == 0 {
		s.t.Error("nothing was granted: the scenario showed nothing")
	}
	return r
}

// end ends the load.
func (s *scenario) end() chaos.Report {
	s.stop()
	r := <-s.done
	s.done <- r
	return r
}

// work lets the load go on for d.
func (s *scenario) work(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.t.Context().Done():
	}
}
