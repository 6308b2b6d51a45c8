//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockfabric/lockfabric/fabric"
)

// waitGone waits until a process has ended and was waited for.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("end of process %d", pid), func() bool { return gone(pid) })
}

// ended starts a run that holds on when its command has ended with 3.
func ended(t *testing.T) *proc {
	t.Helper()
	p := start(t, lockfabric(t, "--log-level", "info", "run", "k", "--hold-at-least", "1h", "--", "sh", "-c", "exit 3"))
	eventually(t, "word that it holds on", func() bool { return strings.Contains(p.err.String(), "holding on") })
	return p
}

// holds says how many hold the lock.
func holds(t *testing.T, m *fabric.Manager) int {
	t.Helper()
	info, err := m.Inspect(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	return len(info.Holders)
}

func TestHoldAtLeast(t *testing.T) {
	t.Parallel()
	m := manager(t)
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p := ended(t)
		if code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "0", "--", "true")); code != 75 {
			t.Errorf("while it is held: exit code %d, %s", code, stderr)
		}
		p.signal(sig)
		p.exits(3)
		if holds(t, m) != 0 || strings.Contains(p.err.String(), "WARN") {
			t.Errorf("after %v: %d hold it, stderr %q", sig, holds(t, m), p.err)
		}
	}
	const least = 300 * time.Millisecond
	begun := time.Now()
	start(t, lockfabric(t, "run", "k", "--hold-at-least", least.String(), "--", "sh", "-c", "exit 3")).exits(3)
	if took := time.Since(begun); took < least || holds(t, m) != 0 {
		t.Errorf("it took %v, %d hold it", took, holds(t, m))
	}
}

// Who ends the command by a signal to run wants run to end.
func TestHoldAtLeastIsNotForACommandThatWasTold(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--hold-at-least", "1h", "--", self(t), "child", "TERM"))
	p.ready()
	p.signal(syscall.SIGTERM)
	p.expect("got TERM")
	p.exits(0)
}

// A command that has ended under the lock has not lost it.
func TestHoldAtLeastLost(t *testing.T) {
	t.Parallel()
	m := manager(t)
	p := ended(t)
	if n, err := m.ForceRelease(t.Context(), "k", fabric.ForceNow()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	p.exits(3)
	if text := p.err.String(); !strings.Contains(text, "lost after the command has ended") {
		t.Errorf("stderr %q", text)
	}
}

func TestWaitChildren(t *testing.T) {
	t.Parallel()
	m := manager(t)
	for _, wait := range []bool{false, true} {
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"run", "k"}
		if wait {
			args = append(args, "--wait-children")
		}
		p := start(t, lockfabric(t, append(args, "-c", `(read x <`+fifo+`) & echo ready $$; exit 3`)...))
		waitGone(t, p.ready())
		if !wait {
			p.exits(3)
		}
		if n := holds(t, m); (n == 1) != wait {
			t.Errorf("wait %v: %d hold it", wait, n)
		}
		if err := os.WriteFile(fifo, []byte("\n"), 0); err != nil { // the child is there to read it
			t.Fatal(err)
		}
		p.exits(3)
		if n := holds(t, m); n != 0 {
			t.Errorf("%d hold it at the end", n)
		}
	}
}

// What is left of the group is told of signals and of a loss, as the command is.
func TestWaitChildrenSignals(t *testing.T) {
	t.Parallel()
	m := manager(t)
	for name, tt := range map[string]struct {
		end  func(p *proc)
		code int
	}{
		"told to end": {func(p *proc) { p.signal(syscall.SIGTERM) }, 3},
		"lost": {func(*proc) {
			if _, err := m.ForceRelease(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}, 76},
	} {
		p := start(t, lockfabric(t, "run", "k", "--wait-children", "--", "sh", "-c", `"$0" child TERM & echo left $$; exit 3`, self(t)))
		var leader int
		for range 2 { // in any order
			if text := p.line(); strings.HasPrefix(text, "left ") {
				_, _ = fmt.Sscanf(text, "left %d", &leader)
			}
		}
		waitGone(t, leader)
		tt.end(p)
		p.expect("got TERM")
		p.exits(tt.code)
		if n := holds(t, m); n != 0 {
			t.Errorf("%s: %d hold it at the end", name, n)
		}
	}
}

func TestConflictExitCode(t *testing.T) {
	t.Parallel()
	m := manager(t)
	if _, err := m.Acquire(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		told bool
	}{
		{"run k --wait 0 --conflict-exit-code 0 true", 0, true},
		{"run k --wait 0 -E 200 true", 200, true},
		{"run k --wait 0 --quiet true", 75, false},
		{"run k --wait 0 -q -E 0 true", 0, false},
		{"elect k --wait 0 -q -E 3 true", 3, false},
		{"elect k --wait 0 --quiet --conflict-exit-code 3 true", 3, false},
		{"run other --wait 0 -q -E 3 --semaphore 1 true", 0, false},
		{"--server nats://127.0.0.1:1 run k --wait 0 -q -E 3 true", 69, true}, // no conflict
		{"run k -q -E 256 true", 64, true},
		{"run k -E -1 true", 64, true},
		{"run k --hold-at-least=-1s true", 64, true},
		{"run k -q no-such-command", 127, true},
	} {
		code, stdout, stderr := run(t, lockfabric(t, strings.Fields(tt.args)...))
		if code != tt.code || stdout != "" || (stderr != "") != tt.told {
			t.Errorf("%s: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

func TestShellLine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{[]string{"run", "k", "-c", `echo "$LOCKFABRIC_KEY" | tr k K; exit 4`}, 4, "K\n"},
		{[]string{"run", "--command", "echo in", "k"}, 0, "in\n"},
		{[]string{"run", "k", "-c", "echo in", "--", "true"}, 64, ""},
		{[]string{"run", "k", "-c", ""}, 64, ""},
	} {
		if code, stdout, stderr := run(t, lockfabric(t, tt.args...)); code != tt.code || stdout != tt.stdout || (stderr != "") != (code == 64) {
			t.Errorf("%q: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}
