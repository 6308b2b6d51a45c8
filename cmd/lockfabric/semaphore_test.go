//go:build unix

package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRunSemaphore(t *testing.T) {
	t.Parallel()
	m := manager(t)
	pool := func(args ...string) []string { return append([]string{"run", "pool", "--semaphore", "3"}, args...) }
	two := start(t, lockfabric(t, pool("--permits", "2", "--meta", "why=test", "--", self(t), "child", "TERM")...))
	two.ready()
	one := start(t, lockfabric(t, pool("--", self(t), "child", "TERM")...))
	one.ready()
	for _, tt := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{pool("--wait", "0", "--", "echo", "in"), 75, "not acquired"},
		{pool("--wait", "50ms", "--no-takeover", "--", "echo", "in"), 75, "or wait longer"},
		{[]string{"run", "pool", "--semaphore", "4", "--", "echo", "in"}, 65, "has 3 permits, not 4"},
		{[]string{"run", "pool", "--", "echo", "in"}, 65, fmt.Sprintf("is of kind semaphore, not lock: held by %s on %s pid %d and 1 more: use another", filepath.Base(self(t)), hostname(), two.cmd.Process.Pid)},
		{[]string{"run", "pool", "--semaphore", "2147483648", "--", "echo", "in"}, 64, "give 1 to 2147483647"},
		{pool("--permits", "4", "--", "echo", "in"), 64, "--permits=4"},
		{[]string{"run", "pool", "--permits", "2", "--", "echo", "in"}, 64, "--semaphore"},
		{[]string{"run", "pool", "--semaphore=-1", "--", "echo", "in"}, 64, "--semaphore=-1"},
		{pool("--shared", "--", "echo", "in"), 64, "--shared"},
		{pool("--wait", "1s", "--deadline-check", "--", "echo", "in"), 64, "--deadline-check"},
	} {
		code, stdout, stderr := run(t, lockfabric(t, tt.args...))
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.stderr) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, want %d, stdout %q, stderr %q", tt.args, code, tt.code, stdout, stderr)
		}
	}
	// Two wait, as the first of them needs more than one that comes back.
	first := start(t, lockfabric(t, pool("--permits", "2", "--", "sh", "-c", `echo "$LOCKFABRIC_KEY"`)...))
	waiters(t, m, "pool", 1)
	second := start(t, lockfabric(t, pool("--", self(t), "child", "TERM")...))
	waiters(t, m, "pool", 2)
	code, stdout, stderr := run(t, lockfabric(t, "inspect", "pool"))
	for _, want := range []string{"3 of 3 permits taken", "PERMITS", "why=test"} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("inspect: exit code %d, no %q in %q, %s", code, want, stdout, stderr)
		}
	}
	if _, stdout, _ = run(t, lockfabric(t, "ls")); !strings.Contains(strings.Join(strings.Fields(stdout), " "), "pool semaphore 3/3 2 2 ") {
		t.Errorf("ls: %q", stdout)
	}
	one.signal(killable)
	one.exits(0)
	waiters(t, m, "pool", 2)
	two.signal(killable)
	two.exits(0)
	first.expect("pool")
	first.exits(0)
	second.ready()

	// A permit that was taken away ends its command.
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "pool")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	second.expect("got TERM")
	second.exits(76)
	if code, _, stderr := run(t, lockfabric(t, "run", "pool", "--semaphore", "5", "--", "true")); code != 0 {
		t.Errorf("a size of its own, when nobody uses it: exit code %d, %s", code, stderr)
	}
}

// The permits of a process that was killed come back when its lease has ended.
func TestPermitsOfTheDeadComeBack(t *testing.T) {
	t.Parallel()
	dead := start(t, lockfabric(t, "run", "pool", "--semaphore", "2", "--permits", "2", "--ttl", "1s", "--", self(t), "child", "TERM"))
	dead.ready()
	_ = dead.cmd.Process.Kill()
	dead.wait()
	began := time.Now()
	if code, stdout, stderr := run(t, lockfabric(t, "run", "pool", "--semaphore", "2", "--", "echo", "in")); code != 0 || stdout != "in\n" {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	if time.Since(began) < 500*time.Millisecond {
		t.Errorf("granted after %v, beside a lease of 1s", time.Since(began))
	}
}
