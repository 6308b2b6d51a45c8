package fabricprom_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricprom"
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

	c := fabricprom.New()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	m, err := fabric.New(ctx, nc, fabric.WithEvents(c.Event))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Watch(m)()

	lock, err := m.Acquire(ctx, "orders/42")
	if err != nil {
		log.Fatal(err)
	}
	if err := lock.Release(ctx); err != nil {
		log.Fatal(err)
	}
	if err := m.Close(); err != nil { // delivers the last events
		log.Fatal(err)
	}
	metrics, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, family := range metrics {
		if family.GetName() == "lockfabric_releases_total" {
			fmt.Println(family.GetName(), family.GetMetric()[0].GetCounter().GetValue())
		}
	}
	// Output: lockfabric_releases_total 1
}
