package fabricotel_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricotel"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	spans := tracetest.NewInMemoryExporter() // yours sends them somewhere
	t, err := fabricotel.New(fabricotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))))
	if err != nil {
		log.Fatal(err)
	}
	m, err := fabric.New(ctx, nc, fabric.WithEvents(t.Event))
	if err != nil {
		log.Fatal(err)
	}
	lock, err := t.Acquire(ctx, m, "orders/42")
	if err != nil {
		log.Fatal(err)
	}
	if err := lock.Release(ctx); err != nil {
		log.Fatal(err)
	}
	if err := m.Close(); err != nil { // delivers the last events
		log.Fatal(err)
	}
	for _, s := range spans.GetSpans() {
		fmt.Println(s.Name)
	}
	// Output:
	// lockfabric.release
	// lockfabric.hold
	// lockfabric.lock
}
