package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// embed opens a fabric on a server inside this process.
func embed(ctx context.Context, opts ...fabric.Option) (m *fabric.Manager, closeAll func()) {
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		log.Fatal(err)
	}
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		log.Fatal(err)
	}
	m, err = fabric.New(ctx, nc, opts...)
	if err != nil {
		log.Fatal(err)
	}
	return m, func() {
		if err := m.Close(); err != nil {
			log.Fatal(err)
		}
		nc.Close()
		if err := srv.Shutdown(context.WithoutCancel(ctx)); err != nil {
			log.Fatal(err)
		}
	}
}

func Example() {
	ctx := context.Background()
	m, closeAll := embed(ctx) // or fabric.Connect(ctx, "nats://localhost:4222")
	defer closeAll()

	lock, err := m.Acquire(ctx, "orders/42", fabric.WithTTL(30*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("held:", lock.Err() == nil, lock.Mode())

	// Whatever the lock protects is written with lock.Token().

	if err := lock.Release(ctx); err != nil {
		log.Fatal(err) // fabric.ErrLost: the hold had ended before
	}
	fmt.Println("held:", lock.Err() == nil)
	// Output:
	// held: true X
	// held: false
}

func ExampleManager_Do() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	err := m.Do(ctx, "orders/42", func(ctx context.Context, l *fabric.Lock) error {
		// ctx ends when the hold is lost.
		fmt.Println("working on", l.Key())
		return ctx.Err()
	}, fabric.WithWaitLimit(10*time.Second))
	fmt.Println(err)
	// Output:
	// working on orders/42
	// <nil>
}

func ExampleManager_TryAcquire() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	lock, err := m.Acquire(ctx, "nightly-backup", fabric.WithOwner("host-a"))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = lock.Release(ctx) }()

	_, err = m.TryAcquire(ctx, "nightly-backup", fabric.WithOwner("host-b"))
	var held *fabric.HeldError
	if errors.As(err, &held) {
		fmt.Printf("%s holds it in mode %s\n", held.Owner, held.Mode)
	}
	fmt.Println(errors.Is(err, fabric.ErrNotAcquired), errors.Is(err, fabric.ErrHeld))
	// Output:
	// host-a holds it in mode X
	// true true
}

// Who reads and may have to write takes Update: others can read meanwhile, but only
// one can be about to write.
func ExampleLock_Convert() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	lock, err := m.Acquire(ctx, "catalogue", fabric.WithMode(fabric.Update))
	if err != nil {
		log.Fatal(err)
	}
	read := lock.Token()

	if err := lock.Convert(ctx, fabric.Exclusive); err != nil { // waits until all readers have left
		log.Fatal(err)
	}
	write := lock.Token()
	fmt.Println(lock.Mode(), "with a larger token:", write > read)

	if err := lock.Convert(ctx, fabric.Shared); err != nil { // lets readers in again
		log.Fatal(err)
	}
	fmt.Println(lock.Mode(), "with the same token:", lock.Token() == write)
	fmt.Println(lock.Release(ctx))
	// Output:
	// X with a larger token: true
	// S with the same token: true
	// <nil>
}

// Two holders of Shared who both want Exclusive would wait for each other. The
// second is told, and the first goes on when it has let go.
func ExampleLock_Convert_deadlock() {
	ctx := context.Background()
	queued := make(chan struct{})
	m, closeAll := embed(ctx, fabric.WithEvents(func(e fabric.Event) {
		if e.Type == fabric.EventQueued {
			close(queued)
		}
	}))
	defer closeAll()

	reader := func() *fabric.Lock {
		l, err := m.Acquire(ctx, "catalogue", fabric.WithMode(fabric.Shared))
		if err != nil {
			log.Fatal(err)
		}
		return l
	}
	first, second := reader(), reader()
	done := make(chan error)
	go func() { done <- first.Convert(ctx, fabric.Exclusive) }()
	<-queued

	err := second.Convert(ctx, fabric.Exclusive)
	fmt.Println(errors.Is(err, fabric.ErrConvertDeadlock), "and still", second.Mode())
	if err := second.Release(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-done, first.Mode())
	// Output:
	// true and still S
	// <nil> X
}

func ExampleWithDeadlineCheck() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	// Somebody holds the lock for as long as it was held of late.
	hold := func() *fabric.Lock {
		l, err := m.Acquire(ctx, "report")
		if err != nil {
			log.Fatal(err)
		}
		return l
	}
	l := hold()
	time.Sleep(time.Second)
	if err := l.Release(ctx); err != nil {
		log.Fatal(err)
	}
	defer func(l *fabric.Lock) { _ = l.Release(ctx) }(hold())

	_, err := m.Acquire(ctx, "report", fabric.WithWaitLimit(500*time.Millisecond), fabric.WithDeadlineCheck())
	var late *fabric.WaitTooLongError
	if errors.As(err, &late) {
		fmt.Println("not queued:", late.Expected > late.Allowed)
	}
	// Output: not queued: true
}

func ExampleManager_Watch() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	lock, err := m.Acquire(ctx, "orders/42", fabric.WithOwner("billing"))
	if err != nil {
		log.Fatal(err)
	}
	for info, err := range m.Watch(ctx, "orders/42") {
		if err != nil {
			log.Fatal(err)
		}
		if len(info.Holders) == 0 {
			fmt.Println("free")
			break
		}
		fmt.Println("held by", info.Holders[0].Owner)
		if err := lock.Release(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// held by billing
	// free
}

func ExampleWithEvents() {
	ctx := context.Background()
	m, closeAll := embed(ctx, fabric.WithEvents(func(e fabric.Event) {
		fmt.Println(e.Type, e.Key, e.Owner)
	}))
	lock, err := m.Acquire(ctx, "orders/42", fabric.WithOwner("billing"))
	if err != nil {
		log.Fatal(err)
	}
	if err := lock.Release(ctx); err != nil {
		log.Fatal(err)
	}
	closeAll() // delivers what is outstanding
	// Output:
	// granted orders/42 billing
	// released orders/42 billing
}

// A resource that asks a guard before each write refuses those whose hold was
// replaced meanwhile, whatever they believe.
func ExampleGuard() {
	ctx := context.Background()
	m, closeAll := embed(ctx)
	defer closeAll()

	var guard fabric.Guard // beside the resource
	token := func() uint64 {
		l, err := m.Acquire(ctx, "accounts/alice")
		if err != nil {
			log.Fatal(err)
		}
		defer func() { _ = l.Release(ctx) }()
		return l.Token()
	}
	first, second := token(), token()
	fmt.Println(guard.Admit(fabric.Exclusive, second))
	err := guard.Admit(fabric.Exclusive, first)
	fmt.Println(errors.Is(err, fabric.ErrStaleToken))
	// Output:
	// <nil>
	// true
}

// A counter in a bucket of one's own, which any number of processes increment.
func ExampleManager_Update() {
	ctx := context.Background()
	srv, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = srv.Shutdown(ctx) }()
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	m, err := fabric.New(ctx, nc)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	counters, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "counters"})
	if err != nil {
		log.Fatal(err)
	}

	for range 3 {
		_, err := m.Update(ctx, "counters", "visits", func(old []byte) ([]byte, error) {
			n := 0
			if old != nil {
				var err error
				if n, err = strconv.Atoi(string(old)); err != nil {
					return nil, err
				}
			}
			return []byte(strconv.Itoa(n + 1)), nil
		})
		if err != nil {
			log.Fatal(err) // fabric.ErrUncertain: it may count nevertheless
		}
	}
	e, err := counters.Get(ctx, "visits")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(e.Value()))
	// Output:
	// 3
}
