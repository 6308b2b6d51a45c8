// Autorenew holds a lock for a task that takes longer than the lock's TTL. The lock is renewed automatically, but only
// a limited number of times, so a task that hangs can't hold it forever. After each step, the task checks whether the
// lock is still valid, and stops if it is lost.
//
// With the default timing (a TTL of 10 s, a renewal every 3 s, at most five renewals), the lock is lost after about 24
// s, before all twenty steps of two seconds are done. With -renewals 0 there is no limit, and all steps are done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

type task struct {
	server   string
	ttl      time.Duration
	renew    time.Duration
	renewals int
	steps    int
	step     time.Duration
}

func main() {
	var t task
	flag.StringVar(&t.server, "server", "", "NATS URL; without it a server is embedded")
	flag.DurationVar(&t.ttl, "ttl", 10*time.Second, "how long the lock lives after its last renewal")
	flag.DurationVar(&t.renew, "renew", 3*time.Second, "how often it is renewed")
	flag.IntVar(&t.renewals, "renewals", 5, "how often at most; 0 is no limit")
	flag.IntVar(&t.steps, "steps", 20, "steps of the task")
	flag.DurationVar(&t.step, "step", 2*time.Second, "how long one step takes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := t.run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "autorenew:", err)
		os.Exit(1)
	}
}

func (t task) run(ctx context.Context, out io.Writer) error {
	m, closeAll, err := demo.Connect(ctx, t.server)
	if err != nil {
		return err
	}
	defer closeAll()

	opts := []fabric.AcquireOption{fabric.WithTTL(t.ttl), fabric.WithRenewInterval(t.renew)}
	if t.renewals > 0 {
		opts = append(opts, fabric.WithMaxRenewals(t.renewals))
	}
	lock, err := m.Acquire(ctx, "long-running-task", opts...)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "acquired long-running-task")

	for i := range t.steps {
		select {
		case <-time.After(t.step): // the work of one step
		case <-ctx.Done():
			return errors.Join(ctx.Err(), lock.Release(ctx))
		}
		if !lock.IsValid(ctx) {
			fmt.Fprintf(out, "lost during step %d of %d, stopping\n", i+1, t.steps)
			var lost *fabric.LostError
			if errors.As(lock.Err(), &lost) {
				fmt.Fprintln(out, "reason:", lost.Reason)
			}
			return nil
		}
	}
	fmt.Fprintf(out, "all %d steps done\n", t.steps)
	return lock.Release(ctx)
}
