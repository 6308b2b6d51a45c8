package fabric_test

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// roadClient is a client with a lock that nobody else wants.
type roadClient struct {
	nc  *nats.Conn
	m   *fabric.Manager
	key string
}

func (s *site) roadClient(t testing.TB, opts ...fabric.Option) roadClient {
	t.Helper()
	nc := s.conn(t)
	return roadClient{nc, newManager(t, nc, opts...), s.key(t)}
}

// pairs acquires and releases n times.
func (c roadClient) pairs(t testing.TB, n int) {
	for range n {
		l, err := c.m.Acquire(t.Context(), c.key)
		if err == nil {
			err = l.Release(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// meet has the client learn of the coalescer, by an acquire of another lock that has to wait.
func (c roadClient) meet(t testing.TB, s *site) {
	t.Helper()
	key, holder := s.key(t), newManager(t, s.conn(t))
	held, err := holder.Acquire(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		l, err := c.m.Acquire(t.Context(), key)
		if err == nil {
			err = l.Release(t.Context())
		}
		done <- err
	}()
	for c.m.Stats().CoalescerTerm == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the client hears nothing of the coalescer")
		}
		time.Sleep(time.Millisecond)
	}
	if err := held.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
}

// besideACoalescer returns a client of the direct road and two of the automatic one: the coalescer of the fabric is known to
// one of them.
func besideACoalescer(t testing.TB) (s *site, direct, automatic, met roadClient) {
	t.Helper()
	s = &site{coalesced: true} // of its own, where nobody else sends anything
	if s.start(); s.err != nil {
		t.Fatal(s.err)
	}
	t.Cleanup(func() {
		for _, end := range s.end {
			end()
		}
		_ = s.server.Shutdown(context.Background())
	})
	direct, automatic, met = s.roadClient(t, fabric.WithRoad(fabric.RoadDirect)), s.roadClient(t), s.roadClient(t)
	met.meet(t, s)
	for _, c := range []roadClient{direct, automatic, met} {
		c.pairs(t, 50)
	}
	return s, direct, automatic, met
}

// A lock that nobody else wants costs the same messages, of all parties, and the same allocations, the server's
// included, whether or not somebody serves, and whether or not the client knows.
func TestCoalescer_UncontendedCostsNothing(t *testing.T) { // not parallel: it counts the allocations of the process
	s, direct, automatic, met := besideACoalescer(t)
	type cost struct{ sent, received, serverIn, serverOut, allocations uint64 }
	const pairs, turns = 20, 60
	count := func(c roadClient) cost {
		time.Sleep(time.Millisecond) // until the server has counted its last answer
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		st, server := c.nc.Stats(), s.server.Stats()
		return cost{st.OutMsgs, st.InMsgs, server.InMessages, server.OutMessages, mem.Mallocs}
	}
	spent := func(c roadClient) cost {
		a := count(c)
		c.pairs(t, pairs)
		b := count(c)
		return cost{b.sent - a.sent, b.received - a.received, b.serverIn - a.serverIn, b.serverOut - a.serverOut, b.allocations - a.allocations}
	}
	clients := []roadClient{direct, automatic, met}
	var messages [3]cost            // the least, which is free of what goes on in the background
	var more [3][]int64             // allocations, than on the direct road in the same turn
	inEach := func(i int) float64 { // the median
		slices.Sort(more[i])
		return float64(more[i][len(more[i])/2]) / pairs
	}
	const most = 1.25
	for turn := 0; turn < turns || turn < 5*turns && max(inEach(1), inEach(2)) > most; turn++ { // more turns, less noise
		if met.m.Stats().CoalescerTerm == 0 { // it was silent for too long, on this machine
			met.meet(t, s)
		}
		var first uint64
		for i, c := range clients {
			n, least := spent(c), &messages[i]
			if i == 0 {
				first = n.allocations
			}
			more[i] = append(more[i], int64(n.allocations)-int64(first))
			if turn == 0 {
				*least = n
			}
			*least = cost{min(least.sent, n.sent), min(least.received, n.received), min(least.serverIn, n.serverIn), min(least.serverOut, n.serverOut), 0}
		}
	}
	for i, who := range []string{"directly", "beside a coalescer", "beside one that the client knows"} {
		t.Logf("%d pairs %s: %+v; in each %v allocations more, in %d turns", pairs, who, messages[i], inEach(i), len(more[i]))
		if messages[i] != messages[0] || inEach(i) > most {
			t.Errorf("%d pairs %s: %+v, and %+v directly; in each %v allocations more", pairs, who, messages[i], messages[0], inEach(i))
		}
	}
	if st := fabric.Roads(automatic.m); st.Frames+st.Hellos > 0 || automatic.m.Stats().CoalescerTerm != 0 {
		t.Errorf("asked the coalescer: %+v", st)
	}
	if met.m.Stats().CoalescerTerm == 0 {
		t.Error("the coalescer is not known any more")
	}
}

// BenchmarkUncontendedBesideACoalescer compares pairs of one client on the direct road and on the automatic one, in turns.
// "ratio" is the median over the turns of the automatic road's rate divided by the direct one's, "least" and "most" are
// quartiles.
func BenchmarkUncontendedBesideACoalescer(b *testing.B) {
	_, direct, automatic, met := besideACoalescer(b)
	const pairs = 2000
	for name, c := range map[string]roadClient{"unknown": automatic, "known": met} {
		b.Run(name, func(b *testing.B) {
			run := func(c roadClient) float64 {
				start := time.Now()
				c.pairs(b, pairs)
				return float64(time.Since(start))
			}
			var ratios []float64
			for b.Loop() {
				var times [2]float64
				for i := range times { // each is the first one in half of the turns
					which := (i + len(ratios)) % 2
					times[which] = run([]roadClient{direct, c}[which])
				}
				ratios = append(ratios, times[0]/times[1])
			}
			slices.Sort(ratios)
			n := len(ratios)
			b.ReportMetric(ratios[n/2], "ratio")
			b.ReportMetric(ratios[n/4], "lower-quartile")
			b.ReportMetric(ratios[3*n/4], "upper-quartile")
		})
	}
}
