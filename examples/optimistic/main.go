// Optimistic reads two balances without a lock, and checks afterwards whether the result is valid.
//
// Transfers between the two accounts happen under an exclusive lock, so for a holder of the lock the sum is always the
// same. During the first read nothing happens: its stamp is valid, and it held no lock. During the second read, a
// transfer happens between the two balances: the sum is wrong, the stamp is no longer valid, and the read is repeated
// under the lock. Then ReadOptimistic does the same automatically, and a reader becomes the writer with its stamp.
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
	"sync/atomic"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

const (
	lockName = "accounts"
	total    = 100
)

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "optimistic:", err)
		os.Exit(1)
	}
}

// accounts are the data that the lock protects. In an application they are in a database.
type accounts struct {
	m          *fabric.Manager
	alice, bob atomic.Int64
}

// transfer takes money from Alice to Bob.
func (a *accounts) transfer(ctx context.Context, amount int64) error {
	return a.m.Do(ctx, lockName, func(context.Context, *fabric.Lock) error {
		a.alice.Add(-amount)
		a.bob.Add(amount)
		return nil
	})
}

// sum reads one account and then the other. It calls between in the meantime.
func (a *accounts) sum(between func() error) (int64, error) {
	alice := a.alice.Load()
	if err := between(); err != nil {
		return 0, err
	}
	return alice + a.bob.Load(), nil
}

func nothing() error { return nil }

func run(ctx context.Context, out io.Writer, server string) error {
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()
	a := &accounts{m: m}
	a.alice.Store(total)
	a.bob.Store(0)

	for _, between := range []func() error{nothing, func() error { return a.transfer(ctx, 30) }} {
		if err := a.read(ctx, out, between); err != nil {
			return err
		}
	}
	if err := a.readByItself(ctx, out); err != nil {
		return err
	}
	return a.upgrade(ctx, out)
}

// read makes an optimistic read step by step.
func (a *accounts) read(ctx context.Context, out io.Writer, between func() error) error {
	st, err := a.m.Optimistic(ctx, lockName)
	if err != nil {
		return err
	}
	sum, err := a.sum(between)
	if err != nil {
		return err
	}
	valid, err := a.m.Validate(ctx, st)
	switch {
	case err != nil:
		return err
	case valid && sum == total:
		fmt.Fprintf(out, "read without a lock: %d, valid\n", sum)
		return nil
	case valid:
		return fmt.Errorf("a sum of %d was validated", sum)
	}
	fmt.Fprintf(out, "read without a lock: %d, not valid: a writer got in between\n", sum)
	return a.m.Do(ctx, lockName, func(context.Context, *fabric.Lock) error {
		sum, err := a.sum(nothing)
		if err == nil && sum != total {
			err = fmt.Errorf("a sum of %d under the lock", sum)
		}
		if err == nil {
			fmt.Fprintf(out, "read under a shared lock: %d\n", sum)
		}
		return err
	}, fabric.WithMode(fabric.Shared))
}

// readByItself makes an optimistic read with ReadOptimistic.
func (a *accounts) readByItself(ctx context.Context, out io.Writer) error {
	var sum int64
	calls := 0
	err := a.m.ReadOptimistic(ctx, lockName, func(ctx context.Context) (err error) {
		calls++
		between := nothing
		if calls == 1 {
			between = func() error { return a.transfer(ctx, 20) }
		}
		sum, err = a.sum(between)
		return err
	})
	if err == nil && sum != total {
		err = fmt.Errorf("a sum of %d was read", sum)
	}
	if err == nil {
		fmt.Fprintf(out, "ReadOptimistic: %d, after %d calls\n", sum, calls)
	}
	return err
}

// upgrade acquires the lock if nothing has changed since the stamp.
func (a *accounts) upgrade(ctx context.Context, out io.Writer) error {
	st, err := a.m.Optimistic(ctx, lockName)
	if err != nil {
		return err
	}
	l, err := a.m.TryAcquire(ctx, lockName, fabric.WithStamp(st))
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "locked by a stamp: nothing has changed since")
	if err := l.Release(ctx); err != nil {
		return err
	}
	if _, err = a.m.TryAcquire(ctx, lockName, fabric.WithStamp(st)); !errors.Is(err, fabric.ErrStale) {
		return fmt.Errorf("by a stamp of before the last hold: %w", err)
	}
	fmt.Fprintln(out, "refused by the same stamp: somebody has held the lock since")
	return nil
}
