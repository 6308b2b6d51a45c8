// Condition has a producer and two consumers that share a queue with space for two items. If the queue is full, the
// producer waits for not-full. If it is empty, a consumer waits for not-empty. After each change, one waiter of the
// other condition is woken.
//
// It needs no installed server: without -server it starts one in this process. The queue is a fenced register in that
// server, so with -server and a program for each role, the roles could run on different hosts.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

const room, consumers = 2, 2

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	items := flag.Int("items", 10, "how many items go through the queue")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *items)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "condition:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server string, items int) error {
	url, stop, err := demo.Serve(ctx, server)
	if err != nil {
		return err
	}
	defer stop()
	got := make(chan int, items)
	ends := make(chan error, 1+consumers)
	for range consumers {
		go func() {
			ends <- with(ctx, url, func(q *queue) error {
				for {
					item, err := q.get(ctx)
					if err != nil || item < 0 { // no more
						return err
					}
					got <- item
				}
			})
		}()
	}
	go func() {
		ends <- with(ctx, url, func(q *queue) error {
			for i := range items + consumers {
				item := i
				if i >= items {
					item = -1 // one for each consumer
				}
				if err := q.put(ctx, item); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	for range 1 + consumers {
		err = errors.Join(err, <-ends)
	}
	if err != nil {
		return err
	}
	close(got)
	var all []int
	for item := range got {
		all = append(all, item)
	}
	slices.Sort(all)
	for i, item := range all {
		if i != item {
			return fmt.Errorf("got %v", all)
		}
	}
	if len(all) != items {
		return fmt.Errorf("%d of %d items", len(all), items)
	}
	fmt.Fprintf(out, "%d items, each once\n", items)
	return nil
}

// queue is the bounded queue as one process sees it.
type queue struct {
	mu                *primitives.Mutex
	notEmpty, notFull *primitives.Cond
	items             *fabric.Register
}

// with calls fn with the queue, on a separate connection.
func with(ctx context.Context, url string, fn func(q *queue) error) error {
	nc, err := nats.Connect(url, nats.ReconnectBufSize(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	m, err := fabric.New(ctx, nc)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	// The bucket has one replica, because otherwise a replica that is behind could answer a read.
	bucket, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "queues", Replicas: 1})
	if err != nil {
		return err
	}
	mu := primitives.NewMutex(m, "queue")
	return fn(&queue{mu: mu, notEmpty: primitives.NewCond(mu, "not-empty"), notFull: primitives.NewCond(mu, "not-full"), items: fabric.NewRegister(bucket, "items")})
}

func (q *queue) put(ctx context.Context, item int) error {
	return q.change(ctx, q.notFull, q.notEmpty, func(items []int) bool { return len(items) < room },
		func(items []int) []int { return append(items, item) })
}

func (q *queue) get(ctx context.Context) (item int, err error) {
	err = q.change(ctx, q.notEmpty, q.notFull, func(items []int) bool { return len(items) > 0 },
		func(items []int) []int { item = items[0]; return items[1:] })
	return item, err
}

// change waits for a condition until it may change the items, and then signals the other condition.
func (q *queue) change(ctx context.Context, wait, signal *primitives.Cond, may func([]int) bool, change func([]int) []int) error {
	l, err := q.mu.Lock(ctx)
	if err != nil {
		return err
	}
	var items []int
	l, err = wait.WaitUntil(ctx, l, func(ctx context.Context) (bool, error) {
		stored, err := q.items.Read(ctx)
		if items = nil; err == nil && len(stored.Value) > 0 {
			err = json.Unmarshal(stored.Value, &items)
		}
		return may(items), err
	})
	if l != nil {
		defer func() { _ = l.Release(ctx) }()
	}
	if err != nil {
		return err
	}
	value, err := json.Marshal(change(items))
	if err == nil {
		_, err = q.items.Write(ctx, l.Token(), value) // the register refuses the write if the lock was lost
	}
	if err == nil {
		err = signal.Signal(ctx, l)
	}
	return err
}
