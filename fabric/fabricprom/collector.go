package fabricprom

import (
	"errors"
	"slices"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockfabric/lockfabric/fabric"
)

const namespace = "lockfabric"

// Collector is a prometheus.Collector of one or more managers. It is safe for concurrent use.
type Collector struct {
	queued, withdrawn, grants, conversions, losses *prometheus.CounterVec

	releases, evictions, evicted, takeovers, dropped prometheus.Counter

	waits, holds prometheus.Histogram

	events []prometheus.Collector // all of the above

	mu       sync.Mutex
	managers map[*fabric.Manager]int // number of calls of Watch that were not stopped
	past     []float64               // counters of managers that are no longer watched, by statistic
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a collector without data. Pass its Event to WithEvents, the managers to Watch, and the collector to a
// registry.
func New() *Collector {
	c := &Collector{managers: map[*fabric.Manager]int{}, past: make([]float64, len(statistics))}
	counter := func(name, help string) prometheus.Counter {
		return add(c, prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}))
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return add(c, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels))
	}
	histogram := func(name, help string) prometheus.Histogram {
		// From a free lock in the same rack to a lock that is waited for, or held, for an hour.
		buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}
		return add(c, prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}))
	}
	c.queued = counters("queued_total", "Acquires that waited in a queue.", "mode")
	c.withdrawn = counters("withdrawn_total", "Queued acquires that ended without a grant.", "mode")
	c.grants = counters("grants_total", "Granted locks; queued tells whether the acquire waited.", "mode", "queued")
	c.conversions = counters("conversions_total", "Granted conversions, by their new mode.", "mode")
	c.releases = counter("releases_total", "Holds that ended by a release.")
	c.losses = counters("losses_total", "Holds that were lost before they were released.", "reason")
	c.evictions = counter("evictions_total", "Writes that removed entries of dead leases.")
	c.evicted = counter("evicted_entries_total", "Entries of dead leases that were removed.")
	c.takeovers = counter("takeovers_total", "Leases of other processes that were declared dead.")
	c.dropped = counter("events_dropped_total", "Events that were dropped because the event hook was too slow; other metrics do not include them.")
	c.waits = histogram("acquire_wait_seconds", "Time from the call of Acquire to the grant.")
	c.holds = histogram("hold_seconds", "Time from the grant to the release or loss.")
	c.begin()
	return c
}

func add[V prometheus.Collector](c *Collector, v V) V {
	c.events = append(c.events, v)
	return v
}

// begin sets every counter to 0, with all its labels. Otherwise the first event of a counter would not count as an
// increase, and a sum over no counters would be nothing instead of 0.
func (c *Collector) begin() {
	for _, m := range modes {
		for _, v := range []*prometheus.CounterVec{c.queued, c.withdrawn, c.conversions} {
			v.WithLabelValues(string(m))
		}
		for _, queued := range []bool{false, true} {
			c.grants.WithLabelValues(string(m), strconv.FormatBool(queued))
		}
	}
	for _, r := range reasons {
		c.losses.WithLabelValues(r.name)
	}
	c.losses.WithLabelValues(other)
}

// Event counts one event. Pass it to fabric.WithEvents, or call it from your own hook.
func (c *Collector) Event(e fabric.Event) {
	c.dropped.Add(float64(e.Dropped))
	switch e.Type {
	case fabric.EventQueued:
		if !e.Conversion {
			c.queued.WithLabelValues(mode(e.Mode)).Inc()
		}
	case fabric.EventWithdrawn:
		if !e.Conversion {
			c.withdrawn.WithLabelValues(mode(e.Mode)).Inc()
		}
	case fabric.EventGranted:
		c.grants.WithLabelValues(mode(e.Mode), strconv.FormatBool(e.Queued)).Inc()
		c.waits.Observe(e.Waited.Seconds())
	case fabric.EventConverted:
		c.conversions.WithLabelValues(mode(e.Mode)).Inc()
	case fabric.EventReleased:
		c.releases.Inc()
		c.holds.Observe(e.Held.Seconds())
	case fabric.EventLost:
		c.losses.WithLabelValues(reason(e.Reason)).Inc()
		c.holds.Observe(e.Held.Seconds())
	case fabric.EventEvicted:
		c.evictions.Inc()
		c.evicted.Add(float64(e.Entries))
	case fabric.EventTakeover:
		c.takeovers.Inc()
	}
}

