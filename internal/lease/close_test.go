package lease_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

func TestCloseIsIdempotent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := l.Close(t.Context()); err != nil {
					t.Error(err)
				}
				if !b.dead(l.ID()) {
					t.Error("returned before the tombstone")
				}
			})
		}
		wg.Wait()
		if n := len(b.committed()); n != 2 {
			t.Errorf("%d writes in all", n)
		}
	})
}

func TestCloseResolvesUnknownOutcomes(t *testing.T) {
	for name, f := range map[string]func(n int) fault{
		"answer lost":  func(n int) fault { return fault{mute: n == 1} },
		"request lost": func(n int) fault { return fault{lost: n == 1} },
		"busy":         func(n int) fault { return [2]fault{{}, {err: jskv.ErrBusy}}[min(n, 2)%2] },
		"disconnected": func(n int) fault { return [2]fault{{}, {err: jskv.ErrNotSent}}[min(n, 2)%2] },
		"late": func(n int) fault {
			if n == 1 {
				return fault{late: sec}
			}
			return fault{delay: 1500 * ms}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				l := create(t, b, lease.Config{})
				b.hooks(func(n int, _ write) fault { return f(n) }, nil)
				if err := l.Close(t.Context()); err != nil || !b.dead(l.ID()) {
					t.Fatalf("%v, dead %v", err, b.dead(l.ID()))
				}
				time.Sleep(time.Minute)
				if n := len(b.committed()); n != 2 {
					t.Errorf("%d writes in all", n)
				}
			})
		})
	}
}

// A renewal that is still under way when the lease is closed may be committed first,
// or fail: in the end the tombstone is there, and nothing comes after it.
func TestCloseDuringARenewal(t *testing.T) {
	for _, late := range []time.Duration{1, 100 * ms, 3 * sec} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket()
			l := create(t, b, lease.Config{AutoRenew: true})
			b.hooks(func(n int, _ write) fault {
				if n == 1 {
					return fault{late: late}
				}
				return fault{delay: 50 * ms}
			}, nil)
			time.Sleep(10*sec + 500*ms) // within its timeout
			if err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if i := b.info(t, l.ID()); !i.Dead || i.Reason != lease.ReasonClosed {
				t.Errorf("late by %v: left behind %+v", late, i)
			}
		})
	}
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		outage(b)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*sec)
		defer cancel()
		if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*sec {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if l.Valid() {
			t.Error("valid after a Close that failed")
		}
		start = time.Now()
		if err := l.Close(context.Background()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 31500*ms {
			t.Errorf("without a deadline, after %v: %v", time.Since(start), err)
		}
		b.hooks(nil, nil)
		if err := l.Close(context.Background()); err != nil || !b.dead(l.ID()) {
			t.Errorf("with the server back: %v, dead %v", err, b.dead(l.ID()))
		}
	})
}

func TestCloseOfALostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		outage(b)
		<-l.Lost()
		time.Sleep(sec) // its tombstone is under way, in vain
		b.hooks(nil, nil)
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i := b.info(t, l.ID()); !i.Dead || i.Reason != lease.ReasonLost || !errors.Is(l.Err(), lease.ErrExpired) {
			t.Errorf("%+v, %v", i, l.Err())
		}
	})
}

func TestCloseOfALeaseThatWasDeclaredDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		rev := b.put(l.ID(), replace(`{"v":1,"id":"ID","state":"dead","reason":"expired","by":"x:1","at":1,"ttl":30000,"margin":1500}`, l.ID()))
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b.get(l.ID()).Revision != rev {
			t.Error("the tombstone was replaced")
		}
	})
}

func TestCloseRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		b.hooks(func(int, write) fault { return fault{err: kv.ErrRejected} }, nil)
		if err := l.Close(t.Context()); !errors.Is(err, kv.ErrRejected) {
			t.Errorf("error %v", err)
		}
	})
}
