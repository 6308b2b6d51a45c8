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

// decides plays turns of both ways until it is decided, and returns which it is. cost is what a write takes in the n-th turn
// of a way, from 1.
func (g *committer) decides(cost func(batches bool, n int) time.Duration) (batches bool) {
	var n [2]int
	was := !g.on
	for time.Now().After(g.until) {
		way := 0
		if g.on {
			way = 1
		}
		if g.on != was {
			was = g.on
			n[way]++
		}
		if d := cost(g.on, n[way]); g.on {
			g.together(64, d)
		} else {
			g.crowded(1, leastTogether, d)
		}
	}
	return g.on
}

// together has a batch of n answered, in which a write took d.
func (g *committer) together(n int, d time.Duration) {
	g.out += n
	time.Sleep(time.Duration(n) * d)
	g.batchAnswered(n, time.Duration(n)*d/2, nil) // and as long again until the next one was sent
}

// burst has n single writes begin, and all answered after n times d, as by a server that syncs each.
func (g *committer) burst(n int, d time.Duration) {
	for range n {
		g.join(&nats.Msg{}, "k", 0)
	}
	time.Sleep(time.Duration(n) * d)
	for range n {
		g.answered("k", nil)
	}
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
	// with returns what batches take as a part of that, and in the n-th turn of one way a hundred times as much.
	with := func(part float64, bad bool, n int) func(bool, int) time.Duration {
		return func(batches bool, turn int) time.Duration {
			d := single
			if batches {
				d = time.Duration(part * float64(single))
			}
			if batches == bad && turn == n {
				d *= 100
			}
			return d
		}
	}
	for name, fn := range map[string]func(t *testing.T){
		"few writes at a time": func(t *testing.T) {
			g := &committer{met: map[string]time.Time{}}
			if g.crowded(20*sampled, leastTogether-1, single); g.on {
				t.Error("batches")
			}
		},
		"faster": func(t *testing.T) {
			g := begun(t)
			if !g.decides(with(0.75, false, 0)) {
				t.Error("single writes")
			}
			time.Sleep(measured + 1)
			for range 2 * sampled / 64 {
				g.together(64, single)
			}
			if g.on || g.slower > 0 {
				t.Error("single writes are not measured again, before anything counts")
			}
			if g.decides(with(0.9, false, 0)) {
				t.Error("batches, which are not faster any more")
			}
		},
		"not faster": func(t *testing.T) {
			g := begun(t)
			if g.decides(with(0.9, false, 0)) {
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
		"a bad moment": func(t *testing.T) {
			for turn := 1; turn < 2*enough; turn++ {
				for _, of := range []bool{false, true} {
					if g := (&committer{met: map[string]time.Time{}}); !g.decides(with(0.5, of, turn)) {
						t.Errorf("single writes, after the turn %d, of batches: %v", turn, of)
					}
					if g := (&committer{met: map[string]time.Time{}}); g.decides(with(2, of, turn)) {
						t.Errorf("batches, after the turn %d, of batches: %v", turn, of)
					}
				}
			}
		},
		"the answers to a crowd come at once, and there are pauses": func(t *testing.T) {
			for part, want := range map[float64]bool{0.75: true, 0.9: false} {
				g := &committer{met: map[string]time.Time{}}
				for wave := 0; time.Now().After(g.until); wave++ {
					if wave%5 == 4 {
						time.Sleep(time.Minute)
					}
					if !g.on {
						g.burst(64, single)
						continue
					}
					if g.next != nil || g.out > 0 {
						t.Fatalf("%+v is left", g.next)
					}
					g.begins()
					g.together(64, time.Duration(part*float64(single)))
				}
				if g.on != want {
					t.Errorf("batches take %v of the time of single writes: %v", part, g.on)
				}
			}
		},
		"all who came back are there": func(t *testing.T) {
			g := begun(t)
			g.together(64, single)
			g.longest = longestGather
			for n := range 64 {
				m := g.join(&nats.Msg{}, strconv.Itoa(n), 0)
				if sent := g.next == nil; m == nil || sent != (n == 63) {
					t.Fatalf("%d came of 64: sent %v", n+1, sent)
				}
			}
		},
		"no crowd any more": func(t *testing.T) {
			g := begun(t)
			g.together(64, single)
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
			g.longest, g.lately, g.back = longestGather, 8*time.Millisecond, time.Now()
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
			g.together(64, single)
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
			time.Sleep(2 * time.Second)
			if g.crowded(2*sampled, leastTogether, single); g.on {
				t.Error("batches again, although none was ever answered")
			}
		},
		"silence after an answer": func(t *testing.T) {
			g := begun(t)
			g.together(64, single)
			g.out += 64
			if g.batchAnswered(64, single, ErrUnknown) || g.on {
				t.Error("batches, or members that are sent again")
			}
			time.Sleep(2 * time.Second)
			if g.crowded(2*sampled, leastTogether, single); !g.on {
				t.Error("no batch is tried again")
			}
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
}

// A write that finds nothing under way takes no allocation more.
func TestAloneAsWithoutGroups(t *testing.T) {
	b := &Bucket{prefix: "k.", atomic: true, request: func(context.Context, *nats.Msg) (*nats.Msg, error) {
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
	b := &Bucket{prefix: "k.", atomic: true, request: func(context.Context, *nats.Msg) (*nats.Msg, error) {
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
