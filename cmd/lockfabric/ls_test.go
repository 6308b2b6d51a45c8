//go:build unix

package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestLsLong(t *testing.T) {
	t.Parallel()
	m := manager(t)
	holder := start(t, lockfabric(t, "run", "photos/a", "--owner", "Zoë\x1b[2J", "--meta", "job=nightly", "--", self(t), "child", "TERM"))
	holder.ready()
	waiter := start(t, lockfabric(t, "run", "photos/a", "--shared", "--", "true"))
	waiters(t, m, "photos/a", 1)
	code, stdout, stderr := run(t, lockfabric(t, "ls", "--long", "photos/"))
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if code != 0 || stderr != "" || len(lines) != 3 || !strings.HasPrefix(lines[0], "KEY ") {
		t.Fatalf("exit code %d, %s%s", code, stdout, stderr)
	}
	for i, want := range [][]string{{"holds", " X ", hostname(), " live ", `"Zoë\x1b[2J"`, "job=nightly"}, {"waits", " S ", hostname(), " live "}} {
		for _, w := range append(want, "photos/a") {
			if !strings.Contains(lines[i+1], w) {
				t.Errorf("no %q in %q", w, lines[i+1])
			}
		}
	}
	var infos []fabric.Info
	_, stdout, _ = run(t, lockfabric(t, "--output", "json", "ls", "--long"))
	if err := json.Unmarshal([]byte(stdout), &infos); err != nil || len(infos) != 1 || infos[0].Holders[0].Lease.PID != holder.cmd.Process.Pid {
		t.Errorf("%v: %s", err, stdout)
	}
	holder.signal(killable)
	holder.exits(0)
	waiter.exits(0)
}

func TestLsWatch(t *testing.T) {
	t.Parallel()
	m := manager(t)
	lock, err := m.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	timed := outputTable(t, outputDoc(t), "ls and inspect").with(outputTable(t, outputDoc(t), "inspect --watch"))
	text, objects := start(t, lockfabric(t, "ls", "--watch")), start(t, lockfabric(t, "--output", "json", "ls", "--watch"))
	for i, want := range []string{"KIND", " a lock X ", " b lock X ", " a - "} {
		if line := strings.Join(strings.Fields(text.line()), " "); !strings.Contains(line, want) {
			t.Fatalf("no %q in %q", want, line)
		}
		if i > 0 {
			timed.check(t, "ls --watch", objects.line())
		}
		switch i { // one after the other has changed
		case 1:
			_, err = m.Acquire(t.Context(), "b")
		case 2:
			err = lock.Release(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*proc{text, objects} {
		p.signal(os.Interrupt)
		p.exits(0)
	}
}

func TestReleasePrefix(t *testing.T) {
	t.Parallel()
	m := manager(t)
	locks := map[string]*fabric.Lock{}
	for _, key := range []string{"photos/a", "photos/b", "films/a"} {
		l, err := m.Acquire(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		locks[key] = l
	}
	for _, tt := range []struct {
		args, want string
		code       int
	}{
		{"--prefix photos/", "--yes", 64},
		{"--prefix --yes --holder x.1 photos/", "--holder", 64},
		{"--prefix --yes nobodys/", "nothing was taken\n", 0},
		{"--prefix --yes --now photos/", "photos/a: taken from 1 holder(s)", 0},
		{"--prefix --yes --output json films", `"key": "films/a"`, 0},
		{"--prefix --yes --output json nobodys/", "[]\n", 0},
	} {
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"release", "--force"}, strings.Fields(tt.args)...)...))
		if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("%s: exit code %d, %s%s", tt.args, code, stdout, stderr)
		}
		if tt.code == 64 && locks["photos/a"].Err() != nil {
			t.Errorf("%s: taken", tt.args)
		}
	}
	for _, l := range locks {
		<-l.Lost()
	}
}
