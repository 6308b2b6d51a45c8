//go:build unix

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	notRunnable := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(notRunnable, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := notRunnable + ".garbage"
	if err := os.WriteFile(garbage, []byte("\x00\x01"), 0o700); err != nil {
		t.Fatal(err)
	}
	orphan, plain := notRunnable+".orphan", notRunnable+".script"
	for path, text := range map[string]string{orphan: "#!/no/such/interpreter\n", plain: "exit 0\n"} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stderr string // "" = nothing at all
	}{
		{"success", []string{"run", "k", "--", "true"}, 0, ""},
		{"the child's", []string{"run", "k", "--", "sh", "-c", "exit 3"}, 3, ""},
		{"the child's, like one of ours", []string{"run", "k", "--", "sh", "-c", "exit 75"}, 75, ""},
		{"killed child", []string{"run", "k", "--", "sh", "-c", "kill -KILL $$"}, 137, ""},
		{"without dashes", []string{"run", "k", "true"}, 0, ""},
		{"dashes for the child", []string{"run", "k", "--", "sh", "-c", "test $0 = --", "--"}, 0, ""},
		{"not found", []string{"run", "k", "--", "no-such-command"}, 127, `command "no-such-command" was not found`},
		{"not found by path", []string{"run", "k", "--", "./no-such-command"}, 127, "was not found"},
		{"not runnable", []string{"run", "k", "--", notRunnable}, 126, "can't be run"},
		{"no program", []string{"run", "k", "--", garbage}, 126, "can't be run"},
		{"no interpreter", []string{"run", "k", "--", orphan}, 127, "can't be run: fork/exec " + orphan + ": no such file or directory: look whether the interpreter"},
		{"script without #!", []string{"run", "k", "--", plain}, 126, "begin a script with"},
		{"no command", []string{"run", "k"}, 64, "the command is empty"},
		{"empty command", []string{"run", "k", "--", ""}, 64, "the command is empty"},
		{"no arguments", nil, 64, "expected one of"},
		{"unknown flag", []string{"run", "--bogus", "k", "--", "true"}, 64, "--bogus"},
		{"unknown command", []string{"frobnicate"}, 64, "frobnicate"},
		{"bad format", []string{"--output", "xml", "ls"}, 64, "--output"},
		{"bad timeout", []string{"--timeout", "0s", "ls"}, 64, "--timeout"},
		{"bad idle exit", []string{"--local-idle-exit", "0s", "ls"}, 64, "--local-idle-exit"},
		{"bad wait", []string{"run", "k", "--wait=-1s", "--", "true"}, 64, "--wait"},
		{"no wait", []string{"run", "k", "--wait", "soon", "--", "true"}, 64, "--wait"},
		{"bad grace", []string{"run", "k", "--kill-after=-1s", "--", "true"}, 64, "--kill-after"},
		{"bad mode", []string{"run", "k", "--mode", "W", "--", "true"}, 64, "--mode"},
		{"two modes", []string{"run", "k", "--mode", "U", "--shared", "--", "true"}, 64, "--shared"},
		{"the same mode twice", []string{"run", "k", "--shared", "--mode", "S", "--", "true"}, 64, "--shared"},
		{"bad TTL", []string{"run", "k", "--ttl", "1ms", "--", "true"}, 64, "TTL 1ms"},
		{"empty name", []string{"run", "", "--", "true"}, 64, "name"},
		{"name with a line feed", []string{"run", "a\nb", "--", "true"}, 64, "name"},
		{"long name", []string{"inspect", strings.Repeat("x", 600)}, 64, "name"},
		{"bad fabric", []string{"--fabric", "a b", "ls"}, 64, `lockfabric: invalid option: fabric name "a b"`},
		{"long owner", []string{"run", "k", "--owner", strings.Repeat("x", 300), "--", "true"}, 64, "owner"},
		{"much metadata", []string{"run", "k", "--meta", "a=" + strings.Repeat("x", 2000), "--", "true"}, 64, "metadata"},
		{"unforced release", []string{"release", "k"}, 64, "add --force"},
		{"bad name and no server", []string{"--server", "nats://127.0.0.1:1", "run", "", "--", "true"}, 64, "name"},
		{"no server", []string{"--server", "nats://127.0.0.1:1", "ls"}, 69, "check --server"},
		{"no such URL", []string{"--server", "nats://127.0.0.1:1:1", "ls"}, 69, "check --server"},
		{"no server, password", []string{"--server", "nats://me:hush@127.0.0.1:1", "ls"}, 69, "me:xxxxx@127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(t, lockfabric(t, tt.args...))
			if code != tt.code || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q; stderr %q", code, tt.code, stdout, stderr)
			}
			if tt.stderr == "" && stderr != "" {
				t.Errorf("stderr %q, want nothing", stderr)
			}
			if tt.stderr != "" && (!strings.HasPrefix(stderr, "lockfabric: ") || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.stderr)) {
				t.Errorf("stderr %q, want one line with %q", stderr, tt.stderr)
			}
			if strings.Contains(stderr, "hush") {
				t.Errorf("stderr %q shows the password", stderr)
			}
		})
	}
}

