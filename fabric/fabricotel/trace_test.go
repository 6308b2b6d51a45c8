package fabricotel_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricotel"
	"github.com/lockfabric/lockfabric/primitives"
)

// process is what one process has: a tracer, its exporter, and a manager with a connection of its own.
type process struct {
	*fabricotel.Tracer
	exporter *tracetest.InMemoryExporter
	provider *sdktrace.TracerProvider
	reader   *sdkmetric.ManualReader
	m        *fabric.Manager
}

func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// tracer has no manager: its test tells it the events.
func tracer(t *testing.T) *process {
	t.Helper()
	p := &process{exporter: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	p.provider = sdktrace.NewTracerProvider(sdktrace.WithSyncer(p.exporter))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(p.reader))
	var err error
	p.Tracer, err = fabricotel.New(fabricotel.WithTracerProvider(p.provider), fabricotel.WithMeterProvider(meters))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start begins a process. before sees every event before the tracer does.
func start(t *testing.T, srv *embedded.Server, before ...func(fabric.Event)) *process {
	t.Helper()
	p := tracer(t)
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	hook := func(e fabric.Event) {
		for _, see := range before {
			see(e)
		}
		p.Event(e)
	}
	if p.m, err = fabric.New(patience(t), nc, fabric.WithEvents(hook)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.m.Close() })
	return p
}

func serve(t *testing.T) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(patience(t), embedded.WithTempStore())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Shutdown(context.Background()) })
	return srv
}

// spans are those that have ended with this name, once the manager has told all its events.
func (p *process) spans(t *testing.T, name string, n int) tracetest.SpanStubs {
	t.Helper()
	var found tracetest.SpanStubs
	for _, s := range p.exporter.GetSpans() {
		if s.Name == name {
			found = append(found, s)
		}
	}
	if len(found) != n {
		t.Fatalf("%d spans %s, want %d; all: %v", len(found), name, n, p.names())
	}
	return found
}

func (p *process) names() (all []string) {
	for _, s := range p.exporter.GetSpans() {
		all = append(all, s.Name)
	}
	return all
}

func (p *process) close(t *testing.T) {
	t.Helper()
	if err := p.m.Close(); err != nil { // delivers the events
		t.Fatal(err)
	}
}

