package lease_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// outage loses everything.
func outage(b *bucket) {
	b.hooks(func(int, write) fault { return fault{lost: true} }, func(int, string) fault { return fault{lost: true} })
}

// A renewal that was committed but not acknowledged counts from its sending,
// however late the lease finds that out.
func TestRule6_LostAckDoesNotLengthenValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		time.Sleep(10 * sec)
		sent := time.Now()
		b.hooks(func(n int, _ write) fault { return fault{mute: n == 1, lost: n > 1} },
			func(int, string) fault { return fault{lost: true} })
		ctx, cancel := context.WithTimeout(t.Context(), 15*sec)
		defer cancel()
		if err := l.Renew(ctx); err == nil {
			t.Fatal("renewed without an answer")
		}
		if l.ValidUntil() != 28500*ms {
			t.Fatalf("an unknown outcome moved the deadline to %v", l.ValidUntil())
		}
		// Now the server answers again: the new attempt is refused and the read shows the
		// first. More is not answered.
		b.hooks(func(n int, _ write) fault { return fault{lost: n > 1} }, nil)
		ctx, cancel = context.WithTimeout(t.Context(), sec)
		defer cancel()
		if err := l.Renew(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if got := l.Remaining() + time.Since(sent); got != 28500*ms || l.Renewals() != 1 {
			t.Errorf("valid until %v after that attempt was sent, %d renewals", got, l.Renewals())
		}
	})
}

// Two attempts are under way; the first must not count from the second one's send time.
func TestRule6_OnlyTheStoredAttemptCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		time.Sleep(10 * sec)
		first := time.Now()
		// The first arrives 3 s after its timeout of 2 s, when the second, sent
		// in between, has been lost. A third finds the first.
		b.hooks(func(n int, _ write) fault {
			switch n {
			case 1:
				return fault{late: 3 * sec}
			case 2:
				return fault{lost: true}
			}
			return fault{delay: 1500 * ms}
		}, nil)
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(first); d < 5*sec {
			t.Fatalf("renewed after %v, before the late commit", d)
		}
		if got := l.Remaining() + time.Since(first); got != 28500*ms {
			t.Errorf("valid until %v after the stored attempt was sent", got)
		}
		// And it goes on from there.
		b.hooks(nil, nil)
		if err := l.Renew(t.Context()); err != nil || l.Remaining() != 28500*ms {
			t.Errorf("next renewal: %v, remaining %v", err, l.Remaining())
		}
	})
}

func TestRule6_LateAckRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		clk := newClock(1)
		l := create(t, b, lease.Config{TTL: 10 * sec, Clock: clk})
		time.Sleep(9 * sec)
		// The clock passes the deadline while the answer is under way, and no
		// timer has fired when it arrives.
		b.hooks(func(int, write) fault { return fault{slow: 400 * ms, forced: true} }, nil)
		time.AfterFunc(400*ms-1, func() { clk.jump.Store(int64(200 * ms)) })
		if err := l.Renew(t.Context()); !errors.Is(err, lease.ErrExpired) {
			t.Errorf("renewal: %v", err)
		}
		if l.Valid() || l.Renewals() != 0 || l.ValidUntil() != 9500*ms {
			t.Errorf("revived: valid %v until %v after %d", l.Valid(), l.ValidUntil(), l.Renewals())
		}
	})
}

func TestRule6_WhatIsNotOursEndsItAtOnce(t *testing.T) {
	foreign := `{"v":1,"id":"ID","state":"live","ttl":30000,"margin":1500,"nonce":"foreign"}`
	tomb := `{"v":1,"id":"ID","state":"dead","reason":"expired","by":"x:1","at":1,"ttl":30000,"margin":1500}`
	for name, change := range map[string]func(b *bucket, id string){
		"unrecognised nonce": func(b *bucket, id string) { b.put(id, replace(foreign, id)) },
		"tombstone":          func(b *bucket, id string) { b.put(id, replace(tomb, id)) },
		"malformed":          func(b *bucket, id string) { b.put(id, []byte("?")) },
		"marker":             func(b *bucket, id string) { b.purge(id) },
		"absent":             func(b *bucket, id string) { b.forget(id) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				l := create(t, b, lease.Config{AutoRenew: true})
				time.Sleep(sec)
				change(b, l.ID())
				start := time.Now()
				if err := l.Renew(t.Context()); !errors.Is(err, lease.ErrDead) || time.Since(start) != 0 {
					t.Fatalf("after %v: %v", time.Since(start), err)
				}
				if l.Valid() || !errors.Is(l.Err(), lease.ErrDead) {
					t.Fatalf("valid %v, %v", l.Valid(), l.Err())
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if !b.dead(l.ID()) {
					t.Error("no tombstone in the end")
				}
				for _, w := range b.committed()[1:] {
					if !w.Info.Dead {
						t.Error("the key was made again")
					}
				}
			})
		})
	}
}

