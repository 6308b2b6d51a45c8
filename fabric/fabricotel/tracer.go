package fabricotel

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/lockfabric/lockfabric/fabric"
)

const (
	scope       = "github.com/lockfabric/lockfabric/fabric/fabricotel"
	traceparent = "traceparent"
	lateness    = 10 * time.Second // for late events of an acquire that has failed
)

// Tracer makes spans and metrics from the events of managers. It is safe for concurrent use.
type Tracer struct {
	tracer trace.Tracer
	meters meters

	mu   sync.Mutex
	open map[string]*work // by traceparent
}

// Option configures a Tracer.
type Option func(*config)

type config struct {
	traces  trace.TracerProvider
	metrics metric.MeterProvider
}

// WithTracerProvider sets the provider of spans. The default is otel.GetTracerProvider.
func WithTracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.traces = p } }

// WithMeterProvider sets the provider of metrics. The default is otel.GetMeterProvider.
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.metrics = p } }

// New returns a Tracer. Pass its Event to fabric.WithEvents. Errors are those of the meter provider.
func New(opts ...Option) (*Tracer, error) {
	c := config{traces: otel.GetTracerProvider(), metrics: otel.GetMeterProvider()}
	for _, o := range opts {
		o(&c)
	}
	t := &Tracer{tracer: c.traces.Tracer(scope), open: map[string]*work{}}
	return t, t.meters.make(c.metrics.Meter(scope))
}

// Acquire is Manager.Acquire in a span.
func (t *Tracer) Acquire(ctx context.Context, m *fabric.Manager, key string, opts ...fabric.AcquireOption) (*fabric.Lock, error) {
	opt, done := t.Trace(ctx, key)
	l, err := m.Acquire(ctx, key, append(slices.Clip(opts), opt)...)
	done(err)
	return l, err
}

// TryAcquire is Manager.TryAcquire in a span.
func (t *Tracer) TryAcquire(ctx context.Context, m *fabric.Manager, key string, opts ...fabric.AcquireOption) (*fabric.Lock, error) {
	opt, done := t.Trace(ctx, key)
	l, err := m.TryAcquire(ctx, key, append(slices.Clip(opts), opt)...)
	done(err)
	return l, err
}

// Trace starts the span of one acquire of any kind: AcquireAll, AcquirePath, Claim, or a method of a primitive that is
// created for this call. Pass opt to it as the last option, and call done with its error. The span ends with the last
// hold, or with the error. name is a text for the reader of the trace.
//
//	opt, done := t.Trace(ctx, "transfer")
//	set, err := m.AcquireAll(ctx, wants, opt)
//	done(err)
func (t *Tracer) Trace(ctx context.Context, name string) (opt fabric.AcquireOption, done func(error)) {
	ctx, span := t.tracer.Start(ctx, "lockfabric.lock", trace.WithAttributes(attribute.String("lockfabric.name", name)))
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	id := carrier[traceparent]
	if id == "" || !span.IsRecording() {
		span.End()
		return fabric.WithMetadata(only(id)), func(error) {}
	}
	w := &work{ctx: ctx, span: span, parts: map[string]*part{}}
	t.mu.Lock()
	t.open[id] = w
	t.mu.Unlock()
	return fabric.WithMetadata(only(id)), func(err error) { t.done(id, w, err) }
}

func only(id string) map[string]string {
	if id == "" {
		return nil
	}
	return map[string]string{traceparent: id}
}

// done handles the end of the call.
func (t *Tracer) done(id string, w *work, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.returned, w.failed = true, err != nil
	var held *fabric.HeldError
	switch {
	case errors.As(err, &held):
		link(w.span, held.Metadata)
		w.span.SetAttributes(attribute.String("lockfabric.held_by", held.Owner))
	case err != nil:
		fail(w.span, err)
	}
	if w.failed && held == nil && !w.told {
		// Its events may still come: queued and withdrawn.
		w.span.End()
		time.AfterFunc(lateness, func() { t.forget(id) })
		return
	}
	t.endIfOver(id, w, time.Now())
}

func (t *Tracer) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, id)
}

// Event handles one event. Pass it to fabric.WithEvents, or call it from your own hook.
func (t *Tracer) Event(e fabric.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Dropped > 0 {
		t.cutAll(e.Time) // the ends of some spans may be among the dropped events
	}
	id := e.Metadata[traceparent]
	w := t.open[id]
	ctx := context.Background()
	if w != nil {
		ctx = w.ctx
	}
	t.meters.measure(ctx, &e) // the trace is its exemplar
	if w != nil {
		w.event(t.tracer, &e)
		t.endIfOver(id, w, e.Time)
	}
}

