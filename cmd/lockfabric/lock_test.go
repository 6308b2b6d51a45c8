//go:build unix

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// script is a shell's in which lf is the command on the test's fabric. What is written
// to the pipe is what it reads.
func script(t *testing.T, shell, text string) (*proc, *os.File) {
	t.Helper()
	line := lockfabric(t)
	cmd := exec.Command(shell, "-c", "lf() { '"+strings.Join(line.Args, "' '")+`' "$@"; }; `+strings.ReplaceAll(text, "$(lf", "$('"+strings.Join(line.Args, "' '")+"'"))
	cmd.Env = line.Env
	return withStdin(t, cmd)
}

// withStdin starts a command that reads from a pipe.
func withStdin(t *testing.T, cmd *exec.Cmd) (*proc, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	cmd.Stdin = r
	p := start(t, cmd)
	_ = r.Close()
	return p, w
}

// waitFree waits until nobody holds the lock, or waits for it.
func waitFree(t *testing.T, m *fabric.Manager) {
	t.Helper()
	eventually(t, "end of the hold", func() bool {
		info, err := m.Inspect(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		return len(info.Holders)+len(info.Waiters) == 0
	})
}

// heldUnder checks that the lock is held under this token.
func heldUnder(t *testing.T, m *fabric.Manager, token string) {
	t.Helper()
	info, err := m.Inspect(t.Context(), "k")
	if err != nil || len(info.Holders) != 1 || strconv.FormatUint(info.Holders[0].Token, 10) != token {
		t.Fatalf("%+v, %v, want token %q", info, err, token)
	}
}

func TestLockOfAScript(t *testing.T) {
	t.Parallel()
	m := manager(t)
	for _, shell := range []string{"sh", "bash"} {
		for name, end := range map[string]func(p *proc, stdin *os.File){
			"ends":   func(_ *proc, stdin *os.File) { _ = stdin.Close() },
			"killed": func(p *proc, _ *os.File) { p.signal(syscall.SIGKILL) },
		} {
			p, stdin := script(t, shell, `token=$(lf lock k --ttl 20s --meta a=b) || exit; echo "$token"; read x; exit 4`)
			heldUnder(t, m, p.line())
			if code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "0", "--", "true")); code != 75 {
				t.Errorf("%s, %s: exit code %d, %s", shell, name, code, stderr)
			}
			end(p, stdin)
			p.wait()
			waitFree(t, m)
		}
	}
}

// A part of a script in parentheses is a process of its own.
func TestLockOfAPartOfAScript(t *testing.T) {
	t.Parallel()
	m := manager(t)
	p, stdin := script(t, "sh", `(lf lock k --mode S; echo in; read x; echo out); echo on; read y; exit 4`)
	token := p.line()
	p.expect("in")
	heldUnder(t, m, token)
	_, _ = stdin.WriteString("\n")
	p.expect("out")
	p.expect("on")
	waitFree(t, m)
	_ = stdin.Close()
	p.exits(4)
}

func TestLockIsLost(t *testing.T) {
	t.Parallel()
	m := manager(t)
	p, _ := script(t, "sh", `trap 'echo told; exit 5' TERM; lf lock k; while :; do sleep 0.01; done`)
	heldUnder(t, m, p.line())
	if _, err := m.ForceRelease(t.Context(), "k", fabric.ForceNow()); err != nil {
		t.Fatal(err)
	}
	p.expect("told")
	p.exits(5)
	eventually(t, "word of the loss", func() bool { return strings.Contains(p.err.String(), "others may have worked") })
}

func TestLockIsRefused(t *testing.T) {
	t.Parallel()
	m := manager(t)
	if _, err := m.Acquire(t.Context(), "k", fabric.WithOwner("me")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"lock k --wait 0", 75, "held by me"},
		{"lock k --wait 10ms --no-takeover -E 3", 3, "held by me"},
		{"lock k --wait 0 --shared --quiet --conflict-exit-code 3", 3, ""},
		{"lock k --owner me", 75, "already held"},
		{"lock k --ttl 1ms", 64, "TTL"},
		{"lock k --mode W", 64, "--mode"},
		{"--server nats://127.0.0.1:1 lock k", 69, "check --server"},
	} {
		code, stdout, stderr := run(t, lockfabric(t, strings.Fields(tt.args)...))
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.stderr) || (stderr == "") != (tt.stderr == "") || strings.Count(stderr, "\n") > 1 {
			t.Errorf("%s: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

// Nobody waits on for a caller that is gone.
func TestLockThatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	m := manager(t)
	if _, err := m.Acquire(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	for sig, code := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143, syscall.SIGKILL: -1} {
		p := start(t, lockfabric(t, "lock", "k"))
		waiters(t, m, "k", 1)
		p.signal(sig)
		p.exits(code)
		waiters(t, m, "k", 0)
	}
	p, _ := script(t, "sh", `lf lock k`) // the one that is killed
	waiters(t, m, "k", 1)
	p.signal(syscall.SIGKILL)
	waiters(t, m, "k", 0)
}

func TestLockUntilStdinCloses(t *testing.T) {
	t.Parallel()
	m := manager(t)
	for name, tt := range map[string]struct {
		end  func(p *proc, stdin *os.File)
		code int
	}{
		"closed":      {func(_ *proc, stdin *os.File) { _ = stdin.Close() }, 0},
		"told to end": {func(p *proc, _ *os.File) { p.signal(syscall.SIGTERM) }, 0},
		"lost": {func(*proc, *os.File) {
			if _, err := m.ForceRelease(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}, 76},
	} {
		p, stdin := withStdin(t, lockfabric(t, "--output", "json", "lock", "k", "--stdin"))
		var v locked
		var text strings.Builder
		for json.Unmarshal([]byte(text.String()), &v) != nil {
			text.WriteString(p.line())
		}
		heldUnder(t, m, strconv.FormatUint(v.Token, 10))
		tt.end(p, stdin)
		p.exits(tt.code)
		if n := holds(t, m); n != 0 {
			t.Errorf("%s: %d hold it", name, n)
		}
	}
	// While it waits, too.
	if _, err := m.Acquire(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, lockfabric(t, "lock", "k", "--stdin")); code != 143 || !strings.Contains(stderr, "standard input was closed") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	p, _ := withStdin(t, lockfabric(t, "lock", "k", "--stdin", "--wait", "0"))
	p.exits(75)
	p, stdin := withStdin(t, lockfabric(t, "lock", "k", "--stdin"))
	waiters(t, m, "k", 1)
	_ = stdin.Close()
	p.exits(143)
	waiters(t, m, "k", 0)
}
