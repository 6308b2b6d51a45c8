// Shared has readers and a writer use one lock: readers read side by side, and the
// writer writes alone.
//
// The writer first takes the lock in mode Update: it reads beside the readers, and
// nobody else can be about to write. When it has found out what to write it converts
// the hold to Exclusive, which waits until the readers have left and lets no new ones
// in meanwhile. Having written it converts down to Shared: it reads on, and so do the
// others, without a moment in which somebody else could have written.
//
// It needs nothing installed: without -server it runs against a server embedded
// in this process. With -server and -role, readers and writers are on as many hosts
// as you like.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

const key = "catalogue"

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	role := flag.String("role", "", "reader or writer; without it three readers and a writer")
	work := flag.Duration("work", 500*time.Millisecond, "how long one looks, or writes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *role, *work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "shared:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server, role string, work time.Duration) error {
	readers, writes := 3, true
	switch role {
	case "":
	case "reader":
		readers, writes = 1, false
	case "writer":
		readers = 0
	default:
		return fmt.Errorf("role %q: use reader or writer", role)
	}
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()

	p := &program{m: m, out: out, work: work}
	ends := make(chan error, readers+1)
	for i := range readers {
		go func() { ends <- p.read(ctx, fmt.Sprint("reader ", i+1)) }()
	}
	if writes {
		go func() { ends <- p.write(ctx) }()
		readers++
	}
	for range readers {
		if e := <-ends; e != nil {
			err = e
		}
	}
	return err
}

// program is what readers and the writer have in common.
type program struct {
	m    *fabric.Manager
	work time.Duration

	mu  sync.Mutex
	out io.Writer
}

func (p *program) say(who, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%s: %s\n", who, what)
}

// busy works, or less when the hold is lost or the program is to end.
func (p *program) busy(ctx context.Context, l *fabric.Lock) error {
	select {
	case <-time.After(p.work):
		return nil
	case <-l.Lost():
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read looks twice, as whoever has a lock of its own in mode Shared.
func (p *program) read(ctx context.Context, who string) error {
	for range 2 {
		err := p.m.Do(ctx, key, func(ctx context.Context, l *fabric.Lock) error {
			p.say(who, "reads")
			return p.busy(ctx, l)
		}, fabric.WithMode(fabric.Shared))
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *program) write(ctx context.Context) error {
	const who = "writer"
	lock, err := p.m.Acquire(ctx, key, fabric.WithMode(fabric.Update))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }()
	p.say(who, "reads, and may want to write")
	if err := p.busy(ctx, lock); err != nil {
		return err
	}

	if err := lock.Convert(ctx, fabric.Exclusive); err != nil {
		return err
	}
	p.say(who, "writes alone") // with the token of now: lock.Token()
	if err := p.busy(ctx, lock); err != nil {
		return err
	}
	p.say(who, "has written")

	if err := lock.Convert(ctx, fabric.Shared); err != nil {
		return err
	}
	return p.busy(ctx, lock)
}
