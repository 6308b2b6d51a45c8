package jskv_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
)

// BenchmarkGroups compares writes and deletions of as many keys at a time that go alone with those of a bucket
// that commits in groups, in turns within one run. "ratio" is the median over the turns of the former's time
// divided by the latter's.
func BenchmarkGroups(b *testing.B) {
	for name, mode := range map[string]embedded.SyncMode{"synced": embedded.SyncAlways, "file": embedded.SyncInterval(time.Minute), "replicated": embedded.SyncAlways} {
		for _, keys := range []int{64, 256} {
			b.Run(name+"/"+strconv.Itoa(keys), func(b *testing.B) {
				var dial func() (*nats.Conn, error)
				if name == "replicated" {
					servers := cluster.Run(b, 3)
					dial = func() (*nats.Conn, error) { return servers.Connect() }
				} else {
					srv, err := embedded.Start(b.Context(), embedded.WithTempStore(), embedded.WithSync(mode), embedded.WithListen("127.0.0.1:0"))
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { _ = srv.Shutdown(b.Context()) })
					dial = func() (*nats.Conn, error) { return nats.Connect(srv.ClientURL()) }
				}
				nc, err := dial()
				if err != nil {
					b.Fatal(err)
				}
				defer nc.Close()
				var buckets [2]*jskv.Bucket // alone, in groups
				for i := range buckets {
					all, err := jskv.Open(b.Context(), nc, jskv.Config{Fabric: "bench"})
					if err != nil {
						b.Fatal(err)
					}
					buckets[i] = all.Locks[0]
				}
				buckets[1].CommitInGroups()
				var ratios []float64
				for i := range max(b.N, 6) {
					alone, groups := benchmarkCrowd(b, buckets[0], keys), benchmarkCrowd(b, buckets[1], keys)
					if i > 0 {
						ratios = append(ratios, float64(alone)/float64(groups))
					}
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[len(ratios)/2], "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// benchmarkCrowd returns how long ten writes and deletions of each key take.
func benchmarkCrowd(b *testing.B, bucket *jskv.Bucket, keys int) time.Duration {
	value := make([]byte, 200)
	began := time.Now()
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			key := fmt.Sprint("k", i)
			e, err := bucket.Get(b.Context(), key)
			rev := e.Revision
			for n := 0; n < 20 && err == nil; n++ {
				var next uint64
				if n%2 == 0 {
					next, err = bucket.Update(b.Context(), key, value, rev, 0)
				} else {
					next, err = bucket.Purge(b.Context(), key, rev, jskv.MarkerTTL)
				}
				if errors.Is(err, jskv.ErrBusy) {
					n, err = n-1, nil
					continue
				}
				rev = next
			}
			if err != nil {
				b.Error(err)
			}
		})
	}
	all.Wait()
	return time.Since(began)
}
