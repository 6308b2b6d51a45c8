package doctor

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		a, b            string
		covers, overlap bool
	}{
		{"a.b", "a.b", true, true},
		{"a.b", "a.c", false, false},
		{"a.*", "a.b", true, true},
		{"a.b", "a.*", false, true},
		{"a.>", "a.b.c", true, true},
		{"a.>", "a.b.>", true, true},
		{"a.b.>", "a.>", false, true},
		{"a.*", "a.>", false, true},
		{"a.*.c", "a.b.*", false, true},
		{"a.>", "a", false, false},
		{"a", "a.b", false, false},
		{">", "a.b", true, true},
		{"*.b", "c.d", false, false},
	} {
		if got := covers(c.a, c.b); got != c.covers {
			t.Errorf("covers(%q, %q) = %v", c.a, c.b, got)
		}
		if x, y := overlap(c.a, c.b), overlap(c.b, c.a); x != c.overlap || y != c.overlap {
			t.Errorf("overlap(%q, %q) = %v, %v", c.a, c.b, x, y)
		}
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string][2]bool{ // older than 2.12.0, understood
		"2.12.0": {false, true}, "2.15.2": {false, true}, "2.12.0-RC.1": {false, true}, "v3.0.0": {false, true},
		"2.11.9": {true, true}, "1.99": {true, true}, "": {true, false}, "next": {true, false}, "x.1.2": {true, false},
	} {
		if older, ok := older(version, "2.12.0"); ok != want[1] || ok && older != want[0] {
			t.Errorf("%q: older %v, understood %v", version, older, ok)
		}
	}
}

func TestTimes(t *testing.T) {
	took := sum([]time.Duration{5 * time.Millisecond, time.Millisecond, 3 * time.Millisecond})
	if *took != (Times{Median: 3 * time.Millisecond, P99: 5 * time.Millisecond, Max: 5 * time.Millisecond}) {
		t.Errorf("%+v", took)
	}
	var many []time.Duration
	for i := range 200 {
		many = append(many, time.Duration(i+1)*time.Millisecond)
	}
	if took := sum(many); took.P99 != 198*time.Millisecond || took.Max != 200*time.Millisecond {
		t.Errorf("%+v", took)
	}
}

func TestLimits(t *testing.T) {
	for used, want := range map[int64]Status{79: OK, 80: Warning, 94: Warning, 95: Problem, 120: Problem} {
		e := &exam{report: &Report{}}
		e.limits([]jskv.Usage{{Resource: "streams", Used: used, Limit: 100}})
		if f := e.report.Findings; len(f) != 1 || f[0].Status != want {
			t.Errorf("%d of 100: %+v", used, f)
		}
	}
	e := &exam{report: &Report{}}
	if e.limits([]jskv.Usage{{Resource: "streams", Used: 1 << 40, Limit: -1}}); e.report.Findings[0].Status != OK {
		t.Errorf("no limit: %+v", e.report.Findings)
	}
}

// What no server in the other tests gets into.
func TestReplicas(t *testing.T) {
	for name, c := range map[string]struct {
		state jskv.BucketState
		check string
		want  Status
		text  string
	}{
		"no leader": {jskv.BucketState{Clustered: true, Replicas: 3}, "peers", Problem, "has no leader"},
		"behind":    {jskv.BucketState{Clustered: true, Replicas: 3, Leader: "a", Peers: []*jetstream.PeerInfo{{Name: "b", Current: true}, {Name: "c", Lag: 7}}}, "peers", Problem, "c is 7 writes behind"},
		"offline":   {jskv.BucketState{Clustered: true, Replicas: 3, Leader: "a", Peers: []*jetstream.PeerInfo{{Name: "b", Current: true}, {Name: "c", Offline: true}}}, "peers", Problem, "c is offline"},
		"lagging":   {jskv.BucketState{Clustered: true, Replicas: 3, Leader: "a", Peers: []*jetstream.PeerInfo{{Name: "b", Current: true}, {Name: "c", Current: true, Lag: farBehind + 1}}}, "peers", Warning, "writes behind"},
		"too few":   {jskv.BucketState{Clustered: true, Replicas: 3, Leader: "a", Peers: []*jetstream.PeerInfo{{Name: "b", Current: true}}}, "peers", Problem, "1 of 3"},
		"even":      {jskv.BucketState{Clustered: true, Replicas: 2, Leader: "a", Peers: []*jetstream.PeerInfo{{Name: "b", Current: true}}}, "replicas", Warning, "2 replicas"},
		"healthy":   {jskv.BucketState{Clustered: true, Replicas: 3, Leader: "a", Peers: []*jetstream.PeerInfo{{Name: "b", Current: true}, {Name: "c", Current: true}}}, "peers", OK, "3 of 3"},
	} {
		e := &exam{report: &Report{}}
		e.replicas(&c.state)
		found := false
		for _, f := range e.report.Findings {
			found = found || f.Check == c.check && f.Status == c.want && strings.Contains(f.Detail, c.text) && (f.Remedy != "" || f.Status == OK)
			if f.Check == c.check && f.Status != c.want {
				t.Errorf("%s: %+v", name, f)
			}
		}
		if !found {
			t.Errorf("%s: %+v", name, e.report.Findings)
		}
	}
}

func TestClock(t *testing.T) {
	for _, c := range []struct {
		off, within time.Duration
		want        Status
	}{
		{0, 0, OK}, {clockOff, 0, OK}, {-clockOff, 0, OK}, {clockOff + 1, 0, Warning}, {-clockOff - 1, 0, Warning},
		{clockOff + time.Second, time.Second, OK}, {clockOff + time.Second, time.Second - 1, Warning},
	} {
		e := &exam{report: &Report{}}
		e.clock(&jskv.BucketState{Clock: c.off, ClockError: c.within})
		if f := e.report.Findings; len(f) != 1 || f[0].Status != c.want {
			t.Errorf("%v, within %v: %+v", c.off, c.within, f)
		}
	}
}

// The page explains every check, and no other.
func TestPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "doctor.md"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^### `([a-z]+)`$").FindAllSubmatch(page, -1) {
		got = append(got, string(m[1]))
	}
	if !slices.Equal(got, Checks()) {
		t.Errorf("docs/doctor.md explains %q, the checks are %q", got, Checks())
	}
}