func TestRule6_AStaleReadProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		old := b.get(l.ID())
		old.Value = []byte("not even a lease")
		time.Sleep(sec)
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sec)
		b.hooks(func(n int, _ write) fault { return fault{mute: n == 1} },
			func(n int, _ string) fault {
				if n == 1 {
					return fault{stale: &old}
				}
				return fault{}
			})
		if err := l.Renew(t.Context()); err != nil || l.Renewals() != 2 {
			t.Errorf("%v after %d renewals", err, l.Renewals())
		}
	})
}

// An unchanged revision does not prove that the attempt is lost: it may be committed
// later, and must then be recognised.
func TestRule6_AnUnchangedRevisionProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		// Every attempt times out, and arrives when two others have been sent.
		b.hooks(func(int, write) fault { return fault{late: 4500 * ms} }, nil)
		time.Sleep(5 * time.Minute)
		if !l.Valid() || l.Renewals() < 5 {
			t.Errorf("valid %v after %d renewals: %v", l.Valid(), l.Renewals(), l.Err())
		}
	})
}

// The handle must know before the others can.
func TestRule7_CloseEndsValidityBeforeItIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		var told atomic.Bool
		l.OnLost(func(err error) {
			time.Sleep(sec) // slow, on top
			told.Store(errors.Is(err, lease.ErrClosed))
		})
		sent := 0
		b.hooks(func(_ int, w write) fault {
			sent++
			if l.Valid() || !told.Load() || !w.Info.Dead {
				t.Errorf("sent while valid %v, told %v", l.Valid(), told.Load())
			}
			return fault{}
		}, nil)
		if err := l.Close(t.Context()); err != nil || sent != 1 {
			t.Fatalf("%v after %d writes", err, sent)
		}
		if i := b.info(t, l.ID()); !i.Dead || i.Reason != lease.ReasonClosed || i.By == "" || !i.At.Equal(time.Now()) {
			t.Errorf("tombstone %+v", i)
		}
		if last := b.committed()[1]; last.TTL != 24*time.Hour {
			t.Errorf("tombstone's server TTL %v", last.TTL)
		}
		if !errors.Is(l.Err(), lease.ErrClosed) {
			t.Errorf("reason %v", l.Err())
		}
	})
}

// A process that was stopped must not rely on its timers for an answer.
func TestAccessorsAskTheClockFirst(t *testing.T) {
	for name, ask := range map[string]func(l *lease.Lease) bool{
		"Valid":     func(l *lease.Lease) bool { return !l.Valid() },
		"Err":       func(l *lease.Lease) bool { return errors.Is(l.Err(), lease.ErrExpired) },
		"Remaining": func(l *lease.Lease) bool { return l.Remaining() == 0 },
		"Renew":     func(l *lease.Lease) bool { return errors.Is(l.Renew(context.Background()), lease.ErrExpired) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clk := newClock(1)
				l := create(t, newBucket(), lease.Config{Clock: clk})
				time.Sleep(100 * ms)
				clk.jump.Store(int64(28400 * ms))
				if !ask(l) {
					t.Error("answered without asking the clock")
				}
				select {
				case <-l.Lost():
				default:
					t.Error("answered before Lost was closed")
				}
			})
		})
	}
}

