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
	managers map[*fabric.Manager]int // how many calls of Watch are not stopped
	past     []float64               // counters of managers that are not watched any more, by statistic
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a collector that nothing feeds yet: give its Event to WithEvents,
// the managers to Watch, and itself to a registry.
func New() *Collector {
	c := &Collector{managers: map[*fabric.Manager]int{}, past: make([]float64, len(statistics))}
	counter := func(name, help string) prometheus.Counter {
		v := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
		c.events = append(c.events, v)
		return v
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
		c.events = append(c.events, v)
		return v
	}
	histogram := func(name, help string) prometheus.Histogram {
		// From a lock that is free, in the same rack, to one that is waited for, or held, for an hour.
		buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}
		v := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
		c.events = append(c.events, v)
		return v
	}
	c.queued = counters("queued_total", "Acquires that had to wait in a queue.", "mode")
	c.withdrawn = counters("withdrawn_total", "Acquires that left a queue without a grant.", "mode")
	c.grants = counters("grants_total", "Locks granted; queued tells whether they were waited for.", "mode", "queued")
	c.conversions = counters("conversions_total", "Conversions granted, by the mode they led to.", "mode")
	c.releases = counter("releases_total", "Holds that ended by a release.")
	c.losses = counters("losses_total", "Holds that were lost before they were released.", "reason")
	c.evictions = counter("evictions_total", "Writes that removed entries of dead leases.")
	c.evicted = counter("evicted_entries_total", "Entries of dead leases that were removed.")
	c.takeovers = counter("takeovers_total", "Leases of others that were declared dead.")
	c.dropped = counter("events_dropped_total", "Events that were dropped because the event hook was too slow; the other numbers lack them.")
	c.waits = histogram("acquire_wait_seconds", "How long acquires that were granted took.")
	c.holds = histogram("hold_seconds", "How long locks were held, up to their release or loss.")
	c.begin()
	return c
}

// begin has every counter begin at 0, with all its labels: of one that appears with its first event, that event is no
// increase, and a sum over none is nothing instead of 0.
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

// Event counts one event. It is made for fabric.WithEvents; a program with a hook of its own calls it from there.
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

// Watch adds the numbers of a manager to what is collected. After stop its counters stay as they were then, because a
// counter must not fall, and its gauges count no more. A manager that is watched twice at a time counts once; once
// stopped, don't watch it again.
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

// Describe is part of prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range c.events {
		v.Describe(ch)
	}
	for i := range statistics {
		ch <- statistics[i].desc()
	}
}

// Collect is part of prometheus.Collector. It asks no server.
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

// other stands for what has no name among a label's values.
const other = "other"

var modes = []fabric.Mode{
	fabric.Exclusive, fabric.Shared, fabric.Update, fabric.IntentShared, fabric.IntentExclusive, fabric.SharedIntentExclusive,
}

// mode keeps what is no mode out of the label's values.
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

// How one number of several managers becomes one number.
type kind int

const (
	counter kind = iota // added up, those of managers that are not watched any more included
	total               // a gauge, added up
	longest             // a gauge, of which the largest counts
)

type statistic struct {
	kind  kind
	name  string
	help  string
	value func(fabric.Stats) float64
}