func acquire(t *testing.T, p *process, key string, opts ...fabric.AcquireOption) *fabric.Lock {
	t.Helper()
	l, err := p.Acquire(patience(t), p.m, key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func release(t *testing.T, r interface{ Release(context.Context) error }) {
	t.Helper()
	if err := r.Release(patience(t)); err != nil {
		t.Fatal(err)
	}
}

func awaitWaiter(t *testing.T, m *fabric.Manager, key string) {
	t.Helper()
	for ctx := patience(t); ; time.Sleep(time.Millisecond) {
		info, err := m.Inspect(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Waiters) > 0 {
			return
		}
	}
}

func linksTo(s tracetest.SpanStub, to tracetest.SpanStub) bool {
	return slices.ContainsFunc(s.Links, func(l sdktrace.Link) bool {
		return l.SpanContext.SpanID() == to.SpanContext.SpanID() && l.SpanContext.TraceID() == to.SpanContext.TraceID()
	})
}

// One waits for the lock of another process: the span of the wait points to the span of that lock.
func TestWaiterLinksToHolder(t *testing.T) {
	srv := serve(t)
	holder, waiter := start(t, srv), start(t, srv)
	held := acquire(t, holder, "orders/42")
	ctx, caller := waiter.provider.Tracer("test").Start(patience(t), "caller")
	got := make(chan *fabric.Lock, 1)
	go func() {
		l, err := waiter.Acquire(ctx, waiter.m, "orders/42", fabric.WithMetadata(map[string]string{"job": "7"}))
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	awaitWaiter(t, holder.m, "orders/42")
	if _, err := waiter.TryAcquire(ctx, waiter.m, "orders/42"); !errors.Is(err, fabric.ErrHeld) {
		t.Fatal(err)
	}
	release(t, held)
	l := <-got
	info, err := holder.m.Inspect(patience(t), "orders/42")
	if err != nil || info.Holders[0].Metadata["job"] != "7" {
		t.Errorf("%+v, %v: the caller's own metadata is kept", info, err)
	}
	release(t, l)
	caller.End()
	holder.close(t)
	waiter.close(t)

	theirs := holder.spans(t, "lockfabric.lock", 1)[0]
	wait, ours := waiter.spans(t, "lockfabric.wait", 1)[0], waiter.spans(t, "lockfabric.lock", 2)
	tried, lock := ours[0], ours[1] // as they ended
	if !linksTo(wait, theirs) || !linksTo(tried, theirs) {
		t.Errorf("the wait has the links %+v and the try %+v, want %v", wait.Links, tried.Links, theirs.SpanContext)
	}
	for _, s := range []tracetest.SpanStub{wait, waiter.spans(t, "lockfabric.hold", 1)[0], waiter.spans(t, "lockfabric.release", 1)[0]} {
		if s.Parent.SpanID() != lock.SpanContext.SpanID() || s.Status.Code == codes.Error {
			t.Errorf("%s is below %v with %v", s.Name, s.Parent, s.Status)
		}
		if s.StartTime.Before(lock.StartTime) || s.Name != "lockfabric.release" && s.EndTime.After(lock.EndTime) {
			t.Errorf("%s takes %v to %v, its lock %v to %v", s.Name, s.StartTime, s.EndTime, lock.StartTime, lock.EndTime)
		}
	}
	if lock.Parent.SpanID() != caller.SpanContext().SpanID() || lock.SpanContext.TraceID() != caller.SpanContext().TraceID() {
		t.Errorf("the lock's span is below %v, want the caller's %v", lock.Parent, caller.SpanContext())
	}
	if hold := holder.spans(t, "lockfabric.hold", 1)[0]; wait.EndTime.Before(hold.EndTime) {
		t.Errorf("the wait ended at %v, before the hold it was for, at %v", wait.EndTime, hold.EndTime)
	}
	holder.spans(t, "lockfabric.wait", 0)
}

// The events of what was withdrawn come after the call has failed: its wait has a span all the same.
func TestLossAndWithdrawal(t *testing.T) {
	queued, gate := make(chan struct{}), make(chan struct{})
	p := start(t, serve(t), func(e fabric.Event) {
		if e.Type == fabric.EventQueued {
			close(queued)
			<-gate
		}
	})
	l := acquire(t, p, "a", fabric.WithTTL(100*time.Millisecond), fabric.WithAutoRenew(false))
	<-l.Lost()
	held := acquire(t, p, "b")
	ctx, cancel := context.WithCancel(patience(t))
	gone := make(chan error, 1)
	go func() {
		_, err := p.Acquire(ctx, p.m, "b")
		gone <- err
	}()
	<-queued
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(gate)
	release(t, held)
	p.close(t)
	failed := 0
	for _, s := range p.spans(t, "lockfabric.lock", 3) {
		if s.Status.Code == codes.Error {
			failed++
		}
	}
	wait := p.spans(t, "lockfabric.wait", 1)[0]
	if lost := p.spans(t, "lockfabric.hold", 2)[0]; failed != 2 || lost.Status.Code != codes.Error || wait.Status.Code != codes.Error {
		t.Errorf("%d of 3 locks failed, want 2; lost: %v; withdrawn: %v", failed, lost.Status, wait.Status)
	}
}

// The span of a set ends with the last of its holds.
func TestSet(t *testing.T) {
	p := start(t, serve(t))
	opt, done := p.Trace(patience(t), "transfer")
	set, err := p.m.AcquireAll(patience(t), []fabric.Want{{Key: "a"}, {Key: "b"}}, opt)
	done(err)
	if err != nil {
		t.Fatal(err)
	}
	p.spans(t, "lockfabric.lock", 0)
	release(t, set)
	p.close(t)
	lock := p.spans(t, "lockfabric.lock", 1)[0]
	for _, h := range p.spans(t, "lockfabric.hold", 2) {
		if h.Parent.SpanID() != lock.SpanContext.SpanID() {
			t.Errorf("a hold is below %v", h.Parent)
		}
	}
}

// What is not traced has no spans, and is measured. What others wrote is no reason to fail.
func TestUntracedAndHostile(t *testing.T) {
	p := start(t, serve(t))
	for _, parent := range []string{"", "00-zz", "00-00000000000000000000000000000000-0000000000000000-01", "\n'<script>"} {
		l, err := p.m.Acquire(patience(t), "a", fabric.WithMetadata(map[string]string{"traceparent": parent}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.TryAcquire(patience(t), p.m, "a"); !errors.Is(err, fabric.ErrHeld) {
			t.Fatal(err)
		}
		release(t, l)
	}
	p.close(t)
	for _, s := range p.spans(t, "lockfabric.lock", 4) {
		if len(s.Links) > 0 {
			t.Errorf("a link to %v", s.Links)
		}
	}
	p.spans(t, "lockfabric.hold", 0)
	if n := p.measured(t)["lockfabric.acquire.duration"]; n != 4 {
		t.Errorf("%v grants were measured, want 4", n)
	}
}

// measured is the number of each metric: a counter's sum, a histogram's count.
func (p *process) measured(t *testing.T) map[string]float64 {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := p.reader.Collect(patience(t), &rm); err != nil {
		t.Fatal(err)
	}
	n := map[string]float64{}
	for _, s := range rm.ScopeMetrics {
		for _, m := range s.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					n[m.Name] += float64(p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					n[m.Name] += float64(p.Count)
				}
			default:
				t.Errorf("%s is a %T", m.Name, d)
			}
		}
	}
	return n
}

// A conversion that waits is a wait of its hold. Where events were dropped, their ends may be among
// them: nothing stays open. What leaves nothing to release ends with its passing.
func TestConversionPassedDropped(t *testing.T) {
	p := start(t, serve(t))
	l := acquire(t, p, "a", fabric.WithMode(fabric.Shared))
	other := acquire(t, p, "a", fabric.WithMode(fabric.Shared))
	converted := make(chan error, 1)
	go func() { converted <- l.Convert(patience(t), fabric.Exclusive) }()
	for p.m.Stats().Waiting == 0 {
		time.Sleep(time.Millisecond)
	}
	release(t, other)
	if err := <-converted; err != nil {
		t.Fatal(err)
	}
	release(t, l)
	opt, done := p.Trace(patience(t), "rendezvous")
	_, err := primitives.NewBarrier(p.m, "b", 1, opt).Wait(patience(t))
	done(err)
	if err != nil {
		t.Fatal(err)
	}
	last := acquire(t, p, "c")
	for ctx := patience(t); p.measured(t)["lockfabric.acquire.duration"] < 3; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("only the spans %v have ended", p.names())
		}
	}
	p.Event(fabric.Event{Type: fabric.EventTakeover, Time: time.Now(), Dropped: 3})
	release(t, last)
	p.close(t)

	locks := p.spans(t, "lockfabric.lock", 4)
	wait, holds := p.spans(t, "lockfabric.wait", 1)[0], p.spans(t, "lockfabric.hold", 3)
	if !linksTo(wait, locks[0]) || len(holds[1].Events) != 1 || holds[1].Events[0].Name != "converted" {
		t.Errorf("the wait has %+v, the hold %+v", wait.Links, holds[1].Events)
	}
	if e := locks[3].Events; len(e) != 1 || e[0].Name != "events were dropped" {
		t.Errorf("the last one has %+v", e)
	}
	want := map[string]float64{
		"lockfabric.acquire.duration": 3, "lockfabric.hold.duration": 3, "lockfabric.takeovers": 1, "lockfabric.events.dropped": 3,
	}
	if got := p.measured(t); !maps.Equal(got, want) {
		t.Errorf("measured %v, want %v", got, want)
	}
}

// Every metric and span is in docs/observability.md, and nothing else is.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(doc), "## Traces")
	names := func(text, pattern string) map[string]bool {
		found := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
		}
		return found
	}
	var code strings.Builder
	for _, f := range []string{"tracer.go"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(b)
	}
	used, told := names(code.String(), `"(lockfabric\.[a-z_.]+)"`), names(part, "`(lockfabric\\.[a-z_.]+)`")
	if len(used) < 10 || !maps.Equal(used, told) {
		t.Errorf("the code has %v, the document %v", slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(told)))
	}
}
