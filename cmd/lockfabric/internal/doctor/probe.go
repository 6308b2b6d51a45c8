package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// ProbePrefix begins the name of the lock that the probe takes; what follows is
// random, so that no program waits for it.
const ProbePrefix = "_lockfabric-doctor/"

// probeTime bounds each measurement. What was measured by then has to do.
const probeTime = 30 * time.Second

// rtt measures the connection, which writes nothing.
func (e *exam) rtt(ctx context.Context) {
	r := e.report
	r.Latency.Probes, r.Latency.TTL = e.Probes, e.TTL
	var took []time.Duration
	for end := time.Now().Add(e.limit()); len(took) < e.Probes && (len(took) == 0 || time.Now().Before(end)); {
		e.measuring(checkRTT, len(took))
		err := e.step(ctx, func(ctx context.Context) error {
			start := time.Now()
			err := e.nc.FlushWithContext(ctx)
			if err == nil {
				took = append(took, time.Since(start))
			}
			return err
		})
		if err != nil {
			r.problem(checkRTT, "", "the server stopped answering: "+err.Error(), "check the network between here and the server")
			return
		}
	}
	t := sum(took)
	r.Latency.RTT = t
	text := fmt.Sprintf("round trip %v, p99 %v, max %v", t.Median, t.P99, t.Max)
	if limit := e.TTL / 3; t.P99 > limit {
		r.warn(checkRTT, "", fmt.Sprintf("%s: over a third of the TTL of %v, so one lost renewal loses the locks", text, e.TTL),
			fmt.Sprintf("use a TTL of %v or more, or run nearer to the server", roundUp(3*t.P99)))
		return
	}
	r.ok(checkRTT, "", "%s", text)
}

// writes measures what it takes to acquire and to release a free lock: one CAS
// write each.
func (e *exam) writes(ctx context.Context) {
	r := e.report
	const later = "see the other findings, and run doctor again"
	switch {
	case e.NoProbe:
		r.ok(checkWrites, "", "not measured, as --no-probe says")
		return
	case e.locks == nil || e.leases == nil || e.void || !e.safe():
		r.unknown(checkWrites, "", "not measured: the buckets are not in order", later)
		return
	case !e.locks.Exists || !e.leases.Exists:
		r.unknown(checkWrites, "", "not measured: doctor creates no buckets", "use the fabric once, for example with 'lockfabric ls', and run doctor again")
		return
	}
	for _, n := range e.needs {
		if !n.Helpful && e.rights.known && !e.rights.allow(n) {
			r.unknown(checkWrites, "", "not measured: the user may not do all that locks need", grantIt)
			return
		}
	}
	acquire, release, err := e.probe(ctx)
	switch {
	case notAllowed(err):
		r.problem(checkWrites, "", "the user may not write locks: "+err.Error(), grantIt)
		return
	case err != nil:
		r.problem(checkWrites, "", "a lock could not be acquired and released: "+err.Error(), later)
		return
	}
	r.Latency.Acquire, r.Latency.Release = sum(acquire), sum(release)
	a, l := r.Latency.Acquire, r.Latency.Release
	text := fmt.Sprintf("acquire %v, p99 %v, max %v; release %v, p99 %v, max %v", a.Median, a.P99, a.Max, l.Median, l.P99, l.Max)
	if slow := max(a.P99, l.P99); slow > e.TTL/10 {
		r.warn(checkWrites, "", fmt.Sprintf("%s: over a tenth of the TTL of %v, so renewals come late when the server is busy", text, e.TTL),
			fmt.Sprintf("use a TTL of %v or more, or a faster disk or network", roundUp(10*slow)))
		return
	}
	r.ok(checkWrites, "", "%s", text)
}

func (e *exam) limit() time.Duration {
	if e.ProbeTime > 0 {
		return e.ProbeTime
	}
	return probeTime
}

// safe reports whether fabric.New would take both buckets.
func (e *exam) safe() bool {
	if e.locks.Exists && e.leases.Exists && e.locks.Memory != e.leases.Memory {
		return false
	}
	return e.locks.Newer == nil && e.leases.Newer == nil && len(e.locks.Faults)+len(e.leases.Faults) == 0
}

// probe takes and frees one lock again and again, each time in the place of the
// marker that the release before has left.
func (e *exam) probe(ctx context.Context) (acquire, release []time.Duration, err error) {
	opts := []fabric.Option{fabric.WithFabric(e.Fabric), fabric.WithLabel("lockfabric doctor"), fabric.WithLogger(e.Logger)}
	if e.locks.Memory {
		opts = append(opts, fabric.WithMemoryStorage())
	}
	var m *fabric.Manager
	err = e.stepIn(ctx, probeTime, func(ctx context.Context) (err error) { // some ten round trips
		m, err = fabric.New(ctx, e.nc, opts...)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	key := ProbePrefix + rand.Text()
	for end := time.Now().Add(e.limit()); len(acquire) < e.Probes && (len(acquire) == 0 || time.Now().Before(end)); {
		e.measuring(checkWrites, len(acquire))
		err := e.step(ctx, func(ctx context.Context) error {
			start := time.Now()
			l, err := m.Acquire(ctx, key)
			if err != nil {
				return err
			}
			held := time.Now()
			err = l.Release(ctx)
			acquire, release = append(acquire, held.Sub(start)), append(release, time.Since(held))
			return err
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return acquire, release, nil
}

func sum(took []time.Duration) *Times {
	slices.Sort(took)
	n := len(took)
	return &Times{Median: round(took[n/2]), P99: round(took[(n*99+99)/100-1]), Max: round(took[n-1])}
}

func round(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

func roundUp(d time.Duration) time.Duration {
	unit := time.Second
	if d < unit {
		unit = 100 * time.Millisecond
	}
	return (d + unit - 1).Truncate(unit)
}
