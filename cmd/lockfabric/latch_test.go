//go:build unix

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
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
	latch(64, "", "--count=0: give 1", "wait", "ready", "--count", "0")
	latch(64, "", "--count=0: give 1", "count-down", "ready", "--count", "0")
	latch(64, "", "give 1 to 2147483647", "count-down", "ready", "--count", "2147483648")
	latch(64, "", "give 1 to 2147483647", "count-down", "ready", "-n", "2147483648")
	latch(64, "", "--wait", "delete", "ready", "--wait=-1s")
	latch(64, "", "--wait", "wait", "ready", "--wait=-1s")
	latch(64, "", "--times", "count-down", "ready", "-n", "0")
	latch(64, "", "name", "delete", "")
	latch(75, "", "not passed in time", "wait", "ready", "--count", "3", "--wait", "0")
	waiting := start(t, lockfabric(t, "latch", "wait", "ready", "--count", "3", "--no-progress", "--ttl", "20s"))
	waiters(t, m, "ready", 1)
	if info, err := m.Inspect(t.Context(), "ready"); err != nil || info.Waiters[0].Lease.TTL != 20*time.Second {
		t.Errorf("with --ttl 20s: %+v, %v", info.Waiters, err)
	}
	latch(75, "", fmt.Sprintf("held by latch on %s pid %d since", hostname(), waiting.cmd.Process.Pid), "delete", "ready")
	latch(75, "", "that one waits for the latch", "delete", "ready", "--wait", "1s")
	latch(0, "ready: 2 to go\n", "", "count-down", "ready")
	latch(65, "", "has 3 counts, not 4", "count-down", "ready", "--count", "4")
	latch(65, "", "has 3 counts, not 4", "wait", "ready", "--count", "4")
	latch(75, "", "not passed in time", "wait", "ready", "--wait", "1s")
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
	latch(65, "", "of kind lock, not latch: held by ", "count-down", "lock", "--count", "1")
	latch(65, "", "of kind lock, not latch: held by ", "delete", "lock")
	free(t, lock.Hold)
}

// A latch and a barrier are removed with those who wait there, whatever number they were made with.
func TestReleaseRemovesLatchesAndBarriers(t *testing.T) {
	t.Parallel()
	m := manager(t)
	release := func(name, want string) {
		t.Helper()
		if code, stdout, stderr := run(t, lockfabric(t, "release", "--force", name)); code != 0 || stdout != want {
			t.Errorf("exit code %d, %q, want %q; %s", code, stdout, want, stderr)
		}
	}
	for name, args := range map[string][]string{"sync": {"barrier", "sync", "-n", "3"}, "ready": {"latch", "wait", "ready", "--count", "3"}} {
		a, b := start(t, lockfabric(t, args...)), start(t, lockfabric(t, args...))
		waiters(t, m, name, 2)
		if name == "sync" {
			release(name, name+": broken for 2 who waited; once more removes it\n")
		} else {
			release(name, name+": removed, 2 waited for it\n")
		}
		a.exits(79)
		b.exits(79)
		if name == "sync" {
			release(name, name+": removed, 0 waited for it\n")
		}
		release(name, name+": nobody to take it from\n")
	}
	// Nobody is there, but their numbers are.
	for _, n := range []string{"1", "2"} {
		for _, args := range [][]string{{"latch", "count-down", "ready", "--count", n, "-n", n}, {"barrier", "sync", "-n", "1"}} {
			if code, _, stderr := run(t, lockfabric(t, args...)); code != 0 {
				t.Fatalf("exit code %d, %s", code, stderr)
			}
		}
		release("ready", "ready: removed, 0 waited for it\n")
		release("sync", "sync: removed, 0 waited for it\n")
	}
}

// What has died keeps nothing: it is observed, and goes.
func TestTheDeadKeepNoName(t *testing.T) {
	t.Parallel()
	m := manager(t)
	proxy := faultproxy.New(t, server.ClientURL())
	dying, err := fabric.Connect(t.Context(), proxy.URL(), fabric.WithFabric(fabricName(t)), fabric.WithTTL(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	waited := make(chan error, 1)
	go func() { waited <- primitives.NewLatch(dying, "ready", 2).Wait(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-waited
		proxy.Stall(false)
		_ = dying.Close()
	})
	waiters(t, m, "ready", 1)
	if _, err := dying.Acquire(t.Context(), "pool"); err != nil {
		t.Fatal(err)
	}
	proxy.Stall(true)
	if code, _, stderr := run(t, lockfabric(t, "latch", "delete", "ready", "--wait", testTimeout.String())); code != 0 {
		t.Errorf("latch delete: exit code %d, %s", code, stderr)
	}
	eventually(t, "a semaphore where a lock was", func() bool {
		code, _, stderr := run(t, lockfabric(t, "run", "pool", "--semaphore", "2", "--", "true"))
		if code != 0 && (code != 65 || !strings.Contains(stderr, " pid ")) {
			t.Fatalf("exit code %d, %s", code, stderr)
		}
		return code == 0
	})
}
