package benchmarks

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// inTurn is two clients of one mutex that lock it in turn.
func inTurn(opts ...fabric.Option) maker {
	return func(t testing.TB, s *servers, key string, clients int) round {
		both := []round{mutexWith(opts...)(t, s, key, clients), mutexWith(opts...)(t, s, key, clients)}
		return func(ctx context.Context, n int) error { return both[n%2](ctx, n) }
	}
}

// BenchmarkKept measures mutexes that stay with their process, beside the same ones that don't, and redsync: 64 clients of
// which each has one of its own, two clients of one, and two that lock it in turn. An iteration is a turn of each system; what is reported is a
// round, lock and unlock, of the median turn, in microseconds.
func BenchmarkKept(b *testing.B) {
	s := &servers{replicas: 1}
	if addr := startRedis(b, false); addr != "" {
		s.redis = append(s.redis, addr)
	}
	s.startNATS(b, 1, false)
	systems := []string{"kept", "not kept", "Redis"}
	direct := fabric.WithRoad(fabric.RoadDirect)
	makers := []maker{mutexWith(direct, fabric.WithKeep(time.Minute)), mutexWith(direct), redisMutex}
	own, both := wanted(64, true), wanted(2, false)
	own.by, both.by = makers, makers
	for _, r := range []row{own, both, {what: "two clients in turn", clients: 1, by: []maker{inTurn(direct, fabric.WithKeep(time.Minute)), inTurn(direct), nil}}} {
		b.Run(r.what, func(b *testing.B) {
			crews, each, turns := make([]*crew, len(makers)), make([]int, len(makers)), make([][]time.Duration, len(makers))
			run := func(i, n int) time.Duration {
				took, err := crews[i].run(b.Context(), n)
				if err != nil {
					b.Fatal(err)
				}
				return took
			}
			for i, make := range r.by {
				if make == nil || !s.installed(systems[i]) {
					continue
				}
				crews[i] = &crew{TB: b}
				b.Cleanup(crews[i].end)
				for client := range r.clients {
					key := plain(r.what + systems[i])
					if r.own {
						key += fmt.Sprint("-", client)
					}
					crews[i].rounds = append(crews[i].rounds, make(crews[i], s, key, r.clients))
				}
				run(i, 5) // opens what is opened once, and is kept from then on
				each[i] = max(5, int(*turn/(run(i, 20)*time.Duration(r.clients))))
			}
			for b.Loop() {
				for i, c := range crews {
					if c != nil {
						turns[i] = append(turns[i], run(i, each[i]))
					}
				}
			}
			for i, list := range turns {
				if list != nil {
					b.ReportMetric(micros(median(list)), "µs-"+plain(systems[i]))
				}
			}
		})
	}
}
