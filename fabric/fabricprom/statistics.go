package fabricprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockfabric/lockfabric/fabric"
)

// statistic is one number of fabric.Stats. Counters of several managers are added
// up; of a gauge, the largest counts.
type statistic struct {
	kind  prometheus.ValueType
	name  string
	help  string
	value func(fabric.Stats) float64
}

// statistics are all of them, one a line.
var statistics = []statistic{
	{prometheus.CounterValue, "operations_total", "Acquires, releases and others given to the engine.", func(s fabric.Stats) float64 { return float64(s.Operations) }},
	{prometheus.CounterValue, "writes_total", "Committed writes of lock records.", func(s fabric.Stats) float64 { return float64(s.Writes) }},
	{prometheus.CounterValue, "reads_total", "Reads from the stream's leader.", func(s fabric.Stats) float64 { return float64(s.Reads) }},
	{prometheus.CounterValue, "write_conflicts_total", "Writes that met a newer record and were done again.", func(s fabric.Stats) float64 { return float64(s.Conflicts) }},
	{prometheus.CounterValue, "writes_put_off_total", "Writes that the server put off (code 10164).", func(s fabric.Stats) float64 { return float64(s.Busy) }},
	{prometheus.CounterValue, "writes_unknown_total", "Writes whose outcome had to be found out.", func(s fabric.Stats) float64 { return float64(s.Unknown) }},
	{prometheus.CounterValue, "request_timeouts_total", "Requests that were not answered in time.", func(s fabric.Stats) float64 { return float64(s.Timeouts) }},
	{prometheus.GaugeValue, "rtt_seconds", "Smoothed time from a request to its answer.", func(s fabric.Stats) float64 { return s.RTT.Seconds() }},
	{prometheus.GaugeValue, "request_timeout_seconds", "Time after which a request is taken for lost.", func(s fabric.Stats) float64 { return s.RequestTimeout.Seconds() }},
	{prometheus.GaugeValue, "waiting", "Acquires and conversions that stand in a queue.", func(s fabric.Stats) float64 { return float64(s.Waiting) }},
	{prometheus.GaugeValue, "expected_wait_seconds", "Longest that one of these is expected to wait.", func(s fabric.Stats) float64 { return s.ExpectedWait.Seconds() }},
}

func (s *statistic) desc() *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", s.name), s.help, nil, nil)
}

func (s *statistic) collect(all []fabric.Stats) prometheus.Metric {
	var v float64
	for _, st := range all {
		if s.kind == prometheus.CounterValue {
			v += s.value(st)
		} else {
			v = max(v, s.value(st))
		}
	}
	return prometheus.MustNewConstMetric(s.desc(), s.kind, v)
}
