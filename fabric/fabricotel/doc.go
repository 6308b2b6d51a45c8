// Package fabricotel provides OpenTelemetry spans and metrics of a lock fabric.
//
//	t, err := fabricotel.New()
//	m, err := fabric.Connect(ctx, url, fabric.WithEvents(t.Event))
//	lock, err := t.Acquire(ctx, m, "orders/42")
//
// The spans of one acquire are
//
//	lockfabric.lock         from the call to the end of what it acquired
//	├─ lockfabric.wait      in the queue
//	├─ lockfabric.hold      from the grant to the release or the loss
//	└─ lockfabric.release   from the call of Release to its outcome
//
// as children of the span in the caller's context. The trace context of lockfabric.lock is in the lock's metadata, as
// "traceparent". So the span of a wait has a link to the lockfabric.lock of a blocking holder or waiter, in any
// process, and so has the span of a refused TryAcquire. Everybody who may read the locks can see these ids.
//
// The metrics include everything that the manager does, traced or not. Their attributes contain no lock names.
//
// It is a separate module. Otherwise, the OpenTelemetry version that fabric requires would also apply to programs that
// use fabric without traces.
package fabricotel
