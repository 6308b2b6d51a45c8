// Hierarchy locks an object, together with intents on its bucket and on everything. It shows that a lock of the whole
// waits for the locks of parts, and excludes them.
//
// It acquires global-lock, bucket-lock and object-lock, in this order, as one set: the object exclusively, and intents
// on the two levels above. Two different objects can be locked at the same time. A holder of bucket-lock in exclusive
// mode excludes all objects in the bucket. The set is released in reverse order.
//
// The program checks what it prints. It needs no installed server: without -server it starts one in this process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hierarchy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server string) error {
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()

	object, err := m.AcquireHierarchy(ctx, fabric.NewHierarchy("global-lock", "bucket-lock", "object-lock"), fabric.Exclusive,
		fabric.WithoutSharedIntents()) // otherwise an intent stays for a while, for the next object
	if err != nil {
		return err
	}
	defer func() { _ = object.Release(ctx) }()
	if err := tell(out, object); err != nil {
		return err
	}

	// Another object of the same bucket: it can be locked at the same time.
	other, err := m.TryAcquireHierarchy(ctx, fabric.NewHierarchy("global-lock", "bucket-lock", "other-object-lock"), fabric.Exclusive)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "another object of the bucket is locked beside it")
	if err := other.Release(ctx); err != nil {
		return err
	}

	// The bucket as a whole can't be locked while an object in it is locked.
	bucket := fabric.NewHierarchy("global-lock", "bucket-lock")
	if _, err := m.TryAcquireHierarchy(ctx, bucket, fabric.Exclusive); !errors.Is(err, fabric.ErrHeld) {
		return fmt.Errorf("the bucket was to be refused, and the answer is: %w", err)
	}
	fmt.Fprintln(out, "the bucket is refused while an object of it is locked")

	if err := object.Release(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "released, object-lock first and global-lock last")
	whole, err := m.TryAcquireHierarchy(ctx, bucket, fabric.Exclusive)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "now the bucket is locked")
	return whole.Release(ctx)
}

// tell prints what is held, and checks that tokens increase from the root down.
func tell(out io.Writer, s *fabric.Set) error {
	var tokens []uint64
	for _, name := range []string{"global-lock", "bucket-lock", "object-lock"} {
		l := s.Lock(name)
		if l == nil {
			return fmt.Errorf("%s is not among those that are held", name)
		}
		fmt.Fprintf(out, "%s is held in mode %s\n", name, l.Mode())
		tokens = append(tokens, l.Token())
	}
	if !slices.IsSorted(tokens) || s.Token() != tokens[2] || s.Err() != nil {
		return fmt.Errorf("tokens %v, the set's is %d: %w", tokens, s.Token(), s.Err())
	}
	return nil
}
