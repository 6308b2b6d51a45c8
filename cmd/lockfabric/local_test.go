//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/lockfabric/lockfabric/embedded"
)

// serveHere starts a server of the test's own.
func serveHere(t *testing.T) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(t.Context(), embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"),
		embedded.WithSync(embedded.SyncInterval(time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Kill)
	return srv
}

// machine is a directory in which no local server was ever started.
type machine struct {
	t   *testing.T
	dir string
}

func freshMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t, filepath.Join(t.TempDir(), "lf")}
	t.Cleanup(m.end)
	return m
}

// command returns a command line of a user who names no server.
func (m *machine) command(args ...string) *exec.Cmd {
	cmd := bare(m.t, args...)
	cmd.Env = append(cmd.Env, "LOCKFABRIC_DIR="+m.dir, "LOCKFABRIC_LOCAL_IDLE_EXIT=30s")
	return cmd
}

func (m *machine) state() (localState, error) {
	var s localState
	data, err := os.ReadFile(filepath.Join(m.dir, stateFile))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

func (m *machine) mustState() localState {
	m.t.Helper()
	s, err := m.state()
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// end ends the servers of the directory, also those that are only starting.
func (m *machine) end() {
	eventually(m.t, "end of the local server", func() bool {
		pids := m.processes()
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0 && !m.serving()
	})
}

// processes finds the servers of the directory: by their command lines where the
// system shows them, else the one that has told its process id.
func (m *machine) processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		if s, err := m.state(); err == nil && !gone(s.PID) {
			pids = append(pids, s.PID)
		}
		return pids
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(args), "--local-dir\x00"+m.dir+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// serving reports whether the store's lock is taken.
func (m *machine) serving() bool {
	srv, err := embedded.Start(context.Background(), embedded.WithStoreDir(filepath.Join(m.dir, "store")))
	if err == nil {
		srv.Kill()
		return false
	}
	return errors.Is(err, embedded.ErrStoreInUse)
}

func TestFirstUsersShareOneServer(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	dir := t.TempDir()
	var all []*proc
	for range 4 {
		all = append(all, start(t, m.command(append([]string{"run", "k", "--"}, critical(dir)...)...)))
	}
	for _, p := range all {
		p.exits(0)
	}
	s := m.mustState()
	if !strings.HasPrefix(s.URL, "nats://127.0.0.1:") || s.Token == "" {
		t.Errorf("state %+v", s)
	}
	// Who can't read the file gets nothing.
	if nc, err := nats.Connect(s.URL); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("connected without the token: %v", err)
		nc.Close()
	}
	nc, err := nats.Connect(s.URL, nats.Token(s.Token))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	for path, mode := range map[string]fs.FileMode{".": 0o700, stateFile: 0o600, logFile: 0o600} {
		fi, err := os.Stat(filepath.Join(m.dir, path))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
	if log, err := os.ReadFile(filepath.Join(m.dir, logFile)); err != nil || strings.Contains(string(log), "lockfabric: ") {
		t.Errorf("those who came second have complained: %s, %v", log, err)
	}
	if code, stdout, stderr := run(t, m.command("ls")); code != 0 || strings.Count(stdout, "\n") != 1 {
		t.Errorf("ls: exit code %d, %q, %q", code, stdout, stderr)
	}
	if again := m.mustState(); again != s {
		t.Errorf("another server was started: %+v, was %+v", again, s)
	}
}

func TestLocalServerEndsWhenIdle(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	cmd := m.command("--local-idle-exit", "200ms", "run", "k", "--", self(t), "child", "TERM")
	p := start(t, cmd)
	p.ready()
	// It outlives its idle time as long as somebody is connected.
	first := m.mustState()
	busy := time.NewTimer(time.Second)
	defer busy.Stop()
	<-busy.C
	if again := m.mustState(); again != first {
		t.Errorf("server was replaced under its user: %+v, was %+v", again, first)
	}
	p.signal(killable)
	p.exits(0)
	eventually(t, "idle exit", func() bool { return !m.serving() })
	if _, err := m.state(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the address is left: %v", err)
	}
	// And the next one starts anew, with the same store.
	if code, _, stderr := run(t, m.command("run", "k", "--", "true")); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if next := m.mustState(); next.Token == first.Token {
		t.Error("the token is the old one")
	}
}

// Users that come and go while the server wants to end always find one.
func TestIdleExitRefusesNobody(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	dir := t.TempDir()
	for i := range 6 {
		args := append([]string{"--local-idle-exit", "1ms", "run", "k", "--"}, critical(dir)...)
		a, b := start(t, m.command(args...)), start(t, m.command(args...))
		a.exits(0)
		b.exits(0)
		if i%2 == 0 {
			eventually(t, "withdrawn address", func() bool { _, err := m.state(); return err != nil })
		}
	}
	eventually(t, "idle exit", func() bool { return !m.serving() })
}

// A local server that is killed costs nobody a lock: a user starts the next one
// at the same address.
func TestLocalServerCrash(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	p := start(t, m.command("run", "k", "--", self(t), "child", "TERM"))
	p.ready()
	was := m.mustState()
	server, err := os.FindProcess(was.PID)
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Kill()
	eventually(t, "new server", func() bool { s, err := m.state(); return err == nil && s.PID != was.PID })
	if now := m.mustState(); now.URL != was.URL || now.Token != was.Token {
		t.Errorf("new server %+v, was %+v", now, was)
	}
	if code, _, stderr := run(t, m.command("run", "k", "--wait", "0", "--", "true")); code != 75 {
		t.Errorf("the lock was not kept: exit code %d, %s", code, stderr)
	}
	p.signal(killable)
	p.expect("got TERM")
	p.exits(0)
}

// What is left of a server that crashed long ago is no obstacle.
func TestStaleAddress(t *testing.T) {
	t.Parallel()
	other := serveHere(t) // has the port by now, and wants no token
	for name, state := range map[string]localState{
		"nobody there":    {URL: "nats://127.0.0.1:1", Name: "old", Token: "old", PID: 1 << 30, Host: hostname()},
		"taken by others": {URL: other.ClientURL(), Name: "old", Token: "old", PID: 1 << 30, Host: hostname()},
		"another host":    {URL: other.ClientURL(), Name: "old", Token: "old", PID: 1 << 30, Host: "elsewhere"},
		"nonsense":        {URL: "::", PID: 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			m := freshMachine(t)
			if err := os.MkdirAll(m.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := state.write(m.dir); err != nil {
				t.Fatal(err)
			}
			if code, _, stderr := run(t, m.command("run", "k", "--", "true")); code != 0 {
				t.Fatalf("exit code %d, %s", code, stderr)
			}
			if now := m.mustState(); now.PID == state.PID || now.Host != hostname() || now.Token == state.Token && state.URL == other.ClientURL() {
				t.Errorf("state %+v", now)
			}
		})
	}
}

// A home directory that hosts share has one local server at most.
func TestLocalServerOfAnotherHost(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	srv, err := embedded.Start(t.Context(), embedded.WithStoreDir(filepath.Join(m.dir, "store")), embedded.WithListen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Kill()
	state := localState{URL: srv.ClientURL(), Name: srv.Name(), Token: "x", PID: 1 << 30, Host: "elsewhere"}
	if err := state.write(m.dir); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, m.command("--timeout", "1s", "ls")); code != 69 || !strings.Contains(stderr, `host "elsewhere"`) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// The server must not keep the first user's files open: a lock file of flock(1),
// or a pipe that somebody reads to its end.
func TestLocalServerInheritsNothing(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := m.command("run", "k", "--", "sh", "-c", "echo passed on >&3")
	cmd.ExtraFiles = []*os.File{w}
	p := start(t, cmd)
	_ = w.Close()
	p.exits(0)
	_ = r.SetReadDeadline(time.Now().Add(testTimeout / 2))
	buf := make([]byte, 64)
	n, err := r.Read(buf)
	if err != nil || string(buf[:n]) != "passed on\n" {
		t.Fatalf("the command wrote %q, %v", buf[:n], err)
	}
	if n, err := r.Read(buf); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the pipe is open: %d, %v", n, err)
	}
}

func TestPrivateDirectory(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, m.command("ls")); code != 64 || !strings.Contains(stderr, "chmod 700") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	// What can't be made, as in the home of a daemon that has none.
	nowhere := bare(t, "--local-dir", filepath.Join(file(t, "plain", ""), "lf"), "ls")
	if code, _, stderr := run(t, nowhere); code != 64 || !strings.Contains(stderr, "--server") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a directory that can't be made: exit code %d, %s", code, stderr)
	}
	homeless := bare(t, "ls")
	homeless.Env = append(homeless.Env, "HOME=")
	if code, _, stderr := run(t, homeless); code != 64 || !strings.Contains(stderr, "--local-dir") {
		t.Errorf("without a home: exit code %d, %s", code, stderr)
	}
}

