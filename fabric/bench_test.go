package fabric_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// link is how a benchmark reaches its server.
type link struct {
	name string
	dial func(*embedded.Server) (*nats.Conn, error)
}

var links = []link{
	{"inprocess", func(s *embedded.Server) (*nats.Conn, error) { return s.Connect(nats.ReconnectBufSize(-1)) }},
	{"tcp", func(s *embedded.Server) (*nats.Conn, error) {
		return nats.Connect(s.ClientURL(), nats.ReconnectBufSize(-1))
	}},
}

func benchServer(b *testing.B) *embedded.Server {
	b.Helper()
	srv, err := embedded.Start(b.Context(), embedded.WithStoreDir(b.TempDir()),
		embedded.WithSync(embedded.SyncInterval(time.Minute)), embedded.WithListen("127.0.0.1:0"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Shutdown(context.Background()) })
	return srv
}

func benchManager(b *testing.B, nc *nats.Conn, opts ...fabric.Option) *fabric.Manager {
	b.Helper()
	m, err := fabric.New(b.Context(), nc, opts...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	return m
}

// floor is what an acquire and a release can't be faster than: two
// compare-and-set writes of one key, a put of a record's size and a purge with a
// marker TTL, sent by the NATS client's own publish.
type floor struct {
	js      jetstream.JetStream
	subject string
	value   []byte
	rev     uint64
}

func newFloor(b testing.TB, nc *nats.Conn, key string) *floor {
	b.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	f := &floor{js: js, subject: "$KV." + fabric.DefaultFabric + "-locks." + key}
	f.value = make([]byte, 170) // about the size of a record with one holder
	for i := range f.value {
		f.value[i] = 'x'
	}
	return f
}

func (f *floor) pair(ctx context.Context) error {
	put, err := f.js.PublishMsg(ctx, &nats.Msg{Subject: f.subject, Header: nats.Header{}, Data: f.value},
		jetstream.WithExpectLastSequencePerSubject(f.rev))
	if err != nil {
		return err
	}
	purge := &nats.Msg{Subject: f.subject, Header: nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}}}
	ack, err := f.js.PublishMsg(ctx, purge, jetstream.WithExpectLastSequencePerSubject(put.Sequence), jetstream.WithMsgTTL(15*time.Minute))
	if err != nil {
		return err
	}
	f.rev = ack.Sequence
	return nil
}

