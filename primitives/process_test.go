package primitives_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// processTTL is that of the processes, unless their test says how long they have to live. It is short, for those that are killed.
const processTTL = 4 * time.Second

// immortal is the TTL of processes that nobody kills.
const immortal = "LOCKFABRIC_TEST_TTL=1m"

// roles are what a process of a test's own can do, by name. Its words come out of its standard output, one a line.
// It ends when its standard input does.
var roles = map[string]func(ctx context.Context, m *fabric.Manager, key string, say func(format string, args ...any)) error{
	"candidate":  candidate,
	"deadlocker": deadlocker,
	"producer":   producer,
	"condwaiter": condWaiter,
	"consumer":   consumer,
	"party":      party,
	"proclaimer": proclaimer,
}

// play is the whole life of such a process.
func play(role string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	ttl, err := time.ParseDuration(cmp.Or(os.Getenv("LOCKFABRIC_TEST_TTL"), processTTL.String()))
	if err != nil {
		panic(err)
	}
	m, err := fabric.Connect(ctx, os.Getenv("LOCKFABRIC_TEST_URL"), fabric.WithTTL(ttl), fabric.WithRoad(fabric.Road(os.Getenv("LOCKFABRIC_TEST_ROAD"))))
	if err == nil {
		err = roles[role](ctx, m, os.Getenv("LOCKFABRIC_TEST_KEY"), func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
		_ = m.Close()
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	return 0
}

// process is a process of a test's own.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string // closed when it has ended
	ended bool
	read  chan struct{} // for who reads all lines: closed then
}

// startProcess starts this test's program in a role.
func startProcess(t *testing.T, s *site, role, key string, env ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, roleVar+"="+role, "LOCKFABRIC_TEST_URL="+s.url(), "LOCKFABRIC_TEST_ROAD="+string(s.road), "LOCKFABRIC_TEST_KEY="+key)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: stdin, lines: make(chan string, 1000), read: make(chan struct{})}
	go func() {
		defer close(p.lines)
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

// next returns what the process says next.
func (p *process) next() string {
	p.t.Helper()
	return receive(p.t, p.lines)
}

// killUnread is kill where somebody else reads the lines.
func (p *process) killUnread() {
	_ = p.cmd.Process.Kill()
}

// kill ends the process at once, as a crash does.
func (p *process) kill() {
	if p.ended {
		return
	}
	p.ended = true
	_ = p.cmd.Process.Kill()
	for range p.lines {
	}
	_ = p.cmd.Wait()
	_ = p.stdin.Close()
}

// end has the process end by itself, and returns the last words that nobody has read.
func (p *process) end() []string {
	p.t.Helper()
	p.ended = true
	_ = p.stdin.Close()
	var words []string
	for line := range p.lines {
		words = append(words, line)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%s: %v", strings.Join(p.cmd.Args, " "), err)
	}
	return words
}
