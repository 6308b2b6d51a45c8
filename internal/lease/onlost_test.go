package lease_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
)

func TestOnLostOfTenThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 12_000
		l := create(t, newBucket(), lease.Config{})
		var mu sync.Mutex
		var calls []int
		mu.Lock() // as a caller may
		for i := range n {
			l.OnLost(func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if !errors.Is(err, lease.ErrExpired) || l.Valid() {
					t.Errorf("called with %v, valid %v", err, l.Valid())
				}
				calls = append(calls, i)
			})
		}
		mu.Unlock()
		<-l.Lost()
		synctest.Wait()
		if len(calls) != n || !slices.IsSorted(calls) || len(slices.Compact(calls)) != n {
			t.Errorf("%d calls, in order: %v", len(calls), slices.IsSorted(calls))
		}
	})
}

// The goroutine that finds the loss does not call the others: it may hold a lock that they need.
func TestOnLostIsNotCalledByWhoAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := newClock(1)
		l := create(t, newBucket(), lease.Config{Clock: clk})
		var mu sync.Mutex
		called := false
		l.OnLost(func(error) {
			mu.Lock()
			defer mu.Unlock()
			called = true
		})
		time.Sleep(100 * ms)
		clk.jump.Store(int64(time.Hour))
		mu.Lock()
		if l.Valid() || called {
			t.Errorf("called %v", called)
		}
		mu.Unlock()
		synctest.Wait()
		if !called {
			t.Error("not called")
		}
	})
}

func TestOnLostAfterTheLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := create(t, newBucket(), lease.Config{})
		<-l.Lost()
		for _, when := range []string{"lost", "closed"} {
			got := make(chan error, 2)
			var mu sync.Mutex
			mu.Lock()
			l.OnLost(func(err error) {
				mu.Lock()
				defer mu.Unlock()
				got <- err
			})
			mu.Unlock()
			synctest.Wait()
			if len(got) != 1 || !errors.Is(<-got, lease.ErrExpired) {
				t.Errorf("%s: not called once", when)
			}
			if err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