func TestLocalServerCannotStart(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "store"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := run(t, m.command("--timeout", "1s", "ls"))
	if code != 69 || !strings.Contains(stderr, filepath.Join(m.dir, logFile)) || !strings.Contains(stderr, "store: not a directory") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if log, err := os.ReadFile(filepath.Join(m.dir, logFile)); err != nil || !strings.Contains(string(log), "lockfabric: ") {
		t.Errorf("log %q, %v", log, err)
	}
}

// By default everything is in the user's state directory.
func TestDefaultDirectory(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]string{"XDG_STATE_HOME": "xdg", "HOME": filepath.Join(".local", "state")} {
		home := t.TempDir()
		dir := filepath.Join(home, state, "lockfabric")
		m := &machine{t, dir}
		t.Cleanup(m.end)
		cmd := bare(t, "run", "k", "--", "true")
		cmd.Env = append(cmd.Env, "HOME="+home, "LOCKFABRIC_LOCAL_IDLE_EXIT=1ms")
		if name != "HOME" {
			cmd.Env = append(cmd.Env, name+"="+filepath.Join(home, state))
		}
		start(t, cmd).exits(0)
		if _, err := os.Stat(filepath.Join(dir, logFile)); err != nil {
			t.Errorf("by %s: nothing in %s", name, dir)
		}
		eventually(t, "idle exit", func() bool { return !m.serving() })
	}
}
