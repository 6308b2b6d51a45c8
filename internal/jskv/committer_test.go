package jskv

import (
	"context"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

// crowded has so many single writes answered while as many are under way, each after d.
func (g *committer) crowded(n, out int, d time.Duration) {
	for range n {
		time.Sleep(d)
		g.mu.Lock()
		g.out = out
		g.mu.Unlock()
		g.answered("k", nil)
	}
	g.mu.Lock()
	g.out = 0
	g.mu.Unlock()
}

// Batches are made where they were measured to be faster, and while there are many writes at a time.
func TestGroupsWhereTheyAreFaster(t *testing.T) {
	const single = time.Millisecond
	begun := func(t *testing.T) *committer {
		g := &committer{met: map[string]time.Time{}}
		g.crowded(sampled+1, leastTogether, single)
		if !g.on {
			t.Fatal("a crowd of single writes was measured, and no batch is tried")
		}
		return g
	}
	batches := func(g *committer, n int, took time.Duration) {
		for range n {
			g.out += 64
			time.Sleep(took)
			g.batchAnswered(64, took/2, nil) // and as long again until the next one was sent
		}
	}
	for name, fn := range map[string]func(t *testing.T){
		"few writes at a time": func(t *testing.T) {
			g := &committer{met: map[string]time.Time{}}
			if g.crowded(10*sampled, leastTogether-1, single); g.on {
				t.Error("batches")
			}
		},
		"faster": func(t *testing.T) {
			g := begun(t)
			if batches(g, 100*tried, 64*single*3/4); !g.on || g.single != single {
				t.Errorf("single writes, after %v each", g.single)
			}
			time.Sleep(measured + 1)
			if batches(g, 1, single); g.on {
				t.Error("single writes are not measured again")
			}
		},
		"not faster": func(t *testing.T) {
			g := begun(t)
			if batches(g, tried, 64*single*9/10); g.on {
				t.Error("batches")
			}
			if g.crowded(2*sampled, leastTogether, single); g.on {
				t.Error("batches again, at once")
			}
			time.Sleep(measured + 1)
			if g.crowded(2*sampled, leastTogether, single); !g.on {
				t.Error("batches are not tried again")
			}
		},
		"no crowd any more": func(t *testing.T) {
			g := begun(t)
			batches(g, 2*tried, single)
			g.longest, g.out = longestGather, 1
			for range manyAlone + 1 {
				if m := g.join(&nats.Msg{}, "k", 0); m == nil {
					t.Fatal("alone")
				}
				time.Sleep(longestGather + 1)
			}
			synctest.Wait()
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.on {
				t.Error("batches")
			}
		},
		"gathered beside writes that go alone": func(t *testing.T) {
			g := begun(t)
			g.longest, g.lately, g.last = longestGather, 8*time.Millisecond, time.Now()
			m := g.join(&nats.Msg{}, "k", 0)
			for range 20 {
				g.out++
				time.Sleep(longestGather / 10)
				g.answered("other", nil)
			}
			select {
			case <-m.of.ready:
			default:
				t.Error("it still waits")
			}
		},
		"one write some time after a crowd": func(t *testing.T) {
			g := begun(t)
			batches(g, 2*tried, single)
			time.Sleep(longestGather + 1)
			if g.join(&nats.Msg{}, "k", 0) != nil {
				t.Error("it waits for others")
			}
		},
		"conflicts": func(t *testing.T) {
			g := begun(t)
			for n := 0; g.on && n < 10; n++ {
				g.out += 64
				if !g.batchAnswered(64, single, ErrBusy) {
					t.Error("members are not sent again")
				}
			}
			if g.on {
				t.Error("batches")
			}
		},
		"silence": func(t *testing.T) {
			g := begun(t)
			g.out += 64
			if g.batchAnswered(64, single, ErrUnknown) || g.on {
				t.Error("batches, or members that are sent again")
			}
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
}

// A write that finds nothing under way takes no allocation more.
func TestAloneAsWithoutGroups(t *testing.T) {
	b := &Bucket{prefix: "k.", atomic: true, trip: func(context.Context, *nats.Msg) (*nats.Msg, error) {
		return &nats.Msg{Data: []byte(`{"seq":12}`)}, nil
	}}
	cost := func() float64 {
		least := math.Inf(1)
		for range 50 { // some of which nothing else of the process falls into
			least = min(least, testing.AllocsPerRun(20, func() {
				if _, err := b.Update(t.Context(), "k", nil, 1, 0); err != nil {
					t.Error(err)
				}
			}))
		}
		return least
	}
	before := cost()
	b.CommitInGroups()
	if after := cost(); after > before {
		t.Errorf("%v allocations, %v without groups", after, before)
	}
}

// Who gives up before the batch is complete has sent nothing, and holds up nobody.
func TestAMemberThatGivesUp(t *testing.T) {
	b := &Bucket{prefix: "k.", atomic: true, trip: func(context.Context, *nats.Msg) (*nats.Msg, error) {
		return &nats.Msg{Data: []byte(`{"seq":12}`)}, nil
	}}
	gathered, send := b.Gather()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 * leastTogether {
		if _, err := b.Update(ctx, strconv.Itoa(gathered()), nil, 1, 0); err == nil {
			t.Error("it was written")
		}
	}
	send()
	if n := b.group.Load().out; n != 0 {
		t.Errorf("%d are under way", n)
	}
}
