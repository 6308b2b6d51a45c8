package fabric_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var (
	setsRun  = flag.Duration("sets.run", 0, "how long TestM14_RandomSetsAndPaths runs on each site, leaders resigning on three servers; 0 is the short form")
	setsSeed = flag.Uint64("sets.seed", 1, "seed of TestM14_RandomSetsAndPaths")
)

// forest notes what is held, and knows what may not be held together: a lock on a path is one
// on all that is below it.
type forest struct {
	t    *testing.T
	mu   sync.Mutex
	held map[*fabric.Set][]fabric.Want
}

// excludes reports whether two locks on these paths exclude each other.
func excludes(a, b fabric.Want) bool {
	announced := func(m fabric.Mode) fabric.Mode {
		if m == "S" || m == "IS" {
			return "IS"
		}
		return "IX"
	}
	switch {
	case a.Key == b.Key:
		return !compatible(a.Mode, b.Mode)
	case strings.HasPrefix(b.Key, a.Key+"/"):
		return !compatible(a.Mode, announced(b.Mode))
	case strings.HasPrefix(a.Key, b.Key+"/"):
		return !compatible(announced(a.Mode), b.Mode)
	}
	return false
}

func (f *forest) add(s *fabric.Set, wants []fabric.Want) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other, held := range f.held {
		for _, a := range wants {
			for _, b := range held {
				if excludes(a, b) && other.Err() == nil && s.Err() == nil {
					f.t.Errorf("%v is held beside %v", a, b)
				}
			}
		}
	}
	f.held[s] = wants
}

func (f *forest) remove(s *fabric.Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, s)
}

// randomWants are one to three paths in a tree of four levels.
func randomWants(r *rand.Rand, root string) []fabric.Want {
	seen := map[string]bool{}
	var wants []fabric.Want
	for range 1 + r.IntN(3)*r.IntN(2) {
		levels := []string{root}
		for range r.IntN(4) {
			levels = append(levels, strconv.Itoa(r.IntN(3)))
		}
		path := strings.Join(levels, "/")
		if !seen[path] {
			wants = append(wants, fabric.Want{Key: path, Mode: modes[r.IntN(len(modes))], Path: true})
		}
		seen[path] = true
	}
	return wants
}

// Sets and paths of many clients never wait for each other in a circle, whatever they list first.
func TestM14_RandomSetsAndPaths(t *testing.T) {
	long := *setsRun > 0
	run := func(t *testing.T, s *site) {
		clients, last := 12, max(*setsRun, time.Second)
		if long {
			clients = 32
		}
		root := s.tree(t)
		f := &forest{t: t, held: map[*fabric.Set][]fabric.Want{}}
		var granted, converted atomic.Int64
		var all sync.WaitGroup
		end := time.Now().Add(last)
		for i := range 3 {
			m := s.manager(t, fabric.WithIntentLinger(time.Duration(i)*time.Millisecond), fabric.WithoutDeadlockDetection())
			for j := range clients / 3 {
				r := rand.New(rand.NewPCG(*setsSeed, uint64(10*i+j)))
				all.Go(func() {
					for (time.Now().Before(end) || granted.Load() < int64(clients)) && !t.Failed() {
						f.client(m, r, root, &granted, &converted)
					}
				})
			}
		}
		if long && s == clusterSite {
			all.Go(func() { resign(t, s, end) })
		}
		all.Wait()
		t.Logf("%d granted, %d converted", granted.Load(), converted.Load())
		m := s.manager(t)
		eventually(t, "nothing is left", func() bool {
			left, err := m.List(waitContext(t), root+"/")
			return err == nil && len(left) == 0 && free(t, m, root)
		})
	}
	onSite(t, singleSite, run)
	onSite(t, coalescedSite, run)
	if long {
		onSite(t, beltSite, run)
		onSite(t, clusterSite, run)
	}
}

// client acquires once, in one of the ways there are.
func (f *forest) client(m *fabric.Manager, r *rand.Rand, root string, granted, converted *atomic.Int64) {
	wants := randomWants(r, root)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var s *fabric.Set
	var err error
	switch r.IntN(4) {
	case 0:
		s, err = m.TryAcquireAll(ctx, wants)
	case 1:
		short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(5000))*time.Microsecond)
		s, err = m.AcquireAll(short, wants)
		cancel()
	default:
		s, err = m.AcquireAll(ctx, wants)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		f.t.Errorf("not granted in %v, of %v: %v", patience, wants, err)
		return
	case errors.Is(err, fabric.ErrHeld), errors.Is(err, context.DeadlineExceeded):
		return
	default:
		f.t.Error(err)
		return
	}
	granted.Add(1)
	f.add(s, wants)
	for i := range wants { // weaker, which never waits
		if w := wants[i]; r.IntN(3) == 0 && w.Mode == "X" && len(wants) == 1 {
			f.remove(s)
			if err := s.Convert(ctx, w.Key, "IX"); err == nil {
				converted.Add(1)
			} else {
				f.t.Error(err)
			}
			f.add(s, []fabric.Want{{Key: w.Key, Mode: "IX"}})
		}
	}
	time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
	f.remove(s)
	if err := s.Release(ctx); err != nil && !errors.Is(err, fabric.ErrUnconfirmed) {
		f.t.Error(err)
	}
}

// resign has the leader of the locks resign again and again.
func resign(t *testing.T, s *site, end time.Time) {
	for time.Now().Before(end) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := s.cluster.StepDown(ctx, "KV_"+fabric.DefaultFabric+"-locks"); err != nil {
			t.Log(err)
		}
		cancel()
		time.Sleep(3 * time.Second)
	}
}
