// Package fabricprom counts what a lock fabric does for Prometheus.
//
//	c := fabricprom.New()
//	prometheus.MustRegister(c)
//	m, err := fabric.Connect(ctx, url, fabric.WithEvents(c.Event))
//	stop := c.Watch(m)
//
// The hook has to be there before the manager is, so the collector is made first and told of the manager afterwards.
// [Collector.Event] feeds counters and histograms from the manager's events; [Collector.Watch] adds the counters of
// [fabric.Manager.Stats]. Each works without the other, and one collector takes any number of managers, whose numbers
// are added up.
//
// All names begin with lockfabric_, all times are in seconds. Labels are mode, reason and queued, which have few
// values: there is never one with a lock's name or an owner. docs/observability.md has the list.
//
// Only this package links the Prometheus client; fabric does not.
package fabricprom