// Go's timers do not count a suspension; the lease notices the loss soon all the same.
func TestLossIsNoticedSoonAfterASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := newClock(1)
		l := create(t, newBucket(), lease.Config{Clock: clk})
		time.Sleep(100 * ms)
		clk.jump.Store(int64(time.Minute))
		if d := untilLost(t, l); d > sec {
			t.Errorf("noticed after %v", d)
		}
	})
}

func TestRenewalIsDueSoonAfterASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := newClock(1)
		l := create(t, newBucket(), lease.Config{AutoRenew: true, Clock: clk})
		time.Sleep(100 * ms)
		clk.jump.Store(int64(27 * sec)) // with 1.4 s left
		time.Sleep(sec)
		synctest.Wait()
		if l.Renewals() != 1 || !l.Valid() {
			t.Errorf("%d renewals, %v", l.Renewals(), l.Err())
		}
	})
}

func TestOutageShorterThanTheLeaseIsSurvived(t *testing.T) {
	for name, f := range map[string]fault{
		"silence": {lost: true}, "disconnected": {err: jskv.ErrNotSent}, "busy": {err: jskv.ErrBusy},
		"refused": {err: kv.ErrRejected}, "unclassified": {err: jskv.ErrUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				l := create(t, b, lease.Config{AutoRenew: true})
				time.Sleep(sec)
				b.hooks(func(int, write) fault { return f }, func(int, string) fault { return fault{err: kv.ErrUnavailable} })
				time.Sleep(25 * sec)
				if !l.Valid() {
					t.Fatal("given up too early")
				}
				b.hooks(nil, nil)
				time.Sleep(5 * time.Minute)
				if !l.Valid() {
					t.Fatalf("not recovered: %v", l.Err())
				}
			})
		})
	}
}

func TestOutageLongerThanTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		outage(b)
		if d := untilLost(t, l); d != 28500*ms || !errors.Is(l.Err(), lease.ErrExpired) {
			t.Errorf("lost after %v: %v", d, l.Err())
		}
		time.Sleep(5 * sec)
		b.hooks(nil, nil)
		time.Sleep(5 * sec)
		// Waiters need no observation if the holder writes the tombstone.
		if i := b.info(t, l.ID()); !i.Dead || i.Reason != lease.ReasonLost {
			t.Errorf("left behind %+v", i)
		}
	})
}

func TestBusyIsRetriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		b.hooks(func(n int, _ write) fault {
			if n <= 10 {
				return fault{err: jskv.ErrBusy}
			}
			return fault{}
		}, nil)
		start := time.Now()
		if err := l.Renew(t.Context()); err != nil || b.reads() != 0 {
			t.Fatalf("%v after %d reads", err, b.reads())
		}
		if d := time.Since(start); d == 0 || d > 320*ms {
			t.Errorf("took %v", d)
		}
	})
}

func TestValidDoesNotWaitForTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		b.hooks(func(int, write) fault { return fault{slow: 15 * sec, forced: true} }, nil)
		time.Sleep(11 * sec) // a renewal is under way and ignores its context
		start := time.Now()
		if !l.Valid() || time.Since(start) != 0 {
			t.Errorf("valid %v after %v", l.Valid(), time.Since(start))
		}
	})
}

func TestSawEndsItAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		stop := b.Watch(l.ID(), l.Saw)
		defer stop()
		l.Saw(jskv.Entry{Key: l.ID(), Deleted: true}) // from before the key was there
		time.Sleep(time.Minute)
		if !l.Valid() || l.Renewals() < 6 {
			t.Fatalf("renewals seen by the watch: %v", l.Err())
		}
		b.put(l.ID(), replace(`{"v":1,"id":"ID","state":"dead","reason":"expired","by":"x:1","at":1,"ttl":30000,"margin":1500}`, l.ID()))
		synctest.Wait()
		if !errors.Is(l.Err(), lease.ErrDead) {
			t.Errorf("reason %v", l.Err())
		}
	})
}

func replace(value, id string) []byte {
	const marker = `"ID"`
	for i := 0; i+len(marker) <= len(value); i++ {
		if value[i:i+len(marker)] == marker {
			return []byte(value[:i] + `"` + id + `"` + value[i+len(marker):])
		}
	}
	return []byte(value)
}
