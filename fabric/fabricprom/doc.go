// Package fabricprom provides metrics of a lock fabric for Prometheus.
//
//	c := fabricprom.New()
//	prometheus.MustRegister(c)
//	m, err := fabric.Connect(ctx, url, fabric.WithEvents(c.Event))
//	stop := c.Watch(m)
//
// The hook must exist before the manager, so the collector is created first, and gets the manager afterwards.
// [Collector.Event] updates counters and histograms from the manager's events. [Collector.Watch] adds the counters of
// [fabric.Manager.Stats]. Each works without the other. One collector can be used for any number of managers, whose
// values are added up.
//
// All names start with lockfabric_, and all times are in seconds. The labels are mode, reason and queued, which have
// few values. No label contains a lock's name or an owner. docs/observability.md lists all metrics.
//
// Only this package imports the Prometheus client; fabric does not.
package fabricprom