// statistics are all of them, one a line.
var statistics = []statistic{
	{counter, "operations_total", "Acquires, releases and others given to the engine.", func(s fabric.Stats) float64 { return float64(s.Operations) }},
	{counter, "writes_total", "Committed writes of lock records.", func(s fabric.Stats) float64 { return float64(s.Writes) }},
	{counter, "reads_total", "Reads from the stream's leader.", func(s fabric.Stats) float64 { return float64(s.Reads) }},
	{counter, "write_conflicts_total", "Writes that met a newer record and were done again.", func(s fabric.Stats) float64 { return float64(s.Conflicts) }},
	{counter, "writes_put_off_total", "Writes that the server put off (code 10164).", func(s fabric.Stats) float64 { return float64(s.Busy) }},
	{counter, "writes_unknown_total", "Writes whose outcome had to be found out.", func(s fabric.Stats) float64 { return float64(s.Unknown) }},
	{counter, "coalesced_operations_total", "Operations sent to a coalescer.", func(s fabric.Stats) float64 { return float64(s.Coalesced) }},
	{counter, "coalesced_frames_total", "Messages that took these there.", func(s fabric.Stats) float64 { return float64(s.Frames) }},
	{counter, "coalesced_fallbacks_total", "Of these operations, those that went directly as well.", func(s fabric.Stats) float64 { return float64(s.Fallbacks) }},
	{counter, "coalescer_lost_total", "How often a coalescer was taken to be gone.", func(s fabric.Stats) float64 { return float64(s.CoalescerLost) }},
	{total, "coalesced_held", "Acquires that wait in the process for a place at the coalescer.", func(s fabric.Stats) float64 { return float64(s.Held) }},
	{longest, "coalescer_term", "Term of the coalescer in use; 0 = none.", func(s fabric.Stats) float64 { return float64(s.CoalescerTerm) }},
	{longest, "serving_term", "Term in which the process is the coalescer; 0 = it is not.", func(s fabric.Stats) float64 { return float64(s.Serving) }},
	{counter, "shared_intents_total", "Intents on ancestors taken for all paths below.", func(s fabric.Stats) float64 { return float64(s.Pins) }},
	{counter, "kept_joins_total", "Acquires that found their lock kept by the process, without a message.", func(s fabric.Stats) float64 { return float64(s.KeptJoins) }},
	{counter, "shared_intent_uses_total", "Uses of such an intent by a path, without a write.", func(s fabric.Stats) float64 { return float64(s.PinJoins) }},
	{counter, "shared_intent_revocations_total", "Such intents given up because somebody waited.", func(s fabric.Stats) float64 { return float64(s.PinRevocations) }},
	{counter, "batched_writes_total", "Writes of lock records that were sent in atomic batches.", func(s fabric.Stats) float64 { return float64(s.Batched) }},
	{counter, "request_timeouts_total", "Requests that were not answered in time.", func(s fabric.Stats) float64 { return float64(s.Timeouts) }},
	{counter, "deadlock_probes_total", "Looks for deadlocks, of units of work that waited for long.", func(s fabric.Stats) float64 { return float64(s.DeadlockProbes) }},
	{counter, "deadlock_reads_total", "Reads of looks for deadlocks.", func(s fabric.Stats) float64 { return float64(s.DeadlockReads) }},
	{counter, "deadlock_cuts_total", "Looks for deadlocks that were cut short.", func(s fabric.Stats) float64 { return float64(s.DeadlockCuts) }},
	{counter, "deadlocks_total", "Waits that were ended because of a deadlock.", func(s fabric.Stats) float64 { return float64(s.Deadlocks) }},
	{counter, "optimistic_reads_total", "Stamps that were validated, or found to be old.", func(s fabric.Stats) float64 { return float64(s.OptimisticReads) }},
	{counter, "optimistic_hits_total", "Stamps that were valid.", func(s fabric.Stats) float64 { return float64(s.OptimisticHits) }},
	{counter, "optimistic_fallbacks_total", "Optimistic reads that came to a shared hold.", func(s fabric.Stats) float64 { return float64(s.OptimisticFallbacks) }},
	{counter, "update_tries_total", "Results that updates tried to write.", func(s fabric.Stats) float64 { return float64(s.UpdateTries) }},
	{counter, "updates_total", "Updates that were written.", func(s fabric.Stats) float64 { return float64(s.Updates) }},
	{counter, "update_fallbacks_total", "Updates that came to an exclusive hold.", func(s fabric.Stats) float64 { return float64(s.UpdateFallbacks) }},
	{longest, "rtt_seconds", "Smoothed time from a request to its answer.", func(s fabric.Stats) float64 { return s.RTT.Seconds() }},
	{longest, "coalesced_rtt_seconds", "The same of messages to a coalescer.", func(s fabric.Stats) float64 { return s.CoalescedRTT.Seconds() }},
	{longest, "request_timeout_seconds", "Time after which a request is taken for lost.", func(s fabric.Stats) float64 { return s.RequestTimeout.Seconds() }},
	{total, "waiting", "Acquires and conversions that stand in a queue.", func(s fabric.Stats) float64 { return float64(s.Waiting) }},
	{longest, "expected_wait_seconds", "Longest that one of these is expected to wait.", func(s fabric.Stats) float64 { return s.ExpectedWait.Seconds() }},
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
