package fabricotel

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/lockfabric/lockfabric/fabric"
)

// buckets reach from a lock that is free, in the same rack, to one that is waited for, or held, for an hour.
var buckets = metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

type meters struct {
	wait, hold                            metric.Float64Histogram
	queued, withdrawn, takeovers, dropped metric.Int64Counter
}

func (ms *meters) make(m metric.Meter) error {
	var errs []error
	histogram := func(name, what string) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what), buckets)
		errs = append(errs, err)
		return h
	}
	counter := func(name, unit, what string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return c
	}
	ms.wait = histogram("lockfabric.acquire.duration", "How long acquires that were granted took.")
	ms.hold = histogram("lockfabric.hold.duration", "How long locks were held, up to their release or loss.")
	ms.queued = counter("lockfabric.queued", "{acquire}", "Acquires that had to wait in a queue.")
	ms.withdrawn = counter("lockfabric.withdrawn", "{acquire}", "Acquires that left a queue without a grant.")
	ms.takeovers = counter("lockfabric.takeovers", "{lease}", "Leases of others that were declared dead.")
	ms.dropped = counter("lockfabric.events.dropped", "{event}", "Events that were dropped because the event hook was too slow; the other numbers lack them.")
	return errors.Join(errs...)
}

func (ms *meters) measure(ctx context.Context, e *fabric.Event) {
	mode := attribute.String("lockfabric.mode", string(e.Mode))
	if e.Dropped > 0 {
		ms.dropped.Add(ctx, int64(e.Dropped)) //nolint:gosec // a count
	}
	switch e.Type {
	case fabric.EventQueued:
		if !e.Conversion {
			ms.queued.Add(ctx, 1, metric.WithAttributes(mode))
		}
	case fabric.EventWithdrawn:
		if !e.Conversion {
			ms.withdrawn.Add(ctx, 1, metric.WithAttributes(mode))
		}
	case fabric.EventGranted:
		ms.wait.Record(ctx, e.Waited.Seconds(), metric.WithAttributes(mode, attribute.Bool("lockfabric.queued", e.Queued)))
	case fabric.EventReleased, fabric.EventLost:
		ms.hold.Record(ctx, e.Held.Seconds(), metric.WithAttributes(mode, attribute.String("lockfabric.end", string(e.Type))))
	case fabric.EventTakeover:
		ms.takeovers.Add(ctx, 1)
	}
}
