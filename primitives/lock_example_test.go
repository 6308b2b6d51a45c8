package primitives_test

import (
	"context"
	"fmt"
	"log"
	"sync/atomic"

	"github.com/lockfabric/lockfabric/primitives"
)

func ExampleMutex() {
	ctx := context.Background()
	m, closeAll := embed(ctx) // or fabric.Connect(ctx, "nats://localhost:4222")
	defer closeAll()

	mu := primitives.NewMutex(m, "shared-resource")
	err := mu.Do(ctx, func(ctx context.Context, l *primitives.Lock) error {
		fmt.Println("alone, in mode", l.Mode())
		return nil // whatever is returned, it is unlocked
	})
	fmt.Println(err)
	// Output:
	// alone, in mode X
	// <nil>
}

func ExampleRWMutex() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	rw := primitives.NewRWMutex(m, "shared-resource")
	reader, err := rw.RLock(ctx)
	if err != nil {
		log.Fatal(err)
	}
	l, err := rw.ULock(ctx) // reads beside readers, and may become the writer
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(reader.Mode(), l.Mode())
	if err := reader.Release(ctx); err != nil {
		log.Fatal(err)
	}
	if err := l.Upgrade(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Mode())
	if err := l.Release(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// S U
	// X
}

func ExampleCond() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	mu := primitives.NewMutex(m, "queue")
	notEmpty := primitives.NewCond(mu, "not-empty")
	var items atomic.Int64 // between processes: what lies in a KV bucket, say

	go func() {
		err := mu.Do(ctx, func(ctx context.Context, l *primitives.Lock) error {
			items.Add(1)
			return notEmpty.Signal(ctx, l)
		})
		if err != nil {
			log.Fatal(err)
		}
	}()

	l, err := mu.Lock(ctx)
	if err != nil {
		log.Fatal(err)
	}
	l, err = notEmpty.WaitUntil(ctx, l, func(context.Context) (bool, error) { return items.Load() > 0, nil })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("items:", items.Load())
	if err := l.Release(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: items: 1
}

func ExampleElection() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	e := primitives.NewElection(m, "scheduler")
	err := e.Run(ctx, []byte("host-1"), func(ctx context.Context, l *primitives.Leadership) error {
		leader, err := e.Leader(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s leads, in term %t\n", leader.Value, leader.Term == l.Term())
		return nil // it resigns; ctx ends when the term is lost
	})
	fmt.Println(err)
	// Output:
	// host-1 leads, in term true
	// <nil>
}
