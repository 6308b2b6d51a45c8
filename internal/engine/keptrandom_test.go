package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// K10, K13: two processes of two goroutines each, faults of the store, leases that end, operators, in random order.
func TestK13_RandomSchedules(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) { randomKeepers(t, seed) })
	}
}

// ring notes the holders, by their own knowledge: never two at a time.
type ring struct {
	mu     sync.Mutex
	holder *keeper
	joins  int
}

func randomKeepers(t *testing.T, seed uint64) {
	rnd, faults := rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(seed, 8))
	b := newBucket(t)
	b.fault = func(int) fault {
		return []fault{pass, pass, pass, pass, pass, loseReply, busy}[faults.IntN(7)]
	}
	var r ring
	var all sync.WaitGroup
	for i := range 2 {
		p := newKeeper(t, b, fmt.Sprint("L", i+1))
		p.linger = time.Duration(rnd.IntN(3)) * 500 * time.Millisecond
		for g := range 2 {
			own := rand.New(rand.NewPCG(seed, uint64(10*i+g)))
			all.Go(func() {
				for range 12 {
					p.work(own, &r)
				}
			})
		}
	}
	all.Wait()
	time.Sleep(time.Minute)
	synctest.Wait()
	if rec := b.record("k"); !rec.Idle() {
		t.Errorf("seed %d: left behind: %+v", seed, rec)
	}
}

func (p *keeper) work(rnd *rand.Rand, r *ring) {
	pause := func(most time.Duration) { time.Sleep(time.Duration(rnd.Int64N(int64(most)))) }
	ctx, cancel := context.WithCancel(p.t.Context())
	if rnd.IntN(5) == 0 {
		ctx, cancel = context.WithTimeout(p.t.Context(), time.Duration(rnd.IntN(300))*time.Millisecond)
	}
	defer cancel()
	e, joined, err := p.acquire(ctx)
	if err != nil {
		return
	}
	r.mu.Lock()
	if r.holder != nil {
		p.t.Errorf("%s and %s hold", r.holder.lease, p.lease)
	}
	r.holder = p
	if joined {
		r.joins++
	}
	r.mu.Unlock()
	pause([]time.Duration{time.Millisecond, 100 * time.Millisecond, 3 * time.Second}[rnd.IntN(3)])
	r.mu.Lock()
	r.holder = nil
	r.mu.Unlock()
	p.leave(e)
	pause([]time.Duration{time.Millisecond, 200 * time.Millisecond, 2 * time.Second}[rnd.IntN(3)])
}
