// Barrier has three participants, which work for one, two and three seconds and then wait for each other. All of them
// continue when the slowest has arrived.
//
// It needs no installed server: without -server it starts one in this process. With -server and -participant, each
// participant is a separate program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/primitives"
)

const participants = 3

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	one := flag.Int("participant", 0, "which of the three this is; without it all of them")
	work := flag.Duration("work", time.Second, "how long the first one works; the second takes twice, the third three times as long")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *one, *work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "barrier:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server string, one int, work time.Duration) error {
	if one < 0 || one > participants {
		return fmt.Errorf("participant %d: use 1 to %d", one, participants)
	}
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()

	g := &group{barrier: primitives.NewBarrier(m, "sync-point", participants), work: work, out: out}
	first, last := 1, participants
	if one > 0 {
		first, last = one, one
	}
	ends := make(chan error, participants)
	for who := first; who <= last; who++ {
		go func() { ends <- g.take(ctx, who) }()
	}
	for range last - first + 1 {
		err = errors.Join(err, <-ends)
	}
	return err
}

type group struct {
	barrier *primitives.Barrier
	work    time.Duration

	mu  sync.Mutex
	out io.Writer
}

func (g *group) say(who int, what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fmt.Fprintf(g.out, "participant %d %s\n", who, what)
}

// take works, and then waits for the others.
func (g *group) take(ctx context.Context, who int) error {
	select {
	case <-time.After(time.Duration(who) * g.work):
	case <-ctx.Done():
		return ctx.Err()
	}
	g.say(who, "has arrived")
	// A participant that gives up or dies breaks the barrier for all: fabric.ErrBroken.
	if _, err := g.barrier.Wait(ctx); err != nil {
		return err
	}
	g.say(who, "has passed")
	return nil
}
