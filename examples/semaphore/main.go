// Semaphore has ten tasks that share three permits. Each task acquires a permit, works for two seconds, and releases
// it. Never more than three tasks work at the same time.
//
// It needs no installed server: without -server it starts one in this process. With -server, the tasks of several such
// programs share the permits.
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

const permits, tasks = 3, 10

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	work := flag.Duration("work", 2*time.Second, "how long a task works")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "semaphore:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server string, work time.Duration) error {
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()

	p := &pool{sem: primitives.NewSemaphore(m, "resource-pool", permits), work: work, out: out}
	ends := make(chan error, tasks)
	for task := 1; task <= tasks; task++ {
		go func() { ends <- p.use(ctx, task) }()
	}
	for range tasks {
		err = errors.Join(err, <-ends)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d tasks done, at most %d at a time\n", tasks, p.most)
	if p.most > permits {
		return fmt.Errorf("%d at work", p.most)
	}
	return nil
}

type pool struct {
	sem  *primitives.Semaphore
	work time.Duration

	mu      sync.Mutex
	out     io.Writer
	working int
	most    int
}

// use works with a permit.
func (p *pool) use(ctx context.Context, task int) error {
	permit, err := p.sem.Acquire(ctx)
	if err != nil {
		return err
	}
	p.count(task, +1, "begins")
	select {
	case <-time.After(p.work):
	case <-permit.Lost():
	case <-ctx.Done():
	}
	p.count(task, -1, "ends")
	// If this process dies, the permit is released automatically.
	return errors.Join(permit.Err(), permit.Release(ctx))
}

func (p *pool) count(task, n int, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working += n
	p.most = max(p.most, p.working)
	fmt.Fprintf(p.out, "task %d %s, %d at work\n", task, what, p.working)
}
