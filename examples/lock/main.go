// Lock acquires a distributed lock, works for two seconds while it holds the lock, and releases it.
//
// It needs no installed server: without -server it starts one in this process. With -server, start it on several
// machines: one after another gets the lock.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	work := flag.Duration("work", 2*time.Second, "how long the critical section takes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lock:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server string, work time.Duration) error {
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()

	// The hold lasts at most 30 s after the last renewal. It is renewed automatically while this process lives.
	lock, err := m.Acquire(ctx, "resource-key", fabric.WithTTL(30*time.Second))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "acquired %s\n", lock.Key())

	// The critical section. Every write in it should carry lock.Token().
	select {
	case <-time.After(work):
		fmt.Fprintln(out, "work done")
	case <-lock.Lost():
		fmt.Fprintln(out, "stopped:", lock.Err())
	case <-ctx.Done():
	}

	if err := lock.Release(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "released %s\n", lock.Key())
	return nil
}
