//go:build unix

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/sites"
)

// The test binary is the command, and the commands that it runs, when this
// variable is set.
const actAs = "LOCKFABRIC_TEST_ACT"

// testTimeout ends what hangs. Some processes run as long as their test. Nothing is asserted about speed.
const testTimeout = 4 * time.Minute

// server is the one that most tests name, each with a fabric of its own.
var server *embedded.Server

func TestMain(m *testing.M) {
	if os.Getenv(actAs) != "" {
		if len(os.Args) > 2 && os.Args[1] == "child" {
			os.Exit(child(os.Args[2:]))
		}
		if len(os.Args) > 2 && os.Args[1] == "launch" {
			os.Exit(launch(os.Args[2:]))
		}
		os.Exit(noted(os.Args[1:], func() int { return execute(os.Args[1:], os.Stdout, os.Stderr) }))
	}
	// A hangup that is ignored, as under nohup, would be ignored by everything that
	// the tests start, and run is right to respect that.
	for _, sig := range endings {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	sites.RunMoreAtOnce()
	os.Exit(withServer(func() int { return exercised(m.Run) }))
}

func withServer(run func() int) int {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	var err error
	server, err = embedded.Start(ctx, embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"),
		embedded.WithSync(embedded.SyncInterval(time.Minute)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Kill()
	return run()
}

// child is a command under a lock: it says "ready" and its process id, then
// which signals it gets. It exits with 0 on the signal named first, ignores those
// named later, and gives up when nobody ends it.
func child(names []string) int {
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs, endings...)
	for _, n := range names[1:] {
		signal.Ignore(unix.SignalNum("SIG" + n))
	}
	fmt.Println("ready", os.Getpid())
	end := time.After(2 * testTimeout)
	for {
		select {
		case s := <-sigs:
			name := signalName(s)
			fmt.Println("got", name)
			if name == names[0] {
				return 0
			}
		case <-end:
			return 99
		}
	}
}

// signalName returns a signal's name, such as INT, or its number if it has none.
func signalName(sig os.Signal) string {
	n := sig.(syscall.Signal)
	return cmp.Or(strings.TrimPrefix(unix.SignalName(n), "SIG"), strconv.Itoa(int(n)))
}

// self is the path of the test binary.
func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// fabrics are the fabrics of the tests; rounds is how many each name of a test has had.
var fabrics = struct {
	sync.Mutex
	of     map[*testing.T]string
	rounds map[string]int
}{of: map[*testing.T]string{}, rounds: map[string]int{}}

// fabricName gives every test locks of its own on the shared server, and new ones each time with -count.
func fabricName(t *testing.T) string {
	fabrics.Lock()
	defer fabrics.Unlock()
	if fabrics.of[t] == "" {
		name := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, t.Name())
		if fabrics.rounds[name]++; fabrics.rounds[name] > 1 {
			name += fmt.Sprint("-", fabrics.rounds[name])
		}
		fabrics.of[t] = name
	}
	return fabrics.of[t]
}

// lockfabric returns the command line on the shared server.
func lockfabric(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return bare(t, append([]string{"--server", server.ClientURL(), "--fabric", fabricName(t)}, args...)...)
}

// bare returns a command line without a server.
func bare(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(self(t), args...)
	// The race detector would have every process linger for a second at its end.
	cmd.Env = append(os.Environ(), actAs+"=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), "HOME="+t.TempDir(), "XDG_CACHE_HOME=", "XDG_STATE_HOME=", "LOCKFABRIC_SERVER=", "LOCKFABRIC_DIR=")
	return cmd
}

// proc is a running command line.
type proc struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner // of its stdout
	err   *lockedBuffer
	code  int
	once  sync.Once
}

// start starts it; what is left of it at the end of the test is killed.
func start(t *testing.T, cmd *exec.Cmd) *proc {
	t.Helper()
	p := &proc{t: t, cmd: cmd, err: &lockedBuffer{}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(r)
	cmd.Stdout = w
	if cmd.Stderr == nil {
		cmd.Stderr = p.err
	}
	cmd.WaitDelay = time.Second // for stderr, which a stray grandchild may keep open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	watchdog := time.AfterFunc(testTimeout, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		p.wait()
		watchdog.Stop()
		_ = r.Close()
		if t.Failed() {
			t.Logf("%v: exit code %d, stderr:\n%s", cmd.Args[1:], p.code, p.err)
		}
	})
	return p
}

// line returns the next line of stdout, "" at its end.
func (p *proc) line() string {
	p.t.Helper()
	if !p.lines.Scan() {
		return ""
	}
	return p.lines.Text()
}

// expect fails the test unless the next line is as wanted.
func (p *proc) expect(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("%v wrote %q, want %q", p.cmd.Args[1:], got, want)
	}
}

// ready waits for a child and returns its process id.
func (p *proc) ready() int {
	p.t.Helper()
	var pid int
	text := p.line()
	if _, err := fmt.Sscanf(text, "ready %d", &pid); err != nil {
		p.t.Fatalf("%v wrote %q, want that it is ready", p.cmd.Args[1:], text)
	}
	return pid
}

func (p *proc) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	if sig != syscall.SIGSTOP {
		return
	}
	// It takes a moment until all threads stand still.
	var status syscall.WaitStatus
	for !status.Stopped() {
		if pid, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); pid == -1 && !errors.Is(err, syscall.EINTR) {
			p.t.Fatal(err)
		}
	}
}

// wait returns the exit code, -1 if a signal ended it.
func (p *proc) wait() int {
	p.once.Do(func() {
		err := p.cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
			p.t.Error(err)
		}
		p.code = p.cmd.ProcessState.ExitCode()
	})
	return p.code
}

func (p *proc) exits(want int) {
	p.t.Helper()
	if got := p.wait(); got != want {
		p.t.Fatalf("%v: exit code %d, want %d; stderr: %s", p.cmd.Args[1:], got, want, p.err)
	}
}

// run runs a command line to its end. It repeats one that only tries when the server did not answer it: such a command does not wait
// for more than half a second, which a busy machine may take.
func run(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	for range 5 {
		again := &exec.Cmd{Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, Stdin: cmd.Stdin}
		code, stdout, stderr = runOnce(t, cmd)
		if code != 69 || !strings.Contains(strings.Join(cmd.Args, " "), "--wait 0") || !strings.Contains(stderr, "outcome unknown: context deadline exceeded") {
			break
		}
		cmd = again
	}
	return code, stdout, stderr
}

func runOnce(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, cmd)
	var out strings.Builder
	for p.lines.Scan() {
		out.WriteString(p.lines.Text() + "\n")
	}
	return p.wait(), out.String(), p.err.String()
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// manager looks at the test's locks from outside of the command.
func manager(t *testing.T, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	nc, err := server.Connect(nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	m, err := fabric.New(t.Context(), nc, append(opts, fabric.WithFabric(fabricName(t)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// waiters waits until so many wait for the lock.
func waiters(t *testing.T, m *fabric.Manager, key string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d waiters for %s", n, key), func() bool {
		info, err := m.Inspect(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return len(info.Waiters) == n
	})
}

// eventually asks until it is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout / 2); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}