// Watch adds the statistics of a manager to the metrics. After stop, its counters keep their last values, because a
// counter must not decrease, and its gauges no longer count. A manager that is watched twice at the same time counts
// once. After it was stopped, do not watch it again.
func (c *Collector) Watch(m *fabric.Manager) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.managers[m]++
	return sync.OnceFunc(func() { c.unwatch(m) })
}

func (c *Collector) unwatch(m *fabric.Manager) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.managers[m]--; c.managers[m] > 0 {
		return
	}
	delete(c.managers, m)
	st := m.Stats()
	for i := range statistics {
		if statistics[i].kind == counter {
			c.past[i] += statistics[i].value(st)
		}
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range c.events {
		v.Describe(ch)
	}
	for i := range statistics {
		ch <- statistics[i].desc()
	}
}

// Collect implements prometheus.Collector. It sends no request.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.events {
		v.Collect(ch)
	}
	c.mu.Lock()
	all, past := make([]fabric.Stats, 0, len(c.managers)), slices.Clone(c.past)
	for m := range c.managers {
		all = append(all, m.Stats())
	}
	c.mu.Unlock()
	for i := range statistics {
		ch <- statistics[i].collect(all, past[i])
	}
}

// other is the label value for unknown values.
const other = "other"

var modes = []fabric.Mode{
	fabric.Exclusive, fabric.Shared, fabric.Update, fabric.IntentShared, fabric.IntentExclusive, fabric.SharedIntentExclusive,
}

// mode returns the label value of a mode, and other for an unknown mode.
func mode(m fabric.Mode) string {
	if slices.Contains(modes, m) {
		return string(m)
	}
	return other
}

var reasons = []struct {
	err  error
	name string
}{
	{fabric.ErrExpired, "expired"},
	{fabric.ErrRenewalsUsedUp, "renewals_used_up"},
	{fabric.ErrTakenOver, "taken_over"},
	{fabric.ErrRevoked, "revoked"},
	{fabric.ErrRemoved, "removed"},
	{fabric.ErrBucketGone, "bucket_gone"},
	{fabric.ErrClosed, "closed"},
}

func reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return other
}

// kind tells how the values of several managers are combined.
type kind int

const (
	counter kind = iota // sum, including managers that are no longer watched
	total               // a gauge: sum
	longest             // a gauge: maximum
)

type statistic struct {
	kind  kind
	name  string
	help  string
	value func(fabric.Stats) float64
}

