package explore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

func (s *keptState) moves(emit func(n machine, what, violation string)) {
	step := func(what string, do func(n *keptState) string) {
		n := s.clone()
		bad := do(n)
		emit(n, what, bad)
	}
	spend := func(budget int, what string, do func(n *keptState) string) {
		if s.left[budget] > 0 {
			step(what, func(n *keptState) string {
				n.left[budget]--
				return do(n)
			})
		}
	}
	for f, what := range s.flight {
		arrives := func(n *keptState) string {
			n.flight = slices.Delete(n.flight, f, f+1)
			n.arrive(what)
			return ""
		}
		step(what+" arrives", arrives)
		spend(0, what+" arrives, and once more later", func(n *keptState) string {
			n.arrive(what)
			return ""
		})
		spend(1, what+" is lost", func(n *keptState) string {
			n.flight = slices.Delete(n.flight, f, f+1)
			return ""
		})
	}
	for i := range s.procs {
		p, name := &s.procs[i], turnLease(i)
		if p.dead {
			if s.now.rec.HasLease(name) {
				step(name+" is evicted", func(n *keptState) string {
					n.write(record.Op{Verb: record.OpEvict, Leases: []string{name}})
					return ""
				})
			}
			if !s.out("lease") {
				continue
			}
		} else {
			s.processMoves(i, step, spend)
		}
		for u := range p.users {
			s.userMoves(i, u, step, spend)
		}
	}
}

type (
	keptStep  = func(what string, do func(n *keptState) string)
	keptSpend = func(budget int, what string, do func(n *keptState) string)
)

func (s *keptState) processMoves(i int, step keptStep, spend keptSpend) {
	p, name := &s.procs[i], turnLease(i)
	if p.known.rev != s.now.rev {
		step(name+" hears of the record", func(n *keptState) string { return n.hear(i) })
	}
	if p.id != "" && p.open && !p.used {
		spend(4, name+" gives up what it keeps", func(n *keptState) string {
			n.letGo(i)
			return ""
		})
	}
	spend(3, name+" loses its lease", func(n *keptState) string {
		d := &n.procs[i]
		d.dead = true
		if n.out("lease") {
			return ""
		}
		d.id, d.backlog = "", nil
		clear(d.ledger)
		for u := range d.users {
			d.users[u] = keptUser{}
		}
		return ""
	})
	underWay := func(id string) bool {
		return slices.ContainsFunc(s.flight, func(f string) bool { return strings.HasSuffix(f, " "+id) })
	}
	for id := range p.ledger {
		switch {
		case underWay(id):
		case s.now.rec.Has(id):
			step(name+" releases "+id+" again", func(n *keptState) string {
				n.send("release", id)
				return ""
			})
		default:
			step(name+" is told that "+id+" is released", func(n *keptState) string {
				delete(n.procs[i].ledger, id)
				return ""
			})
		}
	}
	for u, k := range p.users {
		if k.phase == turnWaits && k.id != "" && !k.listed && !underWay(k.id) && !s.now.rec.Has(k.id) {
			step(name+" asks again", func(n *keptState) string {
				n.send("acquire", n.procs[i].users[u].id)
				return ""
			})
		}
	}
}

func (s *keptState) userMoves(i, u int, step keptStep, spend keptSpend) {
	p, k := &s.procs[i], s.procs[i].users[u]
	name := fmt.Sprint(turnLease(i), u)
	switch k.phase {
	case turnIdle:
		if k.left == 0 || u > 0 && p.users[u-1].left >= k.left && p.users[u-1].phase == turnIdle {
			return // of equal ones the first asks first
		}
		step(name+" asks", func(n *keptState) string {
			p := &n.procs[i]
			p.users[u].phase = turnWaits
			switch {
			case !p.used && len(p.backlog) == 0 && n.passable(i):
				return n.join(i, u)
			case p.id != "" && p.open:
				p.backlog = append(p.backlog, u)
			default:
				n.ask(i, u)
			}
			return ""
		})
	case turnWaits:
		spend(2, name+" gives up", func(n *keptState) string {
			p := &n.procs[i]
			if id := p.users[u].id; id != "" {
				n.release(i, id)
			}
			p.backlog = slices.DeleteFunc(p.backlog, func(o int) bool { return o == u })
			p.users[u] = keptUser{left: p.users[u].left - 1}
			return ""
		})
	case turnHolds:
		step(name+" releases", func(n *keptState) string { return n.leave(i, u) })
	}
}

// explore visits every state, the nearest first.
func (p *keptProgram) explore(limit int) (states int, violation string, complete bool) {
	first := &keptState{p: p, left: [5]int{p.copies, p.lost, p.cancels, p.deaths, p.pokes}}
	for i, rounds := range p.rounds {
		first.procs[i].ledger = map[string]uint64{}
		for _, n := range rounds {
			first.procs[i].users = append(first.procs[i].users, keptUser{left: n})
		}
	}
	return exhaust(first, limit)
}

// keptPrograms are exhausted in CI, keptPrograms and largerKept in the long form.
var keptPrograms = map[string]keptProgram{
	"two and two":         {rounds: [2][]int{{1, 1}, {1, 1}}},
	"again and again":     {rounds: [2][]int{{2, 1}, {1}}, pokes: 1},
	"a copy":              {rounds: [2][]int{{2}, {1}}, copies: 1, pokes: 1},
	"one lost":            {rounds: [2][]int{{1, 1}, {1}}, lost: 1},
	"a cancel":            {rounds: [2][]int{{1, 1}, {1}}, cancels: 1},
	"a death":             {rounds: [2][]int{{1, 1}, {1}}, deaths: 1},
	"one process, a copy": {rounds: [2][]int{{2, 1}, {}}, copies: 1, pokes: 1},
}

var largerKept = map[string]keptProgram{
	"a copy, a death":    {rounds: [2][]int{{1, 1}, {1}}, copies: 1, deaths: 1, pokes: 1},
	"a cancel, one lost": {rounds: [2][]int{{1, 1}, {1}}, cancels: 1, lost: 1},
	"two and two, twice": {rounds: [2][]int{{2, 1}, {1, 1}}, pokes: 1},
}

// TestKept exhausts small programs of kept locks, with the real record.
func TestKept(t *testing.T) {
	all, limit := []map[string]keptProgram{keptPrograms}, ciLimit
	switch {
	case raceDetector:
		limit = raceLimit
	case *long:
		all, limit = append(all, largerKept), longLimit
	}
	for _, programs := range all {
		for name, p := range programs {
			t.Run(name, func(t *testing.T) {
				exhausts(t, p.explore, limit)
			})
		}
	}
}

// Without each rule the exploration finds what goes wrong.
func TestKeptRules(t *testing.T) {
	for rule, program := range map[string]string{
		"lease": "a death", "handle": "again and again", "waiters": "again and again", "drain": "two and two", "draining": "again and again",
		"ghosts": "one process, a copy",
	} {
		t.Run(rule, func(t *testing.T) {
			p := keptPrograms[program]
			p.without = rule
			states, violation, _ := p.explore(ciLimit)
			if violation == "" {
				t.Fatalf("not missed in %d states", states)
			}
			t.Logf("%d states, %d steps: %s", states, strings.Count(violation, "\n"), violation[strings.LastIndex(violation, "\n")+1:])
		})
	}
}