func TestUnreadableRecord(t *testing.T) {
	t.Parallel()
	manager(t) // makes the buckets
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := js.KeyValue(t.Context(), fabricName(t)+"-locks")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := locks.Put(t.Context(), "k", []byte("mine")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"run", "k", "--", "true"}, {"inspect", "k"}, {"release", "--force", "k"}} {
		if code, _, stderr := run(t, lockfabric(t, args...)); code != 65 || !strings.Contains(stderr, "unreadable") {
			t.Errorf("%v: exit code %d, stderr %q", args, code, stderr)
		}
	}
	// P21: what a newer version wrote is refused by every command that is about it, and stays.
	rev, err := locks.Put(t.Context(), "new", []byte(`{"v":9,"kind":"lock","turns":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"run", "new", "--", "true"}, {"run", "--semaphore", "2", "new", "--", "true"}, {"lock", "new"},
		{"elect", "new", "--", "true"}, {"elect", "new", "--observe"}, {"barrier", "new", "-n", "1"},
		{"latch", "wait", "new"}, {"latch", "count-down", "new"}, {"latch", "count-down", "new", "--count", "1"}, {"latch", "delete", "new"},
		{"inspect", "new"}, {"release", "--force", "new"}, {"release", "--force", "--now", "new"},
	} {
		if code, _, stderr := run(t, lockfabric(t, args...)); code != 65 || !strings.Contains(stderr, "newer version") {
			t.Errorf("%v: exit code %d, stderr %q", args, code, stderr)
		}
	}
	if e, err := locks.Get(t.Context(), "new"); err != nil || e.Revision() != rev {
		t.Errorf("it was touched: %v, %v", e, err)
	}
	if code, stdout, _ := run(t, lockfabric(t, "ls")); code != 0 || !strings.Contains(stdout, "unreadable") || !strings.Contains(stdout, "newer") {
		t.Errorf("ls: exit code %d, %q", code, stdout)
	}
}

func TestEnvironmentOfTheCommand(t *testing.T) {
	t.Parallel()
	var last uint64
	for range 2 {
		cmd := bare(t, "run", "orders/42", "--", "sh", "-c", `echo "$LOCKFABRIC_KEY $LOCKFABRIC_TOKEN $KEPT"`)
		cmd.Env = append(cmd.Env, "LOCKFABRIC_TOKEN=stale", "LOCKFABRIC_KEY=stale", "KEPT=kept",
			"LOCKFABRIC_SERVER="+server.ClientURL(), "LOCKFABRIC_FABRIC="+fabricName(t))
		code, stdout, _ := run(t, cmd)
		f := strings.Fields(stdout)
		if code != 0 || len(f) != 3 || f[0] != "orders/42" || f[2] != "kept" {
			t.Fatalf("exit code %d, %q", code, stdout)
		}
		token, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil || token <= last {
			t.Fatalf("token %q after %d", f[1], last)
		}
		last = token
	}
}

// A command that waits for the lock under which it runs says so; another that waits does not.
func TestWarningInsideTheOwnLock(t *testing.T) {
	t.Parallel()
	const warning = "waiting for the command inside which this one runs"
	inside := start(t, lockfabric(t, slices.Concat([]string{"run", "k", "--also", "also", "--"}, lockfabric(t, "run", "also", "--", "true").Args)...))
	eventually(t, "a warning", func() bool { return strings.Contains(inside.err.String(), warning) })
	cmd := lockfabric(t, "run", "also", "--wait", "2s", "--", "true")
	cmd.Env = append(cmd.Env, "LOCKFABRIC_KEY=also", "LOCKFABRIC_TOKEN=1")
	if code, _, stderr := run(t, cmd); code != 75 || strings.Contains(stderr, warning) {
		t.Errorf("waiting for another one: exit code %d, %s", code, stderr)
	}
	inside.signal(syscall.SIGTERM)
	inside.exits(143)
}

// critical is a command that fails if it is not alone.
func critical(dir string) []string {
	return []string{"sh", "-c", `mkdir "$0/alone" || exit 9; sleep 0.02; rmdir "$0/alone"`, dir}
}

func TestRunsExcludeEachOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var all []*proc
	for range 8 {
		all = append(all, start(t, lockfabric(t, append([]string{"run", "k", "--"}, critical(dir)...)...)))
	}
	for _, p := range all {
		p.exits(0)
	}
}

func TestSharedRunsOverlap(t *testing.T) {
	t.Parallel()
	reader := func() (*proc, func()) {
		cmd := lockfabric(t, "run", "k", "--shared", "--", "sh", "-c", "echo in; read x")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = r
		p := start(t, cmd)
		_ = r.Close()
		t.Cleanup(func() { _ = w.Close() })
		return p, func() { _, _ = w.WriteString("\n"); _ = w.Close() }
	}
	a, endA := reader()
	a.expect("in")
	b, endB := reader()
	b.expect("in")
	if code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "0", "--", "true")); code != 75 {
		t.Errorf("exclusive beside shared: exit code %d, %s", code, stderr)
	}
	endA()
	a.exits(0)
	endB()
	b.exits(0)
	if code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "0", "--", "true")); code != 0 {
		t.Errorf("exclusive after shared: exit code %d, %s", code, stderr)
	}
}

func TestNotAcquired(t *testing.T) {
	t.Parallel()
	holder := start(t, lockfabric(t, "run", "k", "--owner", "me", "--meta", "why=test", "--", self(t), "child", "TERM"))
	holder.ready()
	for _, args := range [][]string{{"--wait", "0"}, {"--wait", "100ms"}, {"--wait", "100ms", "--no-takeover"}, {"--wait", "0s", "--shared"}, {"--owner", "me"}} {
		want := ": held by me"
		if args[0] == "--owner" {
			want = "already held or awaited by me"
		}
		code, stdout, stderr := run(t, lockfabric(t, append(append([]string{"run", "k"}, args...), "--", "echo", "in")...))
		if code != 75 || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	m := manager(t)
	info, err := m.Inspect(t.Context(), "k")
	if err != nil || len(info.Waiters) != 0 || len(info.Holders) != 1 || info.Holders[0].Metadata["why"] != "test" {
		t.Errorf("left behind: %+v, %v", info, err)
	}
	next := start(t, lockfabric(t, "run", "k", "--", "echo", "in"))
	waiters(t, m, "k", 1)
	holder.signal(os.Interrupt) // the child goes on
	holder.expect("got INT")
	holder.signal(killable)
	next.expect("in")
	holder.exits(0)
	next.exits(0)
}

func TestDeadlineCheck(t *testing.T) {
	t.Parallel()
	m := manager(t)
	first, err := m.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	// The first hold lasts long, and somebody waits who makes the record keep that.
	second := start(t, lockfabric(t, "run", "k", "--", self(t), "child", "TERM"))
	waiters(t, m, "k", 1)
	if code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "10ms", "--no-takeover", "--deadline-check", "--", "true")); code != 75 || strings.Contains(stderr, "expected wait") {
		t.Errorf("nothing is known yet: exit code %d, stderr %q", code, stderr)
	}
	time.Sleep(1500 * time.Millisecond)
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.ready()
	code, stdout, stderr := run(t, lockfabric(t, "run", "k", "--wait", "1s", "--deadline-check", "--", "echo", "in"))
	if code != 75 || stdout != "" || !strings.Contains(stderr, "expected wait of") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	for _, args := range [][]string{{"--wait", "0"}, nil} {
		if code, _, stderr := run(t, lockfabric(t, append(append([]string{"run", "k", "--deadline-check"}, args...), "--", "true")...)); code != 64 || !strings.Contains(stderr, "--wait") {
			t.Errorf("%v: exit code %d, stderr %q", args, code, stderr)
		}
	}
	second.signal(killable)
	second.exits(0)
}

func TestDeadHolderIsReplaced(t *testing.T) {
	t.Parallel()
	for _, wait := range []string{"", "0s", "50ms"} {
		t.Run("wait"+wait, func(t *testing.T) {
			m := manager(t)
			holder := start(t, lockfabric(t, "run", "k", "--ttl", "1s", "--", self(t), "child", "TERM"))
			holder.ready()
			_ = holder.cmd.Process.Kill()
			holder.wait()
			args := []string{"run", "k"}
			if wait != "" {
				args = append(args, "--wait", wait)
			}
			// One that only tries gives up as long as the holder may be alive.
			eventually(t, "replacement of a dead holder", func() bool {
				code, _, _ := run(t, lockfabric(t, append(args, "--", "true")...))
				if code != 0 && (wait == "" || code != 75) {
					t.Fatalf("exit code %d", code)
				}
				return code == 0
			})
			if info, err := m.Inspect(t.Context(), "k"); err != nil || len(info.Holders)+len(info.Waiters) != 0 {
				t.Errorf("left behind: %+v, %v", info, err)
			}
		})
	}
}

func TestClosedStreams(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	cmd := lockfabric(t, "run", "k", "--", "sh", "-c", `echo ran > "$0"`, out)
	sh := exec.Command("sh", append([]string{"-c", `exec "$0" "$@" <&- >&- 2>&-`}, cmd.Args...)...)
	sh.Env = cmd.Env
	start(t, sh).exits(0)
	if data, err := os.ReadFile(out); err != nil || string(data) != "ran\n" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestInterruptedWhileWaiting(t *testing.T) {
	t.Parallel()
	m := manager(t)
	lock, err := m.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for sig, code := range interrupts {
		p := start(t, lockfabric(t, "run", "k", "--", "echo", "in"))
		waiters(t, m, "k", 1)
		p.signal(sig)
		if got := p.line(); got != "" {
			t.Errorf("%v: the command ran: %q", sig, got)
		}
		p.exits(code)
		if text := p.err.String(); !strings.Contains(text, "nothing is held") || strings.Count(text, "\n") != 1 {
			t.Errorf("%v: stderr %q", sig, text)
		}
		waiters(t, m, "k", 0)
	}
	if err := lock.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// A server that is gone is no "somebody else has it".
func TestServerGoneWhileWaiting(t *testing.T) {
	t.Parallel()
	srv := serveHere(t)
	holder := start(t, bare(t, "--server", srv.ClientURL(), "run", "k", "--ttl", "2s", "--", self(t), "child", "TERM"))
	holder.ready()
	nc, err := srv.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := fabric.New(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	next := start(t, bare(t, "--server", srv.ClientURL(), "run", "k", "--wait", "4s", "--", "true"))
	waiters(t, m, "k", 1)
	srv.Kill()
	_ = m.Close()
	next.exits(69)
	holder.expect("got TERM")
	holder.exits(76)
	if text := holder.err.String(); !strings.Contains(text, strings.TrimPrefix(fabric.ErrExpired.Error(), "fabric: ")) {
		t.Errorf("stderr %q", text)
	}
}