// statistics lists all statistics.
var statistics = []statistic{
	{counter, "operations_total", "Acquires, releases and other operations given to the engine.", func(s fabric.Stats) float64 { return float64(s.Operations) }},
	{counter, "writes_total", "Committed writes of lock records.", func(s fabric.Stats) float64 { return float64(s.Writes) }},
	{counter, "reads_total", "Reads from the stream's leader.", func(s fabric.Stats) float64 { return float64(s.Reads) }},
	{counter, "write_conflicts_total", "Writes that met a newer record and were repeated.", func(s fabric.Stats) float64 { return float64(s.Conflicts) }},
	{counter, "writes_put_off_total", "Writes that the server postponed (code 10164).", func(s fabric.Stats) float64 { return float64(s.Busy) }},
	{counter, "writes_unknown_total", "Writes whose outcome was unknown at first.", func(s fabric.Stats) float64 { return float64(s.Unknown) }},
	{counter, "coalesced_operations_total", "Operations sent to a coalescer.", func(s fabric.Stats) float64 { return float64(s.Coalesced) }},
	{counter, "coalesced_frames_total", "Messages for these operations.", func(s fabric.Stats) float64 { return float64(s.Frames) }},
	{counter, "coalesced_fallbacks_total", "Of these operations, those that were also sent directly.", func(s fabric.Stats) float64 { return float64(s.Fallbacks) }},
	{counter, "coalescer_lost_total", "How often a coalescer was found to be gone.", func(s fabric.Stats) float64 { return float64(s.CoalescerLost) }},
	{total, "coalesced_held", "Acquires that wait in the process because the coalescer already has 16 of its acquires for the key.", func(s fabric.Stats) float64 { return float64(s.Held) }},
	{longest, "coalescer_term", "Term of the coalescer in use; 0 = none.", func(s fabric.Stats) float64 { return float64(s.CoalescerTerm) }},
	{longest, "serving_term", "Term in which the process is the coalescer; 0 = it is not.", func(s fabric.Stats) float64 { return float64(s.Serving) }},
	{counter, "shared_intents_total", "Shared intents on ancestors that were acquired.", func(s fabric.Stats) float64 { return float64(s.Pins) }},
	{counter, "kept_joins_total", "Acquires that took over a kept lock, without a message.", func(s fabric.Stats) float64 { return float64(s.KeptJoins) }},
	{counter, "shared_intent_uses_total", "How often a path used an existing shared intent, without a write.", func(s fabric.Stats) float64 { return float64(s.PinJoins) }},
	{counter, "shared_intent_revocations_total", "Shared intents that ended because somebody waited for the ancestor.", func(s fabric.Stats) float64 { return float64(s.PinRevocations) }},
	{counter, "batched_writes_total", "Writes of lock records that were sent in atomic batches.", func(s fabric.Stats) float64 { return float64(s.Batched) }},
	{counter, "request_timeouts_total", "Requests without an answer in time.", func(s fabric.Stats) float64 { return float64(s.Timeouts) }},
	{counter, "deadlock_probes_total", "Searches for deadlocks, by units of work that have waited for a long time.", func(s fabric.Stats) float64 { return float64(s.DeadlockProbes) }},
	{counter, "deadlock_reads_total", "Reads of searches for deadlocks.", func(s fabric.Stats) float64 { return float64(s.DeadlockReads) }},
	{counter, "deadlock_cuts_total", "Searches for deadlocks that ended at their limit of reads.", func(s fabric.Stats) float64 { return float64(s.DeadlockCuts) }},
	{counter, "deadlocks_total", "Waits that were ended because of a deadlock.", func(s fabric.Stats) float64 { return float64(s.Deadlocks) }},
	{counter, "optimistic_reads_total", "Stamps that were validated or found to be out of date.", func(s fabric.Stats) float64 { return float64(s.OptimisticReads) }},
	{counter, "optimistic_hits_total", "Stamps that were valid.", func(s fabric.Stats) float64 { return float64(s.OptimisticHits) }},
	{counter, "optimistic_fallbacks_total", "Optimistic reads that needed a shared hold.", func(s fabric.Stats) float64 { return float64(s.OptimisticFallbacks) }},
	{counter, "update_tries_total", "Results that updates tried to write.", func(s fabric.Stats) float64 { return float64(s.UpdateTries) }},
	{counter, "updates_total", "Updates that were written.", func(s fabric.Stats) float64 { return float64(s.Updates) }},
	{counter, "update_fallbacks_total", "Updates that needed an exclusive hold.", func(s fabric.Stats) float64 { return float64(s.UpdateFallbacks) }},
	{longest, "rtt_seconds", "Smoothed time from a request to its answer.", func(s fabric.Stats) float64 { return s.RTT.Seconds() }},
	{longest, "coalesced_rtt_seconds", "Smoothed time from a message to a coalescer until it confirms that it has it.", func(s fabric.Stats) float64 { return s.CoalescedRTT.Seconds() }},
	{longest, "request_timeout_seconds", "Time after which a request is treated as lost.", func(s fabric.Stats) float64 { return s.RequestTimeout.Seconds() }},
	{total, "waiting", "Acquires and conversions that wait in a queue.", func(s fabric.Stats) float64 { return float64(s.Waiting) }},
	{longest, "expected_wait_seconds", "Longest expected remaining wait of these.", func(s fabric.Stats) float64 { return s.ExpectedWait.Seconds() }},
}

func (s *statistic) desc() *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", s.name), s.help, nil, nil)
}

func (s *statistic) collect(all []fabric.Stats, past float64) prometheus.Metric {
	v, typ := 0.0, prometheus.GaugeValue
	if s.kind == counter {
		v, typ = past, prometheus.CounterValue
	}
	for _, st := range all {
		if s.kind == longest {
			v = max(v, s.value(st))
		} else {
			v += s.value(st)
		}
	}
	return prometheus.MustNewConstMetric(s.desc(), typ, v)
}
