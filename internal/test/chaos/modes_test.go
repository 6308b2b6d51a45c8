package chaos_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var modesSeed = flag.Uint64("modes.seed", 0, "seed of the random conversions; 0 is a new one")

var allModes = strings.Fields("IS IX S SIX U X")

// beside is the table of the documents: which modes can be held at the same time.
var beside = map[string]string{"IS": "IS IX S SIX U", "IX": "IS IX", "S": "IS S U", "SIX": "IS", "U": "IS S", "X": ""}

func together(a, b string) bool { return slices.Contains(strings.Fields(beside[a]), b) }

// excludes reports whether mode a excludes every mode that b excludes.
func excludes(a, b string) bool {
	return !slices.ContainsFunc(allModes, func(m string) bool { return together(a, m) && !together(b, m) })
}

// common returns the strongest mode that both a and b include.
func common(a, b string) string {
	best := ""
	for _, m := range allModes {
		if excludes(a, m) && excludes(b, m) && (best == "" || excludes(m, best)) {
			best = m
		}
	}
	return best
}

// Every pair of modes, held by two processes.
func TestModesOfTwoProcesses(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := launchConverters(t, s.ClientURL(), 2)
	for _, a := range allModes {
		for _, b := range allModes {
			lock := fmt.Sprintf("pairs/%s/%s", a, b)
			if got := p[0].ask("try " + lock + " " + a); !strings.HasPrefix(got, "granted ") {
				t.Fatalf("%s of a free lock: %s", a, got)
			}
			got := p[1].ask("try " + lock + " " + b)
			switch {
			case !together(a, b):
				if got != "held "+a {
					t.Errorf("%s beside %s: %s", b, a, got)
				}
			case !strings.HasPrefix(got, "granted "):
				t.Errorf("%s beside %s: %s", b, a, got)
			default:
				p[1].ask("release")
			}
			if got := p[0].ask("release"); got != "released ok" {
				t.Errorf("release of %s: %s", a, got)
			}
		}
	}
}

// member is the oracle's state of one process.
type member struct {
	mode  string // held; "" = nothing
	want  string // it waits to be converted to; "" = it doesn't
	asked int    // orders conversions that wait
	since int    // orders holds
}

// group is one lock and the processes that use it.
type group struct {
	members []member
	clock   int
}

func (g *group) next() int { g.clock++; return g.clock }

// inTheWay returns the members whose modes don't allow i to hold the mode.
func (g *group) inTheWay(i int, mode string) (who []int) {
	for k, m := range g.members {
		if k != i && m.mode != "" && !together(m.mode, mode) {
			who = append(who, k)
		}
	}
	return who
}

func (g *group) try(i int, mode string) (granted bool) {
	if len(g.inTheWay(i, mode)) > 0 || slices.ContainsFunc(g.members, func(m member) bool { return m.want != "" }) {
		return false
	}
	g.members[i] = member{mode: mode, since: g.next()}
	return true
}

// convert says "granted", "waits" or "deadlock".
func (g *group) convert(i int, mode string) string {
	m := &g.members[i]
	blockers := g.inTheWay(i, mode)
	if excludes(m.mode, mode) || len(blockers) == 0 {
		m.mode = mode
		return "granted"
	}
	for _, k := range blockers {
		if other := g.members[k]; other.want != "" && !together(m.mode, other.want) {
			return "deadlock"
		}
	}
	m.want, m.asked = mode, g.next()
	return "waits"
}

// promote grants the conversions that can be granted, and returns their members.
func (g *group) promote() (who []int) {
	for {
		first := -1
		for i, m := range g.members {
			if m.want != "" && len(g.inTheWay(i, m.want)) == 0 && (first < 0 || m.asked < g.members[first].asked) {
				first = i
			}
		}
		if first < 0 {
			return who
		}
		g.members[first].mode, g.members[first].want = g.members[first].want, ""
		who = append(who, first)
	}
}

// state returns what Inspect has to show, as a sorted list of "MODE" and "MODE>WANTED".
func (g *group) state() []string {
	var out []string
	for _, m := range g.members {
		if m.mode != "" {
			out = append(out, strings.TrimSuffix(m.mode+">"+m.want, ">"))
		}
	}
	slices.Sort(out)
	return out
}

func shown(info fabric.Info) []string {
	var out []string
	for _, h := range info.Holders {
		out = append(out, strings.TrimSuffix(string(h.Mode)+">"+string(h.Converting), ">"))
	}
	slices.Sort(out)
	return out
}

