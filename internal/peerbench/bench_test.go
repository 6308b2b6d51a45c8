package peerbench_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// Each benchmark runs lockfabric and etcd in turns within one run. "x-etcd" is the
// median over the turns of etcd's time divided by lockfabric's: above 1 lockfabric
// is faster. It depends less on the machine than the times beside it.

var disks = map[string]bool{"synced": true, "unsynced": false}

// BenchmarkUncontended is lock and unlock of a free lock by one client.
func BenchmarkUncontended(b *testing.B) {
	for name, synced := range disks {
		b.Run(name, func(b *testing.B) {
			versus(b, synced, 1, 50)
		})
	}
}

// BenchmarkContended is lock and unlock of one lock that several clients, each with
// a connection of its own, want all the time.
func BenchmarkContended(b *testing.B) {
	for name, synced := range disks {
		for _, clients := range []int{2, 8, 32} {
			b.Run(fmt.Sprintf("%s/%d", name, clients), func(b *testing.B) {
				versus(b, synced, clients, 200)
			})
		}
	}
}

// versus lets clients of both services take one lock in turns of so many pairs.
func versus(b *testing.B, synced bool, clients, turn int) {
	b.Helper()
	ours, theirs := crowd(b, startLockfabric, synced, clients), crowd(b, startEtcd, synced, clients)
	pairs(b, ours, turn)
	pairs(b, theirs, turn)
	b.ResetTimer()
	var ratios []float64
	var our, their time.Duration
	n := 0
	for ; n < b.N; n += turn {
		t, o := pairs(b, theirs, turn), pairs(b, ours, turn)
		ratios = append(ratios, float64(t)/float64(o))
		our += o
		their += t
	}
	b.StopTimer()
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-etcd")
	b.ReportMetric(float64(our.Nanoseconds())/float64(n), "lockfabric-ns/pair")
	b.ReportMetric(float64(their.Nanoseconds())/float64(n), "etcd-ns/pair")
}

func crowd(b *testing.B, s start, synced bool, n int) (clients []client) {
	b.Helper()
	service := s(b, synced)
	for range n {
		clients = append(clients, service.client(b, "bench"))
	}
	return clients
}

// pairs has the clients lock and unlock n times in all, and returns how long that
// took.
func pairs(b *testing.B, clients []client, n int) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	began := time.Now()
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for range work {
				if err := c.lock(ctx); err != nil {
					b.Error(err)
					return
				}
				if err := c.unlock(ctx); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}
