package explore

import (
	"hash/maphash"
	"testing"
	"time"
)

// machine is a state of a model, which says itself what can happen in it.
type machine interface {
	key(b []byte) []byte // the same for equal states
	tidy()               // forgets what can't matter any more
	moves(emit func(n machine, what, violation string))
	stuck() string // what is wrong if nothing more happens, "" for nothing
}

// exhaust visits every state, the nearest first, and returns how many there are and a way to a violation.
func exhaust(first machine, limit int) (states int, violation string, complete bool) {
	type step struct {
		from int
		what string
	}
	var buf []byte
	hash := func(s machine) [2]uint64 {
		buf = s.key(buf[:0])
		return [2]uint64{maphash.Bytes(seeds[0], buf), maphash.Bytes(seeds[1], buf)}
	}
	seen := map[[2]uint64]struct{}{hash(first): {}}
	layer, at, steps := []machine{first}, []int{0}, []step{{-1, "start"}}
	for len(layer) > 0 {
		var next []machine
		var nextAt []int
		for i, s := range layer {
			moved, own := false, hash(s)
			emit := func(n machine, what, bad string) {
				if violation != "" {
					return
				}
				if bad == "" {
					n.tidy()
					k := hash(n)
					moved = moved || k != own
					if _, ok := seen[k]; ok {
						return
					}
					seen[k] = struct{}{}
				}
				steps = append(steps, step{at[i], what})
				next, nextAt = append(next, n), append(nextAt, len(steps)-1)
				violation = bad
			}
			s.moves(emit)
			if !moved && violation == "" {
				if violation = s.stuck(); violation != "" {
					steps = append(steps, step{at[i], "stop"})
				}
			}
			if violation != "" {
				trace := violation
				for k := len(steps) - 1; k > 0; k = steps[k].from {
					trace = steps[k].what + "\n" + trace
				}
				return len(seen), trace, false
			}
			if len(seen) > limit {
				return len(seen), "", false
			}
		}
		layer, at = next, nextAt
	}
	return len(seen), "", true
}

// exhausts explores a program, which may violate nothing and has to come to an end, but with the race detector.
func exhausts(t *testing.T, explore func(limit int) (states int, violation string, complete bool), limit int) {
	t.Helper()
	began := time.Now()
	states, violation, complete := explore(limit)
	switch {
	case violation != "":
		t.Fatal(violation)
	case !complete && !raceDetector:
		t.Fatalf("not exhausted after %d states", states)
	}
	t.Logf("%d states, %s", states, time.Since(began).Round(time.Millisecond))
}
