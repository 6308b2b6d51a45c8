package primitives_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestOnceConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"one runs, all read the result", onceRuns},
		{"two writes for a run, none for who comes later", onceWrites},
		{"after an error or a panic the next one runs", onceFails},
		{"a wait that is given up leaves the queue", onceGiveUp},
		{"a result of any bytes, and one that is too large", onceResults},
		{"forget", onceForget},
		{"a result goes after its retention", onceRetention},
		{"another kind of the same name is refused", onceKind},
		{"crash of the one who runs", onceCrash},
		{"a cancelled run leaves nothing", onceCancelled},
	})
}

func gives(text string) func(context.Context, uint64) ([]byte, error) {
	return func(context.Context, uint64) ([]byte, error) { return []byte(text), nil }
}

func do(t testing.TB, o *primitives.Once, fn func(context.Context, uint64) ([]byte, error), want string) {
	t.Helper()
	if got, err := o.Do(waitContext(t), fn); err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

func wantResult(t testing.TB, o *primitives.Once, want string, is bool) {
	t.Helper()
	if got, done, err := o.Result(waitContext(t)); err != nil || string(got) != want || done != is {
		t.Errorf("result %q, %v, %v; want %q, %v", got, done, err, want, is)
	}
}

func onceRuns(t *testing.T, s *site) {
	key := s.key(t)
	var runs atomic.Int64
	var all sync.WaitGroup
	for i := range 3 {
		o := primitives.NewOnce(s.manager(t), key)
		for range 4 {
			all.Go(func() {
				got, err := o.Do(waitContext(t), func(_ context.Context, token uint64) ([]byte, error) {
					runs.Add(1)
					if token == 0 {
						t.Error("without a token")
					}
					return fmt.Appendf(nil, "of %d", i), nil
				})
				if err != nil || len(got) != len("of 0") {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
	}
	all.Wait()
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func onceWrites(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	o := primitives.NewOnce(m, s.key(t))
	do(t, o, gives("x"), "x") // opens what is opened once
	o = primitives.NewOnce(m, key)
	wantResult(t, o, "", false)
	if n := writes(func() { do(t, o, gives("42"), "42") }, m); n.not(2) {
		t.Errorf("a run: %d writes, want 2", n)
	}
	if n := writes(func() {
		do(t, o, gives("43"), "42")
		wantResult(t, o, "42", true)
	}, m); n.not(0) {
		t.Errorf("who comes later: %d writes", n)
	}
}

func onceFails(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	o := primitives.NewOnce(m, key)
	mistake := errors.New("mistake")
	started, end := make(chan struct{}), make(chan struct{})
	first := async(func() ([]byte, error) {
		return o.Do(t.Context(), func(context.Context, uint64) ([]byte, error) {
			close(started)
			<-end
			return []byte("x"), mistake
		})
	})
	receive(t, started)
	next := async(func() ([]byte, error) { return primitives.NewOnce(s.manager(t), key).Do(t.Context(), gives("y")) })
	waitQueue(t, m, key, 1)
	close(end)
	if r := receive(t, first); !errors.Is(r.err, mistake) || errors.Is(r.err, fabric.ErrLost) || r.value != nil {
		t.Errorf("%q, %v", r.value, r.err)
	}
	if got := must(t, next); string(got) != "y" {
		t.Errorf("%q", got)
	}

	key = s.key(t)
	o = primitives.NewOnce(m, key)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_, _ = o.Do(t.Context(), func(context.Context, uint64) ([]byte, error) { panic("mistake") })
	}()
	expectFree(t, m, key)
	do(t, o, gives("z"), "z")
}

func onceGiveUp(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	o := primitives.NewOnce(m, key)
	started, end := make(chan struct{}), make(chan struct{})
	first := async(func() ([]byte, error) {
		return o.Do(t.Context(), func(context.Context, uint64) ([]byte, error) {
			close(started)
			<-end
			return []byte("x"), nil
		})
	})
	receive(t, started)
	if err := o.Forget(waitContext(t)); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("forget while it runs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := async(func() ([]byte, error) { return o.Do(ctx, gives("y")) })
	waitQueue(t, m, key, 1)
	cancel()
	if r := receive(t, waiting); !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v", r.err)
	}
	waitQueue(t, m, key, 0)
	close(end)
	must(t, first)
}

func onceResults(t *testing.T, s *site) {
	m := s.manager(t)
	for _, want := range []string{"", "text", "\x00\xff", string(bytes.Repeat([]byte{0xff}, 64<<10))} {
		o := primitives.NewOnce(m, s.key(t))
		do(t, o, gives(want), want)
		do(t, o, gives("other"), want)
		wantResult(t, o, want, true)
	}
	key := s.key(t)
	o := primitives.NewOnce(m, key)
	if _, err := o.Do(waitContext(t), gives(string(make([]byte, 64<<10+1)))); !errors.Is(err, fabric.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	waitInfo(t, m, key, "nothing is kept", func(i fabric.Info) bool { return i.Kind == "" })
}

func onceForget(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	o := primitives.NewOnce(m, key)
	if err := o.Forget(waitContext(t)); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	do(t, o, gives("1"), "1")
	if err := o.Forget(waitContext(t)); err != nil {
		t.Error(err)
	}
	wantResult(t, o, "", false)
	do(t, o, gives("2"), "2")
}

func onceRetention(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	o := primitives.NewOnce(m, key)
	short, long := primitives.NewOnce(m, key+"/short").WithRetention(time.Second), primitives.NewOnce(m, key+"/long").WithRetention(time.Hour)
	for _, o := range []*primitives.Once{o, short, long} {
		do(t, o, gives("1"), "1")
	}
	waitInfo(t, m, key+"/short", "swept", func(i fabric.Info) bool {
		if _, err := m.Collect(waitContext(t), key); err != nil {
			t.Fatal(err)
		}
		return i.Kind == ""
	})
	do(t, short, gives("2"), "2")
	for _, o := range []*primitives.Once{o, long} {
		do(t, o, gives("2"), "1")
	}
	if got := read(t, m, key+"/long").Retention; got != time.Hour {
		t.Errorf("stays for %v", got)
	}
	for _, d := range []time.Duration{-1, 1, time.Second - 1, 1 << 62} {
		if _, err := o.WithRetention(d).Do(waitContext(t), gives("3")); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("%v: %v", d, err)
		}
	}
}

func onceKind(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l, err := m.Acquire(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	o := primitives.NewOnce(m, key)
	_, _, result := o.Result(waitContext(t))
	for what, err := range map[string]error{"do": second(o.Do(waitContext(t), gives("x"))), "result": result, "forget": o.Forget(waitContext(t))} {
		if !errors.Is(err, fabric.ErrKindMismatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	release(t, l)
}

func onceCrash(t *testing.T, s *site) {
	key := s.key(t)
	dying := primitives.NewOnce(s.manager(t), key, fabric.WithTTL(300*time.Millisecond), fabric.WithAutoRenew(false))
	end := make(chan struct{})
	started := make(chan uint64, 1)
	first := async(func() ([]byte, error) {
		return dying.Do(t.Context(), func(ctx context.Context, token uint64) ([]byte, error) {
			started <- token
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), fabric.ErrLost) {
				t.Errorf("ends with %v", context.Cause(ctx))
			}
			<-end
			return []byte("late"), nil
		})
	})
	token := receive(t, started)
	next := primitives.NewOnce(s.manager(t), key)
	do(t, next, func(_ context.Context, later uint64) ([]byte, error) {
		if later <= token {
			t.Errorf("token %d after %d", later, token)
		}
		return []byte("next"), nil
	}, "next")
	close(end)
	if r := receive(t, first); !errors.Is(r.err, fabric.ErrLost) {
		t.Errorf("finished after the loss: %q, %v", r.value, r.err)
	}
	wantResult(t, next, "next", true)
}

func onceCancelled(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	o := primitives.NewOnce(m, key)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := o.Do(ctx, func(ctx context.Context, _ uint64) ([]byte, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	expectFree(t, m, key)
	// What is done is stored, also when nobody waits for it any more.
	ctx, cancel = context.WithCancel(t.Context())
	if got, err := o.Do(ctx, func(context.Context, uint64) ([]byte, error) {
		cancel()
		return []byte("done"), nil
	}); err != nil || string(got) != "done" {
		t.Errorf("%q, %v", got, err)
	}
	wantResult(t, o, "done", true)
}

func ExampleOnce() {
	ctx := context.Background()
	m, stop := embed(ctx)
	defer stop()
	schema := primitives.NewOnce(m, "schema")
	for range 2 {
		result, err := schema.Do(ctx, func(context.Context, uint64) ([]byte, error) {
			fmt.Println("migrating")
			return []byte("version 7"), nil
		})
		fmt.Println(string(result), err)
	}
	// Output:
	// migrating
	// version 7 <nil>
	// version 7 <nil>
}
