package primitives_test

import (
	"context"
	"fmt"
	"log"

	"github.com/lockfabric/lockfabric/primitives"
)

func ExampleBarrier() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	barrier := primitives.NewBarrier(m, "jobs/phase", 3).WithAction(func(context.Context, uint64) error {
		fmt.Println("all are there")
		return nil
	})
	lines := make(chan string)
	for range 3 { // as a rule each in a process of its own
		go func() {
			index, err := barrier.Wait(ctx)
			if err != nil {
				log.Print(err) // fabric.ErrBroken: one of the others gave up or died
			}
			lines <- fmt.Sprintf("%d came later", index)
		}()
	}
	sorted(lines, 3)
	// Output:
	// all are there
	// 0 came later
	// 1 came later
	// 2 came later
}

func ExampleDoubleBarrier() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	db := primitives.NewDoubleBarrier(m, "jobs/session", 2)
	lines := make(chan string)
	for range 2 {
		go func() {
			member, err := db.Enter(ctx)
			if err != nil {
				log.Print(err)
				return
			}
			lines <- "both are in"
			if err := member.Leave(ctx); err != nil {
				log.Print(err) // fabric.ErrLost: the membership ended before
			}
			lines <- "both are out"
		}()
	}
	sorted(lines, 2)
	sorted(lines, 2)
	// Output:
	// both are in
	// both are in
	// both are out
	// both are out
}
