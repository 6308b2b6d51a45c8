// Package fabricotel tells OpenTelemetry what a lock fabric does: spans for traces and instruments for metrics.
//
//	t, err := fabricotel.New()
//	m, err := fabric.Connect(ctx, url, fabric.WithEvents(t.Event))
//	lock, err := t.Acquire(ctx, m, "orders/42")
//
// The spans of one acquire are
//
//	lockfabric.lock         from the call to the end of what it got
//	├─ lockfabric.wait      in the queue
//	├─ lockfabric.hold      from the grant to the release or the loss
//	└─ lockfabric.release   from the call of Release until its outcome was told
//
// below the span of the caller's context. The trace context of lockfabric.lock travels in the lock's metadata, as
// "traceparent". So the span of a wait has a link to the lockfabric.lock of one whom it waited for, in whatever
// process that is, and so has the span of a TryAcquire that was refused. Who may read the locks sees these ids.
//
// Metrics count all that the manager does, traced or not. No attribute of a metric has a lock's name.
//
// It is a module of its own: a requirement of OpenTelemetry in the module of fabric would
// raise the version of OpenTelemetry in programs that use fabric and don't trace locks.
package fabricotel