func (t *Tracer) endIfOver(id string, w *work, at time.Time) {
	if !w.returned || len(w.parts) > 0 || !w.failed && !w.granted {
		return
	}
	if w.span.IsRecording() { // otherwise it has ended
		w.span.End(trace.WithTimestamp(at))
	}
	delete(t.open, id)
}

// cutAll ends every span, because events were dropped.
func (t *Tracer) cutAll(at time.Time) {
	for _, w := range t.open {
		for _, p := range w.parts {
			p.end(at)
		}
		w.span.AddEvent("events were dropped")
		w.span.End(trace.WithTimestamp(at))
	}
	clear(t.open)
}

// work is one acquire and what it acquired. Its spans are changed with the Tracer's mu held.
type work struct {
	ctx  context.Context
	span trace.Span

	parts    map[string]*part // by id of the waiter or the hold
	returned bool             // the call has returned
	failed   bool             // it returned an error
	told     bool             // there was an event
	granted  bool             // there was a granted or passed event
}

// part contains the spans of one id: a wait, a hold, or a hold whose conversion waits.
type part struct{ wait, hold trace.Span }

func (p *part) end(at time.Time) {
	for _, s := range []trace.Span{p.wait, p.hold} {
		if s != nil {
			s.End(trace.WithTimestamp(at))
		}
	}
}

func (p *part) waited(at time.Time) {
	if p.wait != nil {
		p.wait.End(trace.WithTimestamp(at))
		p.wait = nil
	}
}

func (w *work) event(tr trace.Tracer, e *fabric.Event) {
	start := func(name string, at time.Time, attrs ...attribute.KeyValue) trace.Span {
		attrs = append(attrs, attribute.String("lockfabric.key", e.Key), attribute.String("lockfabric.id", e.ID))
		_, s := tr.Start(w.ctx, name, trace.WithTimestamp(at), trace.WithAttributes(attrs...))
		return s
	}
	w.told = true
	p := w.parts[e.ID]
	if p == nil {
		p = &part{}
	}
	mode, token := attribute.String("lockfabric.mode", string(e.Mode)), attribute.Int64("lockfabric.token", int64(e.Token)) //nolint:gosec // below 2^63: a stream's sequence
	switch e.Type {
	case fabric.EventQueued:
		p.wait = start("lockfabric.wait", e.Time, mode, attribute.Bool("lockfabric.conversion", e.Conversion),
			attribute.Int("lockfabric.position", e.Position), attribute.String("lockfabric.blocker", e.Blocker))
		link(p.wait, e.BlockerMetadata)
		w.parts[e.ID] = p
	case fabric.EventWithdrawn:
		if p.wait != nil {
			fail(p.wait, e.Reason)
		}
		p.waited(e.Time)
		if p.hold == nil {
			delete(w.parts, e.ID)
		}
	case fabric.EventGranted:
		w.granted = true
		p.waited(e.Time)
		p.hold = start("lockfabric.hold", e.Time, mode, token)
		w.parts[e.ID] = p
	case fabric.EventPassed:
		w.granted = true
		p.waited(e.Time)
		delete(w.parts, e.ID)
	case fabric.EventConverted:
		p.waited(e.Time)
		if p.hold != nil {
			p.hold.AddEvent("converted", trace.WithTimestamp(e.Time), trace.WithAttributes(mode, token))
		}
	case fabric.EventReleased, fabric.EventLost:
		if e.Type == fabric.EventLost {
			fail(w.span, e.Reason)
			if p.hold != nil {
				fail(p.hold, e.Reason)
			}
		} else {
			release := start("lockfabric.release", e.Time)
			fail(release, e.Reason)
			release.End()
		}
		p.end(e.Time)
		delete(w.parts, e.ID)
	}
}

func fail(s trace.Span, err error) {
	if err != nil {
		s.RecordError(err)
		s.SetStatus(codes.Error, err.Error())
	}
}

// link adds a link to the span of a blocking holder or waiter. The metadata are those of another process and can
// contain anything.
func link(s trace.Span, metadata map[string]string) {
	carrier := propagation.MapCarrier(maps.Clone(metadata))
	sc := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
	if sc.IsValid() {
		s.AddLink(trace.Link{SpanContext: sc, Attributes: []attribute.KeyValue{attribute.String("lockfabric.link", "blocker")}})
	}
}

// buckets range from a free lock in the same rack to a lock that is waited for, or held, for an hour.
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
