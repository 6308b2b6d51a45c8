package fabricprom_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricprom"
)

func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func serve(t *testing.T) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(patience(t), embedded.WithTempStore())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Shutdown(context.Background()) })
	return srv
}

func manager(t *testing.T, srv *embedded.Server, opts ...fabric.Option) (*fabric.Manager, *nats.Conn) {
	t.Helper()
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	m, err := fabric.New(patience(t), nc, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, nc
}

func acquire(t *testing.T, m *fabric.Manager, key string, opts ...fabric.AcquireOption) *fabric.Lock {
	t.Helper()
	l, err := m.Acquire(patience(t), key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func release(t *testing.T, l *fabric.Lock) {
	t.Helper()
	if err := l.Release(patience(t)); err != nil {
		t.Fatal(err)
	}
}

func awaitWaiter(t *testing.T, m *fabric.Manager, key string) {
	t.Helper()
	for ctx := patience(t); ; time.Sleep(time.Millisecond) {
		info, err := m.Inspect(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Waiters) > 0 {
			return
		}
	}
}

func TestLint(t *testing.T) {
	c := fabricprom.New()
	c.Event(fabric.Event{Type: fabric.EventGranted, Mode: fabric.Exclusive})
	c.Event(fabric.Event{Type: fabric.EventLost, Reason: fabric.ErrExpired})
	problems, err := testutil.CollectAndLint(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if err := prometheus.NewPedanticRegistry().Register(c); err != nil {
		t.Error(err)
	}
}

// Acquire, contend, convert, give up, lose and take over on a real server.
func TestValues(t *testing.T) {
	srv, c := serve(t), fabricprom.New()
	dead, nc := manager(t, srv, fabric.WithTTL(4*time.Second))
	m, _ := manager(t, srv, fabric.WithEvents(c.Event))
	defer c.Watch(m)()

	acquire(t, dead, "a")
	grants := make(chan *fabric.Lock, 1)
	go func() { // until it has queued, the dead one renews
		l, err := m.Acquire(patience(t), "a")
		if err != nil {
			t.Error(err)
		}
		grants <- l
	}()
	awaitWaiter(t, m, "a")
	nc.Close()
	l := <-grants
	ctx, cancel := context.WithCancel(patience(t))
	gone := make(chan error, 1)
	go func() {
		_, err := m.Acquire(ctx, "a")
		gone <- err
	}()
	awaitWaiter(t, m, "a")
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := l.Convert(patience(t), fabric.Shared); err != nil {
		t.Fatal(err)
	}
	release(t, acquire(t, m, "a", fabric.WithMode(fabric.Shared)))
	release(t, l)
	<-acquire(t, m, "b", fabric.WithTTL(100*time.Millisecond), fabric.WithAutoRenew(false)).Lost()
	acquire(t, m, "c")
	stats := m.Stats()
	if got := collect(t, c, "lockfabric_operations_total"); got != float64(stats.Operations) || got == 0 {
		t.Errorf("%v operations, the manager says %d", got, stats.Operations)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	const want = `
# HELP lockfabric_conversions_total Granted conversions, by their new mode.
# TYPE lockfabric_conversions_total counter
lockfabric_conversions_total{mode="IS"} 0
lockfabric_conversions_total{mode="IX"} 0
lockfabric_conversions_total{mode="S"} 1
lockfabric_conversions_total{mode="SIX"} 0
lockfabric_conversions_total{mode="U"} 0
lockfabric_conversions_total{mode="X"} 0
# HELP lockfabric_events_dropped_total Events that were dropped because the event hook was too slow; other metrics do not include them.
# TYPE lockfabric_events_dropped_total counter
lockfabric_events_dropped_total 0
# HELP lockfabric_evicted_entries_total Entries of dead leases that were removed.
# TYPE lockfabric_evicted_entries_total counter
lockfabric_evicted_entries_total 1
# HELP lockfabric_evictions_total Writes that removed entries of dead leases.
# TYPE lockfabric_evictions_total counter
lockfabric_evictions_total 1
# HELP lockfabric_grants_total Granted locks; queued tells whether the acquire waited.
# TYPE lockfabric_grants_total counter
lockfabric_grants_total{mode="IS",queued="false"} 0
lockfabric_grants_total{mode="IS",queued="true"} 0
lockfabric_grants_total{mode="IX",queued="false"} 0
lockfabric_grants_total{mode="IX",queued="true"} 0
lockfabric_grants_total{mode="S",queued="false"} 1
lockfabric_grants_total{mode="S",queued="true"} 0
lockfabric_grants_total{mode="SIX",queued="false"} 0
lockfabric_grants_total{mode="SIX",queued="true"} 0
lockfabric_grants_total{mode="U",queued="false"} 0
lockfabric_grants_total{mode="U",queued="true"} 0
lockfabric_grants_total{mode="X",queued="false"} 2
lockfabric_grants_total{mode="X",queued="true"} 1
# HELP lockfabric_losses_total Holds that were lost before they were released.
# TYPE lockfabric_losses_total counter
lockfabric_losses_total{reason="bucket_gone"} 0
lockfabric_losses_total{reason="closed"} 1
lockfabric_losses_total{reason="expired"} 1
lockfabric_losses_total{reason="other"} 0
lockfabric_losses_total{reason="removed"} 0
lockfabric_losses_total{reason="renewals_used_up"} 0
lockfabric_losses_total{reason="revoked"} 0
lockfabric_losses_total{reason="taken_over"} 0
# HELP lockfabric_queued_total Acquires that waited in a queue.
# TYPE lockfabric_queued_total counter
lockfabric_queued_total{mode="IS"} 0
lockfabric_queued_total{mode="IX"} 0
lockfabric_queued_total{mode="S"} 0
lockfabric_queued_total{mode="SIX"} 0
lockfabric_queued_total{mode="U"} 0
lockfabric_queued_total{mode="X"} 2
# HELP lockfabric_releases_total Holds that ended by a release.
# TYPE lockfabric_releases_total counter
lockfabric_releases_total 2
# HELP lockfabric_takeovers_total Leases of other processes that were declared dead.
# TYPE lockfabric_takeovers_total counter
lockfabric_takeovers_total 1
# HELP lockfabric_withdrawn_total Queued acquires that ended without a grant.
# TYPE lockfabric_withdrawn_total counter
lockfabric_withdrawn_total{mode="IS"} 0
lockfabric_withdrawn_total{mode="IX"} 0
lockfabric_withdrawn_total{mode="S"} 0
lockfabric_withdrawn_total{mode="SIX"} 0
lockfabric_withdrawn_total{mode="U"} 0
lockfabric_withdrawn_total{mode="X"} 1
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want),
		"lockfabric_conversions_total", "lockfabric_events_dropped_total", "lockfabric_evicted_entries_total", "lockfabric_evictions_total",
		"lockfabric_grants_total", "lockfabric_losses_total", "lockfabric_queued_total", "lockfabric_releases_total",
		"lockfabric_takeovers_total", "lockfabric_withdrawn_total"); err != nil {
		t.Error(err)
	}
	if n := histogram(t, c, "lockfabric_acquire_wait_seconds"); n != 4 {
		t.Errorf("%d waits, want one for each grant", n)
	}
	if n := histogram(t, c, "lockfabric_hold_seconds"); n != 4 {
		t.Errorf("%d holds, want one for each end", n)
	}
}

func TestReasonsAndModesAreBounded(t *testing.T) {
	c := fabricprom.New()
	for _, reason := range []error{
		fabric.ErrExpired, fabric.ErrRenewalsUsedUp, fabric.ErrTakenOver, fabric.ErrRevoked, fabric.ErrRemoved,
		fabric.ErrBucketGone, fabric.ErrClosed, errors.New("lock orders/42"), nil,
	} {
		c.Event(fabric.Event{Type: fabric.EventLost, Reason: reason, Dropped: 2})
	}
	for _, mode := range []fabric.Mode{"X", "S", "U", "IS", "IX", "SIX", "orders/42", "orders/43"} {
		c.Event(fabric.Event{Type: fabric.EventConverted, Mode: mode})
	}
	if n := testutil.CollectAndCount(c, "lockfabric_losses_total"); n != 8 {
		t.Errorf("%d reasons", n)
	}
	if n := testutil.CollectAndCount(c, "lockfabric_conversions_total"); n != 7 {
		t.Errorf("%d modes", n)
	}
	if n := collect(t, c, "lockfabric_events_dropped_total"); n != 18 {
		t.Errorf("%v dropped", n)
	}
}

func TestManagersAreAddedUp(t *testing.T) {
	srv, c := serve(t), fabricprom.New()
	a, _ := manager(t, srv)
	b, _ := manager(t, srv)
	stopA, stopB := c.Watch(a), c.Watch(b)
	release(t, acquire(t, a, "k"))
	release(t, acquire(t, b, "k"))
	sum := float64(a.Stats().Operations + b.Stats().Operations)
	if got := collect(t, c, "lockfabric_operations_total"); got != sum {
		t.Errorf("%v operations of %v", got, sum)
	}
	// A counter stays when a manager is closed, and when it is not watched any more:
	// if the sum fell, all that is left of it would look like new.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	sum = float64(a.Stats().Operations + b.Stats().Operations)
	if got := collect(t, c, "lockfabric_operations_total"); got != sum {
		t.Errorf("%v operations of %v", got, sum)
	}
	stopA()
	stopA()
	release(t, acquire(t, b, "k"))
	more := float64(a.Stats().Operations + b.Stats().Operations)
	if got := collect(t, c, "lockfabric_operations_total"); got != more || more <= sum {
		t.Errorf("%v operations of %v, before %v", got, more, sum)
	}
	again := c.Watch(b)
	if got := collect(t, c, "lockfabric_operations_total"); got != more {
		t.Errorf("%v operations of %v", got, more)
	}
	again()
	stopB()
	if got := collect(t, c, "lockfabric_operations_total"); got != more {
		t.Errorf("%v operations of %v", got, more)
	}
}

// Those who wait are counted, over all managers.
func TestWaitersAreAddedUp(t *testing.T) {
	srv, c := serve(t), fabricprom.New()
	ctx, cancel := context.WithCancel(t.Context())
	holder, _ := manager(t, srv)
	l := acquire(t, holder, "k")
	var waits sync.WaitGroup
	for range 2 {
		m, _ := manager(t, srv)
		defer c.Watch(m)()
		for range 3 {
			waits.Go(func() { _, _ = m.Acquire(ctx, "k") })
		}
	}
	defer waits.Wait()
	defer cancel()
	deadline := time.Now().Add(30 * time.Second)
	for collect(t, c, "lockfabric_waiting") != 6 {
		if time.Now().After(deadline) {
			t.Fatalf("%v wait, want 6", collect(t, c, "lockfabric_waiting"))
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	waits.Wait()
	release(t, l)
}

// collect returns the value of a counter or gauge without labels.
func collect(t *testing.T, c prometheus.Collector, name string) float64 {
	t.Helper()
	value, _ := gather(t, c, name)
	return value
}

// histogram returns how many values a histogram without labels has.
func histogram(t *testing.T, c prometheus.Collector, name string) uint64 {
	t.Helper()
	_, samples := gather(t, c, name)
	return samples
}

// gather returns both of a metric without labels, of which one is 0.
func gather(t *testing.T, c prometheus.Collector, name string) (value float64, samples uint64) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue(), m.GetHistogram().GetSampleCount()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0, 0
}
