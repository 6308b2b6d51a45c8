package coalesce

import (
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkPairs measures an acquire and a release on the direct road and over an owner. All clients use one key, or each client
// has a key of its own. Each client has its own connection.
func BenchmarkPairs(b *testing.B) {
	for _, clients := range []int{1, 2, 8, 64} {
		for _, keys := range []string{"one", "own"} {
			for _, road := range []string{"direct", "owner", "turns"} {
				name := keys + "/" + road + "/" + string(rune('0'+clients/10)) + string(rune('0'+clients%10))
				b.Run(name, func(b *testing.B) { benchmarkPairs(b, clients, keys == "one", road) })
			}
		}
	}
}

func benchmarkPairs(b *testing.B, clients int, oneKey bool, road string) {
	w := newWorld(b)
	w.noTurns = road != "turns"
	var o *owner
	overOwner := road != "direct"
	if overOwner {
		o = w.process(RouterConfig{}).serve()
	}
	all := make([]*process, clients)
	for i := range all {
		all[i] = w.process(RouterConfig{Always: overOwner})
		if overOwner {
			all[i].meet()
		}
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	writes := func() (n uint64) {
		for _, p := range all {
			n += p.engine.Stats().Writes
		}
		if o != nil {
			n += o.p.engine.Stats().Writes
		}
		return n
	}
	before := writes()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, p := range all {
		key := "k"
		if !oneKey {
			key += string(rune('a'+i/26)) + string(rune('a'+i%26))
		}
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				id, _, err := p.acquire(key)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := p.release(key, id); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
	b.ReportMetric(float64(writes()-before)/float64(b.N), "writes/pair")
	turns := uint64(0)
	for _, p := range all {
		turns += p.client.Stats().Turns
	}
	b.ReportMetric(float64(turns)/float64(b.N), "turns/pair")
}
