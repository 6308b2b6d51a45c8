//go:build unix

package main

import (
	"strings"
	"syscall"
	"testing"
)

// leftDead has a run hold the key, kills it, and waits until what a process says that hasn't seen it before tells so.
func leftDead(t *testing.T, ttl, key, word string, args ...string) {
	t.Helper()
	victim := start(t, lockfabric(t, "run", "--ttl", ttl, key, "--", self(t), "child", "none"))
	victim.ready()
	victim.signal(syscall.SIGKILL)
	victim.wait()
	eventually(t, "the word that it looks dead", func() bool {
		_, stdout, _ := run(t, lockfabric(t, args...))
		return strings.Contains(stdout, word)
	})
}

// What a killed run leaves is shown as dead, and collected when somebody asks for that.
func TestGcCollectsWhatIsDead(t *testing.T) {
	t.Parallel()
	table := outputTable(t, outputDoc(t), "gc")
	gc := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"--output", "json", "gc"}, args...)...))
		if code != 0 {
			t.Fatalf("exit code %d, %s", code, stderr)
		}
		table.check(t, "gc", stdout)
		return strings.Join(strings.Fields(stdout), "")
	}
	live := start(t, lockfabric(t, "run", "jobs/live", "--", self(t), "child", "TERM"))
	live.ready()
	leftDead(t, "1s", "jobs/dead", "looks dead, renewed ", "inspect", "jobs/dead")
	const found = `{"locks":2,"leases":2,"dead":1,"freed":1,"entries":1,"swept":0}`
	eventually(t, "a dry run that finds it", func() bool { return gc("--dry-run") == found })
	if got := gc("jobs/"); got != found {
		t.Errorf("gc says %s", got)
	}
	if got := gc(); got != `{"locks":1,"leases":1,"dead":0,"freed":0,"entries":0,"swept":0}` {
		t.Errorf("afterwards gc says %s", got)
	}
	code, stdout, _ := run(t, lockfabric(t, "gc", "--dry-run", "none/"))
	if code != 0 || stdout != "0 of 0 processes dead; 0 entries of 0 locks would be removed\n" {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	live.signal(killable)
	live.exits(0)
	for _, w := range table.unproven() {
		t.Error(w)
	}
}
