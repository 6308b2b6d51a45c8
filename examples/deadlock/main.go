// Command deadlock has two owners that take two locks in opposite order. Each holds one lock and waits for the other.
// One of them gets an error that describes the cycle, and releases its lock, so the other one can continue.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

func main() {
	server := flag.String("server", "", "URL of a NATS server; empty = one that runs inside")
	flag.Parse()
	if err := run(context.Background(), *server); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, server string) error {
	m, stop, err := demo.Connect(ctx, server, fabric.WithDeadlockDelay(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()

	ends := make(chan error, 2)
	ready := make(chan struct{}, 2) // each has its first lock
	both := make(chan struct{})
	transfer := func(owner, from, to string) {
		ends <- m.Do(ctx, from, func(ctx context.Context, _ *fabric.Lock) error {
			ready <- struct{}{}
			<-both
			return m.Do(ctx, to, func(context.Context, *fabric.Lock) error {
				fmt.Printf("%s has both locks\n", owner)
				return nil
			}, fabric.WithOwner(owner))
		}, fabric.WithOwner(owner))
	}
	go transfer("alice", "account/1", "account/2")
	go transfer("bob", "account/2", "account/1")
	<-ready
	<-ready
	close(both)

	victims := 0
	for range 2 {
		err := <-ends
		var d *fabric.DeadlockError
		switch {
		case errors.As(err, &d):
			victims++
			fmt.Println(d)
		case err != nil:
			return err
		}
	}
	if victims != 1 {
		return fmt.Errorf("%d owners were told of a deadlock, not one", victims)
	}
	return nil
}
