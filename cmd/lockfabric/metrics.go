package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric/fabricprom"
)

// metrics are those of serve: of the process, of the managers that coalesce and, once it has
// started, of the server.
type metrics struct {
	*prometheus.Registry
	coalescer *fabricprom.Collector
}

func newMetrics() *metrics {
	m := &metrics{prometheus.NewRegistry(), fabricprom.New()}
	m.MustRegister(m.coalescer, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// serverStats is a prometheus.Collector.
type serverStats struct{ *embedded.Server }

// serverMetrics are all of them, one a line.
var serverMetrics = []struct {
	kind       prometheus.ValueType
	name, help string
	value      func(s embedded.Stats) uint64
}{
	{prometheus.GaugeValue, "connections", "Clients that are connected.", func(s embedded.Stats) uint64 { return s.Connections }},
	{prometheus.CounterValue, "connections_total", "Clients that were connected.", func(s embedded.Stats) uint64 { return s.TotalConnections }},
	{prometheus.GaugeValue, "subscriptions", "Subscriptions.", func(s embedded.Stats) uint64 { return s.Subscriptions }},
	{prometheus.CounterValue, "slow_consumers_total", "Connections that were cut because they took too little.", func(s embedded.Stats) uint64 { return s.SlowConsumers }},
	{prometheus.CounterValue, "in_messages_total", "Messages from clients and servers.", func(s embedded.Stats) uint64 { return s.InMessages }},
	{prometheus.CounterValue, "in_bytes_total", "Bytes of these.", func(s embedded.Stats) uint64 { return s.InBytes }},
	{prometheus.CounterValue, "out_messages_total", "Messages to clients and servers.", func(s embedded.Stats) uint64 { return s.OutMessages }},
	{prometheus.CounterValue, "out_bytes_total", "Bytes of these.", func(s embedded.Stats) uint64 { return s.OutBytes }},
	{prometheus.GaugeValue, "routes", "Connections to other servers of the cluster.", func(s embedded.Stats) uint64 { return s.Routes }},
	{prometheus.GaugeValue, "streams", "Streams that this server keeps.", func(s embedded.Stats) uint64 { return s.Streams }},
	{prometheus.GaugeValue, "streams_led", "Those that it leads in a cluster.", func(s embedded.Stats) uint64 { return s.StreamsLed }},
	{prometheus.GaugeValue, "consumers", "Consumers of its streams.", func(s embedded.Stats) uint64 { return s.Consumers }},
	{prometheus.GaugeValue, "stored_messages", "Messages in its streams.", func(s embedded.Stats) uint64 { return s.StoredMessages }},
	{prometheus.GaugeValue, "stored_bytes", "Bytes of these.", func(s embedded.Stats) uint64 { return s.StoredBytes }},
	{prometheus.CounterValue, "api_requests_total", "Requests to JetStream's API.", func(s embedded.Stats) uint64 { return s.APIRequests }},
	{prometheus.CounterValue, "api_errors_total", "Those that ended with an error.", func(s embedded.Stats) uint64 { return s.APIErrors }},
	{prometheus.GaugeValue, "leader_known", "1 where JetStream is alone, or knows the leader of its cluster.", func(s embedded.Stats) uint64 {
		if s.Clustered && !s.Leader {
			return 0
		}
		return 1
	}},
}

// Describe says nothing: what is collected is always the same.
func (serverStats) Describe(chan<- *prometheus.Desc) {}

// Collect is part of prometheus.Collector.
func (s serverStats) Collect(ch chan<- prometheus.Metric) {
	st := s.Stats()
	for _, m := range serverMetrics {
		desc := prometheus.NewDesc("lockfabric_server_"+m.name, m.help, nil, nil)
		ch <- prometheus.MustNewConstMetric(desc, m.kind, float64(m.value(st)))
	}
}
