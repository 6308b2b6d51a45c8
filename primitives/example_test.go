package primitives_test

import (
	"context"
	"fmt"
	"log"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// embed opens a fabric on a server inside this process. Programs use fabric.Connect.
func embed(ctx context.Context) (m *fabric.Manager, closeAll func()) {
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		log.Fatal(err)
	}
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		log.Fatal(err)
	}
	m, err = fabric.New(ctx, nc)
	if err != nil {
		log.Fatal(err)
	}
	return m, func() {
		if err := m.Close(); err != nil {
			log.Fatal(err)
		}
		nc.Close()
		if err := srv.Shutdown(context.WithoutCancel(ctx)); err != nil {
			log.Fatal(err)
		}
	}
}

// sorted prints lines in their order, whoever said them first.
func sorted(lines <-chan string, n int) {
	var all []string
	for range n {
		all = append(all, <-lines)
	}
	slices.Sort(all)
	for _, line := range all {
		fmt.Println(line)
	}
}
