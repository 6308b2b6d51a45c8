// Mutex has five tasks that use one resource, one after another. Each task locks the mutex, works for a second, and
// unlocks it. The third task fails, and its mutex is unlocked as well.
//
// It needs no installed server: without -server it starts one in this process. With -server, the tasks of several such
// programs share the mutex.
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
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/primitives"
)

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	work := flag.Duration("work", time.Second, "how long a task works")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutex:", err)
		os.Exit(1)
	}
}

var errWork = errors.New("the work failed")

func run(ctx context.Context, out io.Writer, server string, work time.Duration) error {
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()

	mu := primitives.NewMutex(m, "shared-resource")
	var (
		line    sync.Mutex
		wg      sync.WaitGroup
		working atomic.Int32 // the mutex keeps this at one or below
		failed  = make(chan error, 5)
	)
	for task := 1; task <= 5; task++ {
		wg.Go(func() {
			// Do always unlocks, whatever the function returns. Its ctx ends if the lock is lost.
			err := mu.Do(ctx, func(ctx context.Context, l *primitives.Lock) error {
				if working.Add(1) != 1 {
					return errors.New("two tasks at a time")
				}
				defer working.Add(-1)
				line.Lock()
				fmt.Fprintf(out, "task %d works\n", task)
				line.Unlock()
				select {
				case <-time.After(work):
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if task == 3 {
					return errWork
				}
				return nil
			})
			if errors.Is(err, errWork) && task == 3 {
				err = nil
			}
			failed <- err
		})
	}
	wg.Wait()
	for range 5 {
		if err := <-failed; err != nil {
			return err
		}
	}
	l, err := mu.TryLock(ctx) // this works because every task has unlocked
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "all done, one after the other")
	return l.Release(ctx)
}