// An acquire and a release take about 30 allocations less than the bare writes, the server's included.
func TestAllocationsOfAPair(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		f := newFloor(t, s.conn(t), strings.ReplaceAll(s.key(t), "/", "."))
		bare := testing.AllocsPerRun(300, func() {
			if err := f.pair(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		lock := testing.AllocsPerRun(300, func() {
			l, err := m.Acquire(t.Context(), key)
			if err == nil {
				err = l.Release(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%v allocations, the bare writes %v", lock, bare)
		if lock > bare+5 {
			t.Errorf("%v allocations, the bare writes take %v", lock, bare)
		}
	})
}

// BenchmarkUncontended compares acquire+release of a free lock with the floor,
// in turns within one run. "ratio" is the median over the turns of the lock's
// rate divided by the floor's; it does not depend on the machine's speed.
func BenchmarkUncontended(b *testing.B) {
	for _, l := range links {
		b.Run(l.name, func(b *testing.B) {
			srv := benchServer(b)
			nc, err := l.dial(srv)
			if err != nil {
				b.Fatal(err)
			}
			defer nc.Close()
			m := benchManager(b, nc)
			f := newFloor(b, nc, "floor")
			ctx := b.Context()
			lockPair := func() error {
				lock, err := m.Acquire(ctx, "bench")
				if err != nil {
					return err
				}
				return lock.Release(ctx)
			}
			run := func(n int, pair func() error) time.Duration {
				start := time.Now()
				for range n {
					if err := pair(); err != nil {
						b.Fatal(err)
					}
				}
				return time.Since(start)
			}
			floorPair := func() error { return f.pair(ctx) }
			run(200, lockPair)
			run(200, floorPair)
			before := m.Stats()
			b.ReportAllocs()
			b.ResetTimer()
			var ratios []float64
			var lockTime, floorTime time.Duration
			const turn = 200
			n := 0
			for n < b.N {
				k := min(turn, b.N-n)
				ft := run(k, floorPair)
				lt := run(k, lockPair)
				ratios = append(ratios, float64(ft)/float64(lt))
				lockTime += lt
				floorTime += ft
				n += k
			}
			b.StopTimer()
			slices.Sort(ratios)
			after := m.Stats()
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
			b.ReportMetric(float64(floorTime.Nanoseconds())/float64(n), "floor-ns/pair")
			b.ReportMetric(float64(lockTime.Nanoseconds())/float64(n), "lock-ns/pair")
			b.ReportMetric(float64(after.Writes-before.Writes)/float64(n), "writes/pair")
			b.ReportMetric(float64(after.Reads-before.Reads)/float64(n), "reads/pair")
		})
	}
}

// BenchmarkManyKeys runs acquire+release from 64 goroutines, each on a key of
// its own.
func BenchmarkManyKeys(b *testing.B) {
	srv := benchServer(b)
	nc, err := links[1].dial(srv)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	m := benchManager(b, nc)
	contendAll(b, 64, func(worker int) error {
		lock, err := m.Acquire(b.Context(), fmt.Sprintf("key-%d", worker))
		if err != nil {
			return err
		}
		return lock.Release(b.Context())
	})
}

// BenchmarkOneKeyOneProcess hands one lock over between 64 goroutines of one
// manager.
func BenchmarkOneKeyOneProcess(b *testing.B) {
	srv := benchServer(b)
	nc, err := links[1].dial(srv)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	m := benchManager(b, nc)
	contendAll(b, 64, func(int) error {
		lock, err := m.Acquire(b.Context(), "hot")
		if err != nil {
			return err
		}
		return lock.Release(b.Context())
	})
}

// BenchmarkOneKeyManyProcesses hands one lock over between managers with connections of their own:
// each for itself, and with a coalescer in the server's process or in another one's.
func BenchmarkOneKeyManyProcesses(b *testing.B) {
	onRoads(b, []int{2, 8, 16, 64}, func(int) string { return "hot" })
}

// BenchmarkOwnKeys compares 64 clients with connections of their own, each with a key of its own, with
// the bare writes of as many, in turns within one run.
func BenchmarkOwnKeys(b *testing.B) {
	const n, turn = 64, 10 * 64
	srv := benchServer(b)
	var managers [n]*fabric.Manager
	var floors [n]*floor
	for i := range n {
		nc, err := links[1].dial(srv)
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		managers[i], floors[i] = benchManager(b, nc), newFloor(b, nc, "floor-"+strconv.Itoa(i))
	}
	lockPair := func(worker int) error {
		lock, err := managers[worker].Acquire(b.Context(), "key-"+strconv.Itoa(worker))
		if err != nil {
			return err
		}
		return lock.Release(b.Context())
	}
	floorPair := func(worker int) error { return floors[worker].pair(b.Context()) }
	reportRatio(b, n, turn, floorPair, lockPair)
}

// reportRatio has n workers do turn calls of one, and then of other, again and again. "ratio" is the median over the turns
// of the former's time divided by the latter's.
func reportRatio(b *testing.B, n, turn int, one, other func(worker int) error) {
	run := func(pair func(int) error) time.Duration {
		start := time.Now()
		contend(b, n, turn, pair)
		return time.Since(start)
	}
	run(one)
	run(other)
	b.ResetTimer()
	var ratios []float64
	for range max(b.N/turn, 1) {
		ratios = append(ratios, float64(run(one))/float64(run(other)))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}

// BenchmarkOwnKeysManyProcesses is the same with a key for each of them.
func BenchmarkOwnKeysManyProcesses(b *testing.B) {
	onRoads(b, []int{64}, func(worker int) string { return "key-" + strconv.Itoa(worker) })
}

func onRoads(b *testing.B, counts []int, key func(worker int) string) {
	owners := []struct {
		name string
		link *link
	}{{"direct", nil}, {"coalesced", &links[0]}, {"coalesced-tcp", &links[1]}}
	for _, n := range counts {
		for _, owner := range owners {
			b.Run(strconv.Itoa(n)+"/"+owner.name, func(b *testing.B) {
				srv := benchServer(b)
				var serves *fabric.Manager
				if owner.link != nil {
					nc, err := owner.link.dial(srv)
					if err != nil {
						b.Fatal(err)
					}
					defer nc.Close()
					if serves, err = fabric.New(b.Context(), nc, fabric.WithCoalescer()); err != nil {
						b.Fatal(err)
					}
					defer func() { _ = serves.Close() }()
				}
				var managers []*fabric.Manager
				for range n {
					nc, err := links[1].dial(srv)
					if err != nil {
						b.Fatal(err)
					}
					defer nc.Close()
					managers = append(managers, benchManager(b, nc, fabric.WithRoad(fabric.RoadAutomatic)))
				}
				pair := func(worker int) error {
					lock, err := managers[worker].Acquire(b.Context(), key(worker))
					if err != nil {
						return err
					}
					return lock.Release(b.Context())
				}
				contend(b, n, 20*n, pair)
				writes := func() (sum uint64) {
					for _, m := range append(managers, serves) {
						if m != nil {
							sum += m.Stats().Writes
						}
					}
					return sum
				}
				before := writes()
				b.ResetTimer()
				contend(b, n, b.N, pair)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
				b.ReportMetric(float64(writes()-before)/float64(b.N), "writes/pair")
			})
		}
	}
}

// contendAll runs b.N operations from n goroutines.
func contendAll(b *testing.B, n int, op func(worker int) error) {
	b.Helper()
	b.ResetTimer()
	contend(b, n, b.N, op)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}

// contend runs so many operations from n goroutines.
func contend(b *testing.B, n, operations int, op func(worker int) error) {
	b.Helper()
	var wg sync.WaitGroup
	work := make(chan struct{}, n)
	for w := range n {
		wg.Go(func() {
			for range work {
				if err := op(w); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for range operations {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}
