package fabricprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockfabric/lockfabric/fabric"
)

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
