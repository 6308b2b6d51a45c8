// Fencing shows why a lock alone protects nothing, and how a fencing token does.
//
// A first worker acquires a lock and is then paused for longer than the lock's TTL, like a process with a long garbage
// collection or on a suspended machine. A second worker gets the lock and writes. Then the first worker continues and
// writes, too, with the fencing token of the hold that it has lost. The register refuses this write.
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
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

func main() {
	ttl := flag.Duration("ttl", 2*time.Second, "TTL of the lock")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *ttl)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fencing:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, ttl time.Duration) error {
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		return err
	}
	defer func() { _ = srv.Shutdown(context.WithoutCancel(ctx)) }()
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		return err
	}
	defer nc.Close()

	// The lock protects one key of a bucket of the application.
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	bucket, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "accounts"})
	if err != nil {
		return err
	}
	balance := fabric.NewRegister(bucket, "alice")

	// Two processes of the application.
	first, err := fabric.New(ctx, nc)
	if err != nil {
		return err
	}
	defer func() { _ = first.Close() }()
	second, err := fabric.New(ctx, nc)
	if err != nil {
		return err
	}
	defer func() { _ = second.Close() }()

	// Without automatic renewal, the hold ends by itself, as if its process were paused.
	paused, err := first.Acquire(ctx, "accounts/alice", fabric.WithTTL(ttl), fabric.WithAutoRenew(false))
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "first worker: acquired, and now held up")

	lock, err := second.Acquire(ctx, "accounts/alice")
	if err != nil {
		return err
	}
	if _, err := balance.Write(ctx, lock.Token(), []byte("balance 100")); err != nil {
		return err
	}
	fmt.Fprintln(out, "second worker: acquired with a larger token:", lock.Token() > paused.Token())
	fmt.Fprintln(out, "second worker: wrote balance 100")

	_, err = balance.Write(ctx, paused.Token(), []byte("balance 50"))
	fmt.Fprintln(out, "first worker: late write refused:", errors.Is(err, fabric.ErrStaleToken))
	fmt.Fprintln(out, "first worker: knows that it lost the lock:", errors.Is(paused.Err(), fabric.ErrLost))

	stored, err := balance.Read(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "stored: %s\n", stored.Value)
	return lock.Release(ctx)
}
