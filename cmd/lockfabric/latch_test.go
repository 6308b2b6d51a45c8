//go:build unix

package main

import (
	"strings"
	"testing"
)

func TestLatch(t *testing.T) {
	t.Parallel()
	m := manager(t)
	latch := func(code int, stdout, stderr string, args ...string) {
		t.Helper()
		c, out, text := run(t, lockfabric(t, append([]string{"latch"}, args...)...))
		if c != code || out != stdout || (text == "") != (stderr == "") || !strings.Contains(text, stderr) || strings.Count(text, "\n") > 1 {
			t.Errorf("latch %v: exit code %d, want %d; stdout %q; stderr %q", args, c, code, out, text)
		}
	}
	latch(65, "", "say with --count", "wait", "ready")
	latch(65, "", "say with --count", "count-down", "ready")
	latch(0, "", "", "delete", "ready") // there is none
	latch(64, "", "--count", "wait", "ready", "--count=-1")
	latch(64, "", "--wait", "wait", "ready", "--wait=-1s")
	latch(64, "", "--times", "count-down", "ready", "-n", "0")
	latch(64, "", "name", "delete", "")
	latch(75, "", "not passed in time", "wait", "ready", "--count", "3", "--wait", "0")
	waiting := start(t, lockfabric(t, "latch", "wait", "ready", "--count", "3", "--no-progress"))
	waiters(t, m, "ready", 1)
	latch(75, "", "waits for the latch", "delete", "ready")
	latch(0, "ready: 2 to go\n", "", "count-down", "ready")
	latch(65, "", "has 3 counts, not 4", "count-down", "ready", "--count", "4")
	latch(65, "", "has 3 counts, not 4", "wait", "ready", "--count", "4")
	latch(75, "", "not passed in time", "wait", "ready", "--wait", "50ms")
	if code, stdout, _ := run(t, lockfabric(t, "inspect", "ready")); code != 0 || !strings.Contains(stdout, "2 to go") {
		t.Errorf("inspect: exit code %d, %q", code, stdout)
	}
	for sig, code := range interrupts {
		p := start(t, lockfabric(t, "latch", "wait", "ready"))
		waiters(t, m, "ready", 2)
		p.signal(sig)
		p.exits(code)
		waiters(t, m, "ready", 1)
	}
	latch(0, "ready: open\n", "", "count-down", "ready", "--times", "2", "--count", "3")
	waiting.exits(0)
	latch(0, "", "", "wait", "ready")
	latch(0, "", "", "wait", "ready", "--wait", "0")
	latch(0, "ready: open\n", "", "count-down", "ready")
	if _, stdout, _ := run(t, lockfabric(t, "ls")); !strings.Contains(strings.Join(strings.Fields(stdout), " "), "ready latch open 0 0") {
		t.Errorf("ls: %q", stdout)
	}
	latch(0, "", "", "delete", "ready")
	if _, stdout, _ := run(t, lockfabric(t, "ls")); strings.Contains(stdout, "ready") {
		t.Errorf("ls: %q", stdout)
	}
	lock, err := m.Acquire(t.Context(), "lock")
	if err != nil {
		t.Fatal(err)
	}
	latch(65, "", "another kind", "wait", "lock")
	latch(65, "", "another kind", "count-down", "lock", "--count", "1")
	latch(65, "", "another kind", "delete", "lock")
	free(t, lock.Hold)
}
