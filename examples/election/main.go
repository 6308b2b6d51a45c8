// Election has three replicas of a service as candidates, and a follower that observes them. The first leader resigns.
// The second leader crashes, and the third becomes leader when the lease of the second has ended.
//
// It needs no installed server: a server runs in this process. Each replica has its own connection, so it can crash.
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

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func main() {
	ttl := flag.Duration("ttl", 5*time.Second, "how long a leader stays one after its last sign of life")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *ttl)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "election:", err)
		os.Exit(1)
	}
}

// replica is one process of the service.
type replica struct {
	nc    *nats.Conn
	m     *fabric.Manager
	leads chan *primitives.Leadership
	err   error
}

func newReplica(ctx context.Context, url string, ttl time.Duration) (*replica, error) {
	nc, err := nats.Connect(url, nats.ReconnectBufSize(-1))
	if err != nil {
		return nil, err
	}
	m, err := fabric.New(ctx, nc, fabric.WithTTL(ttl))
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &replica{nc: nc, m: m, leads: make(chan *primitives.Leadership, 1)}, nil
}

// stand campaigns, and returns when the replica is in the queue.
func (r *replica) stand(ctx context.Context, name string, before int) error {
	e := primitives.NewElection(r.m, "leader")
	go func() {
		l, err := e.Campaign(ctx, []byte(name))
		r.err = err
		r.leads <- l
	}()
	for info, err := range r.m.Watch(ctx, "leader") {
		if err != nil || len(info.Holders)+len(info.Waiters) > before {
			return err
		}
	}
	return ctx.Err()
}

func run(ctx context.Context, out io.Writer, ttl time.Duration) error {
	url, stop, err := demo.Serve(ctx, "")
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var replicas []*replica
	for i, name := range []string{"a", "b", "c"} {
		r, err := newReplica(ctx, url, ttl)
		if err != nil {
			return err
		}
		defer func() { _ = r.m.Close(); r.nc.Close() }()
		if err := r.stand(ctx, name, i); err != nil {
			return err
		}
		replicas = append(replicas, r)
	}
	follower, err := newReplica(ctx, url, ttl)
	if err != nil {
		return err
	}
	defer func() { _ = follower.m.Close(); follower.nc.Close() }()

	next, last := 0, uint64(0)
	for l, err := range primitives.NewElection(follower.m, "leader").Observe(ctx) {
		switch {
		case err != nil:
			return err
		case next == len(replicas) && l.Term == 0:
			fmt.Fprintln(out, "nobody leads")
			return nil
		case l.Term <= last || next == len(replicas):
			return fmt.Errorf("term %d of %q after %d", l.Term, l.Value, last)
		}
		r := replicas[next]
		leadership := <-r.leads
		if r.err != nil {
			return r.err
		}
		if leadership.Term() != l.Term {
			return errors.New("two leaders")
		}
		fmt.Fprintf(out, "%s leads\n", l.Value)
		if last = l.Term; next == 1 {
			fmt.Fprintf(out, "%s crashes\n", l.Value)
			r.nc.Close()
		} else {
			fmt.Fprintf(out, "%s resigns\n", l.Value)
			if err := leadership.Resign(ctx); err != nil {
				return err
			}
		}
		next++
	}
	return ctx.Err()
}
