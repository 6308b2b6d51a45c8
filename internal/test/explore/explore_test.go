package explore

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// node is how a state was reached.
type node struct {
	from int32
	move int32 // the number of the move among those of from
}

// report is what an exploration found.
type report struct {
	states, depth int
	complete      bool
	violation     string
	trace         []string
}

// explore visits every state of p, the nearest first, up to a number of states, and stops at the first
// violation.
func (p *program) explore(limit int) report {
	first := &state{key: nothing}
	for i := range first.clients {
		if i >= len(p.clients) {
			first.clients[i].phase = done
		}
	}
	var c canon
	seen := map[[2]uint64]struct{}{c.hash(first): {}}
	nodes := []node{{from: -1}}
	layer, at := []*state{first}, []int32{0}
	r := report{complete: true}
	for ; len(layer) > 0; r.depth++ {
		var nextLayer []*state
		var nextAt []int32
		for i, s := range layer {
			move := int32(0)
			found := int32(-1)
			w := walk{p: p, emit: func(n *state, _, violation string) {
				here := move
				move++
				if found >= 0 {
					return
				}
				if violation != "" {
					r.violation, found = violation, here
					return
				}
				h := c.hash(n)
				if _, ok := seen[h]; ok {
					return
				}
				if len(nodes) >= limit {
					r.complete = false
					return
				}
				seen[h] = struct{}{}
				kept := *n
				nextLayer, nextAt = append(nextLayer, &kept), append(nextAt, int32(len(nodes)))
				nodes = append(nodes, node{from: at[i], move: here})
			}}
			w.next(s)
			if r.violation == "" && w.moves == 0 {
				r.violation = w.atRest(s)
			}
			if r.violation != "" {
				r.states = len(nodes)
				r.trace = p.replay(first, nodes, at[i], found)
				return r
			}
			layer[i] = nil
		}
		layer, at = nextLayer, nextAt
	}
	r.states = len(nodes)
	return r
}

// replay describes the way to a node, and one move from there if that is not negative.
func (p *program) replay(first *state, nodes []node, at, last int32) (trace []string) {
	var moves []int32
	if last >= 0 {
		moves = append(moves, last)
	}
	for n := at; nodes[n].from >= 0; n = nodes[n].from {
		moves = append(moves, nodes[n].move)
	}
	s := first
	for _, move := range slices.Backward(moves) {
		count := int32(0)
		var then state
		text := ""
		w := walk{p: p, label: true, emit: func(n *state, what, _ string) {
			if count == move {
				then, text = *n, what
			}
			count++
		}}
		w.next(s)
		held := "nothing"
		switch {
		case then.key == s.key && then.rev == s.rev:
			held = "unchanged"
		case then.key.rec != nil:
			held = string(then.key.rec.Append(nil))
		case then.rev != 0:
			held = "a delete marker"
		}
		for k := range p.clients {
			if was, is := s.clients[k], then.clients[k]; was.op != nil && is.op != was.op && is.phase != lost && was.pc >= 0 && int(was.pc) < len(is.result) {
				text += fmt.Sprintf("; %s is told: %s", leaseOf(k), is.result[was.pc])
			}
		}
		if held == "unchanged" {
			trace = append(trace, text)
		} else {
			trace = append(trace, fmt.Sprintf("%s\n        %d: %s", text, then.rev, held))
		}
		kept := then
		s = &kept
	}
	return trace
}

func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nafter %d steps (%d states seen):\n", r.violation, len(r.trace), r.states)
	for i, line := range r.trace {
		fmt.Fprintf(&b, "  %2d. %s\n", i+1, line)
	}
	return b.String()
}

var long = flag.Bool("explore.long", false, "explore the larger programs, too")

// larger marks a program that is for the long form.
func larger(p program) program {
	p.larger = true
	return p
}

// Limits of one exploration, in states.
const raceLimit, ciLimit, longLimit = 500, 250_000, 20_000_000

// exploreAll explores programs, each of which has to be exhausted without a violation.
func exploreAll(t *testing.T, programs []program) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			limit := ciLimit
			if *long {
				limit = longLimit
			} else if p.larger {
				t.Log("only with -explore.long")
				return
			}
			if raceDetector {
				limit = raceLimit
			}
			began := time.Now()
			r := p.explore(limit)
			switch {
			case r.violation != "":
				t.Fatal(r.String())
			case !r.complete && !raceDetector:
				t.Fatalf("not exhausted after %d states, %d steps deep", r.states, r.depth)
			}
			t.Logf("%d states, %d steps deep, %s", r.states, r.depth, time.Since(began).Round(time.Millisecond))
		})
	}
}

// missed explores a program whose clients break a rule, which has to be found.
func missed(t *testing.T, p program, violation string) {
	t.Helper()
	r := p.explore(ciLimit)
	if !strings.Contains(r.violation, violation) {
		t.Fatalf("found in %d states: %q, not %q", r.states, r.violation, violation)
	}
	t.Logf("found in %d steps: %s", len(r.trace), r.violation)
}
