//go:build unix

package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func TestBarrier(t *testing.T) {
	t.Parallel()
	m := manager(t)
	party := func(args ...string) *proc {
		return start(t, lockfabric(t, append([]string{"barrier", "sync"}, args...)...))
	}
	first := party("-n", "3", "--meta", "part=a")
	second := party("-n", "3", "--wait", "1m")
	waiters(t, m, "sync", 2)
	code, stdout, stderr := run(t, lockfabric(t, "inspect", "sync"))
	for _, want := range []string{"2 of 3 arrived", "GENERATION", "part=a"} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("inspect: exit code %d, no %q in %q, %s", code, want, stdout, stderr)
		}
	}
	for _, tt := range []struct {
		code   int
		stderr string
		args   []string
	}{
		{65, "has 3 parties, not 2", []string{"-n", "2"}},
		{65, "is of kind barrier, not gate: awaited by barrier on " + hostname() + " pid ", []string{"-n", "3", "--", "true"}},
		{64, "--parties", nil},
		{64, "--parties=-1: give 1 to 1024", []string{"-n", "-1"}},
		{64, "--parties=-1: give 1 to 1024", []string{"-n=-1"}},
		{64, "\"=x\" is no whole number", []string{"--parties==x"}},
		{64, "--parties=0", []string{"-n", "0"}},
		{64, "--wait=0s", []string{"-n", "3", "--wait", "0"}},
		{64, "--kill-after", []string{"-n", "3", "--kill-after=-1s"}},
		{64, "the command is empty", []string{"-n", "3", "--", ""}},
		{127, "was not found", []string{"-n", "3", "--", "no-such-command"}},
	} {
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"barrier", "sync"}, tt.args...)...))
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%v: exit code %d, want %d; stdout %q; stderr %q", tt.args, code, tt.code, stdout, stderr)
		}
	}
	party("--parties", "3").exits(0)
	first.exits(0)
	second.exits(0)
	// The next generation is broken by one whose time is over, and one more by a signal.
	for sig, want := range map[syscall.Signal]int{0: 75, syscall.SIGTERM: 143} {
		broken := party("-n", "3")
		waiters(t, m, "sync", 1)
		args := []string{"-n", "3", "--wait", "1s"}
		if sig != 0 {
			args = args[:2]
		}
		giving := party(args...)
		if sig != 0 {
			waiters(t, m, "sync", 2)
			giving.signal(sig)
		}
		giving.exits(want)
		broken.exits(79)
		want := fmt.Sprintf("broken: cancelled by barrier on %s pid %d\n", hostname(), giving.cmd.Process.Pid)
		if text := broken.err.String(); !strings.Contains(text, want) || strings.Count(text, "\n") != 1 {
			t.Errorf("stderr %q", text)
		}
	}
	if _, stdout, _ := run(t, lockfabric(t, "ls")); !strings.Contains(strings.Join(strings.Fields(stdout), " "), "sync barrier 0/3 0 0") {
		t.Errorf("ls: %q", stdout)
	}
}

// With a command all parties run together and end together.
func TestDoubleBarrier(t *testing.T) {
	t.Parallel()
	m := manager(t)
	member := func(args ...string) *proc {
		return start(t, lockfabric(t, append(append([]string{"barrier", "phase", "-n", "2"}, args...), "--", "sh", "-c", `echo "$LOCKFABRIC_KEY $LOCKFABRIC_TOKEN"; exec "$0" child TERM`, self(t))...))
	}
	holders := func(n int, leaving bool) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " in the double barrier"), func() bool {
			info, err := m.Read(t.Context(), "phase")
			return err == nil && len(info.Holders) == n && (!leaving || info.Holders[0].Leaving || info.Holders[n-1].Leaving)
		})
	}
	a := member("--ttl", "20s", "--kill-after", "9s", "--no-progress")
	holders(1, false)
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "phase")); code != 75 || !strings.Contains(stderr, "would come again") {
		t.Errorf("release of who waits to go in: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := run(t, lockfabric(t, "barrier", "phase", "-n", "3", "--", "true")); code != 65 || !strings.Contains(stderr, "use another name, or end this process") {
		t.Errorf("another number: exit code %d, %s", code, stderr)
	}
	b := member()
	text := a.line()
	if b.expect(text); !strings.HasPrefix(text, "phase ") {
		t.Errorf("%q", text)
	}
	a.ready()
	b.ready()
	a.signal(killable)
	a.expect("got TERM")
	holders(2, true) // it waits for the other
	if code, stdout, _ := run(t, lockfabric(t, "inspect", "phase")); code != 0 || !strings.Contains(stdout, "open, 2 of 2 inside") || !strings.Contains(stdout, "leaving") {
		t.Errorf("inspect: exit code %d, %q", code, stdout)
	}
	b.signal(killable)
	b.exits(0)
	a.exits(0)

	// One does not come.
	code, stdout, stderr := run(t, lockfabric(t, "barrier", "phase", "-n", "2", "--wait", "1s", "--", "echo", "in"))
	if code != 75 || stdout != "" || !strings.Contains(stderr, "not passed in time") {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	// The membership is taken away from one of two.
	a, b = member(), member()
	for _, p := range []*proc{a, b} {
		p.line()
		p.ready()
	}
	info, err := m.Read(t.Context(), "phase")
	if err != nil || len(info.Holders) != 2 {
		t.Fatalf("%+v, %v", info, err)
	}
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "phase")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, p := range []*proc{a, b} {
		p.expect("got TERM")
		p.exits(76)
	}
}
