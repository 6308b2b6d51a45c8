//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// killable is the signal that ends a child which was started with "TERM".
const killable = syscall.SIGTERM

// interrupts are the signals that end a run which waits, and its exit codes.
var interrupts = map[os.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143, unix.SIGHUP: 129, unix.SIGQUIT: 131,
	unix.SIGABRT: 134, unix.SIGALRM: 142, unix.SIGSEGV: 139}

func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// killLater makes sure of the end of a process that a test had to detach.
func killLater(t *testing.T, pid int) {
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
}

func TestSignalsReachGrandchildren(t *testing.T) {
	t.Parallel()
	// The shell waits for the grandchild whatever signals they both get.
	p := start(t, lockfabric(t, "run", "k", "--", "sh", "-c",
		`trap : INT TERM HUP QUIT USR1 USR2; "$0" child TERM; echo "shell $?"`, self(t)))
	p.ready()
	for _, s := range []struct {
		sig  os.Signal
		name string
	}{{unix.SIGINT, "INT"}, {unix.SIGHUP, "HUP"}, {unix.SIGQUIT, "QUIT"}, {unix.SIGUSR1, "USR1"}, {unix.SIGUSR2, "USR2"}, {unix.SIGTERM, "TERM"}} {
		p.signal(s.sig)
		p.expect("got " + s.name)
	}
	p.expect("shell 0")
	p.exits(0)
}

func TestSignalledChildsExitCode(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--", "sh", "-c", "echo in; exec sleep 100"))
	p.expect("in")
	p.signal(unix.SIGTERM)
	p.exits(143)
	if text := p.err.String(); text != "" {
		t.Errorf("stderr %q", text)
	}
}

func TestLossEndsTheCommand(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"told", "--now"} {
		t.Run(how, func(t *testing.T) {
			p := start(t, lockfabric(t, "run", "k", "--", self(t), "child", "TERM"))
			p.ready()
			args := []string{"release", "--force", "k"}
			if how != "told" {
				args = append(args, how)
			}
			if code, _, stderr := run(t, lockfabric(t, args...)); code != 0 {
				t.Fatalf("release: exit code %d, %s", code, stderr)
			}
			p.expect("got TERM")
			p.exits(76)
			if text := p.err.String(); !strings.Contains(text, "lockfabric: \"k\"") || !strings.Contains(text, "lost") {
				t.Errorf("stderr %q", text)
			}
		})
	}
}

// A command that ends before the loss is noticed has not had the lock all the time
// either. Else run hears of it at once, and its TERM may come before the command has
// said anything: here the news waits until the command is gone.
func TestLossNoticedByTheRelease(t *testing.T) {
	t.Parallel()
	proxy := faultproxy.New(t, server.ClientURL())
	release := lockfabric(t, "release", "--force", "--now", "k")
	cmd := bare(t, append([]string{"--server", proxy.URL(), "--fabric", fabricName(t), "run", "k", "--",
		"sh", "-c", `echo "ready $$"; read x; exec "$0" "$@"`}, release.Args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, cmd)
	pid := p.ready()
	proxy.Stall(true)
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if text := p.line(); !strings.HasPrefix(text, "k: taken from 1 holder(s)") {
		t.Errorf("release wrote %q", text)
	}
	eventually(t, "end of the command", func() bool { return gone(pid) })
	proxy.Stall(false)
	p.exits(76)
	if text := p.err.String(); !strings.Contains(text, "lost") {
		t.Errorf("stderr %q", text)
	}
}

func TestLossKillsWhatIgnoresTerm(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		// The command itself ignores it, and what it started.
		"leader": `trap "" TERM; "$0" child none TERM & exec "$0" child none TERM`,
		// The command ends, and leaves behind something that doesn't.
		"left behind": `"$0" child none TERM & exec "$0" child TERM`,
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, lockfabric(t, "run", "k", "--kill-after", "100ms", "--", "sh", "-c", script, self(t)))
			pids := []int{p.ready(), p.ready()}
			for _, pid := range pids {
				killLater(t, pid)
			}
			if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "k")); code != 0 {
				t.Fatalf("release: exit code %d, %s", code, stderr)
			}
			p.exits(76)
			for _, pid := range pids {
				eventually(t, "end of process "+strconv.Itoa(pid), func() bool { return gone(pid) })
			}
		})
	}
}

// A stopped command hears SIGTERM only when it is continued.
func TestLossEndsAStoppedCommand(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--kill-after", "1h", "--", self(t), "child", "TERM"))
	pid := p.ready()
	killLater(t, pid)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "k")); code != 0 {
		t.Fatalf("release: exit code %d, %s", code, stderr)
	}
	p.expect("got TERM")
	p.exits(76)
}

// What a command that ended by itself left behind is none of run's business.
func TestBackgroundProcessesAreLeftAlone(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--", "sh", "-c", `"$0" child TERM & read x; exit 4`, self(t)))
	pid := p.ready()
	killLater(t, pid)
	p.exits(4)
	if gone(pid) {
		t.Error("it was ended")
	}
}

// A warning to a reader that is gone must not end the run, and the lock with it.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := lockfabric(t, "--log-level", "debug", "run", "k", "--", "sh", "-c", `"$0" child TERM 2>/dev/null; exit 5`, self(t))
	cmd.Stderr = w
	p := start(t, cmd)
	pid := p.ready()
	_ = w.Close()
	_ = r.Close()
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "k")); code != 0 {
		t.Fatalf("release: exit code %d, %s", code, stderr)
	}
	p.exits(76)
	eventually(t, "end of the child", func() bool { return gone(pid) })
}

// nohup and background jobs mean that a signal is ignored.
func TestIgnoredSignalsStayIgnored(t *testing.T) {
	t.Parallel()
	run := lockfabric(t, "run", "k", "--", self(t), "child", "TERM")
	sh := exec.Command("sh", append([]string{"-c", `trap "" HUP INT; exec "$0" "$@"`}, run.Args...)...)
	sh.Env = run.Env
	p := start(t, sh)
	p.ready()
	p.signal(unix.SIGHUP)
	p.signal(unix.SIGINT)
	p.signal(unix.SIGTERM)
	p.expect("got TERM")
	p.exits(0)
}