// Random conversions of several processes have the outcomes that the oracle computes, and a circle
// of waiting processes is reported.
func TestRandomConversionsOfProcesses(t *testing.T) {
	t.Parallel()
	seed := *modesSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-modes.seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := startServer(t)
	m, _ := one(t, s)
	procs := launchConverters(t, s.ClientURL(), 4)
	const lock = "random/conversions"
	g := &group{members: make([]member, len(procs))}
	happened := map[string]int{}
	var last uint64 // the newest token that was seen: a later grant in another write has a larger one

	settle := func() {
		t.Helper()
		want := g.state()
		for ctx := testContext(t); ; time.Sleep(2 * time.Millisecond) {
			info, err := m.Inspect(ctx, lock)
			if err != nil {
				t.Fatalf("shown %v, the oracle says %v: %v", shown(info), want, err)
			}
			if slices.Equal(shown(info), want) {
				return
			}
		}
	}
	grants := func() {
		t.Helper()
		for _, i := range g.promote() {
			var mode string
			var token uint64
			got := procs[i].expect("converted ")
			if _, err := fmt.Sscanf(got, "granted %s %d", &mode, &token); err != nil || mode != g.members[i].mode || token < last {
				t.Fatalf("process %d, promoted to %s after token %d: %s", i, g.members[i].mode, last, got)
			}
			last = token
			happened["promoted"]++
		}
	}
	missing := func() []string {
		all := []string{"try granted", "try held", "cancel", "release", "promoted", "convert granted", "convert waits", "convert deadlock"}
		return slices.DeleteFunc(all, func(what string) bool { return happened[what] > 0 })
	}
	end := time.Now().Add(lasts(5 * time.Second))
	late := end.Add(90 * time.Second) // a busy machine does a tenth of the steps in the time
	for time.Now().Before(end) || len(missing()) > 0 && time.Now().Before(late) {
		i := rng.IntN(len(procs))
		p, me := procs[i], &g.members[i]
		mode := allModes[rng.IntN(len(allModes))]
		var did string
		switch {
		case me.mode == "":
			got := p.ask("try " + lock + " " + mode)
			did = "try " + map[bool]string{true: "granted", false: "held"}[g.try(i, mode)]
			if !strings.HasPrefix("try "+got, did) {
				t.Fatalf("process %d, try %s among %v: %s, the oracle says %s", i, mode, g.state(), got, did)
			}
			var token uint64
			if _, err := fmt.Sscanf(got, "granted %d", &token); err == nil {
				if token <= last {
					t.Fatalf("process %d was granted token %d after %d", i, token, last)
				}
				last = token
			}
		case me.want != "":
			if rng.IntN(3) > 0 {
				continue // let it wait
			}
			did = "cancel"
			old := me.mode
			me.mode, me.want = common(me.mode, me.want), ""
			p.say("cancel")
			if got := p.expect("converted "); !strings.HasPrefix(got, "cancelled "+me.mode+" ") {
				t.Fatalf("process %d, cancelled from %s: %s, the oracle says %s", i, old, got, me.mode)
			}
			grants()
		case rng.IntN(3) == 0:
			did = "release"
			*me = member{}
			if got := p.ask("release"); got != "released ok" {
				t.Fatalf("process %d: %s", i, got)
			}
			grants()
		default:
			old := me.mode
			before := g.state()
			outcome := g.convert(i, mode)
			did = "convert " + outcome
			p.say("convert " + mode)
			if outcome == "waits" {
				break
			}
			got := p.expect("converted ")
			if !strings.HasPrefix(got, outcome+" "+me.mode+" ") {
				t.Fatalf("process %d from %s to %s among %v: %s, the oracle says %s, %s", i, old, mode, before, got, outcome, me.mode)
			}
			grants()
		}
		happened[did]++
		settle()
	}
	t.Log(happened)
	if never := missing(); len(never) > 0 {
		t.Errorf("never happened: %q of %v", never, slices.Sorted(maps.Keys(happened)))
	}
}

// Readers in two processes both want to write: the second one gets the error.
func TestTwoReadersWhoWantToWrite(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	m, _ := one(t, s)
	p := launchConverters(t, s.ClientURL(), 2)
	for _, r := range p {
		if got := r.ask("try k S"); !strings.HasPrefix(got, "granted ") {
			t.Fatal(got)
		}
	}
	p[0].say("convert X")
	ctx := testContext(t)
	for {
		info, err := m.Inspect(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(shown(info), "S>X") {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	p[1].say("convert X")
	if got := p[1].expect("converted "); !strings.HasPrefix(got, "deadlock S ") {
		t.Fatalf("the second: %s", got)
	}
	if got := p[1].ask("release"); got != "released ok" {
		t.Fatal(got)
	}
	if got := p[0].expect("converted "); !strings.HasPrefix(got, "granted X ") {
		t.Fatalf("the first: %s", got)
	}
	if l, err := m.TryAcquire(context.Background(), "k"); err == nil {
		t.Errorf("held twice: %d", l.Token())
	}
}
