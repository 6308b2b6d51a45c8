package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// console is a terminal with a program in it, seen by the user.
type console struct {
	t    *testing.T
	user *os.File
	out  *bufio.Reader
	cmd  *exec.Cmd
}

// newConsole starts a program as the leader of a terminal's session.
func newConsole(t *testing.T, cmd *exec.Cmd) *console {
	t.Helper()
	// Not blocking, so that reading from it can time out.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	user := os.NewFile(uintptr(fd), "terminal")
	c := &console{t: t, user: user, out: bufio.NewReader(user), cmd: cmd}
	if err := user.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = tty.Close()
	watchdog := time.AfterFunc(testTimeout, func() { killSession(cmd.Process.Pid) })
	t.Cleanup(func() {
		killSession(cmd.Process.Pid)
		_ = cmd.Wait()
		watchdog.Stop()
		_ = user.Close()
	})
	return c
}

// killSession ends everything that was started from a terminal: a job that is
// stopped would else stay behind.
func killSession(leader int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == leader {
			continue
		}
		if sid, err := unix.Getsid(pid); err == nil && sid == leader {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	_ = unix.Kill(leader, unix.SIGKILL)
}

func (c *console) keys(text string) {
	c.t.Helper()
	if _, err := c.user.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

// expect reads until a line contains the text, and returns what it has read.
func (c *console) expect(text string) string {
	c.t.Helper()
	var seen strings.Builder
	for {
		line, err := c.out.ReadString('\n')
		seen.WriteString(line)
		if strings.Contains(line, text) {
			return seen.String()
		}
		if err != nil {
			c.t.Fatalf("no %q on the terminal, but %q, %v", text, seen.String(), err)
		}
	}
}

func (c *console) exits(want int) {
	c.t.Helper()
	go func() { // the terminal's buffer must not fill up
		for {
			if _, err := c.out.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	_ = c.cmd.Wait()
	if got := c.cmd.ProcessState.ExitCode(); got != want {
		c.t.Errorf("exit code %d, want %d", got, want)
	}
}

func TestInteractiveCommand(t *testing.T) {
	t.Parallel()
	for name, redirect := range map[string]string{"at once": "", "on demand": "| cat"} {
		t.Run(name, func(t *testing.T) {
			// The shell gets the terminal back: it could not read otherwise.
			run := lockfabric(t, "run", "k", "--", "sh", "-c", `echo ask; read x </dev/tty; echo "got <$x>"; exit 3`)
			sh := exec.Command("sh", append([]string{"-c", `"$0" "$@" ` + redirect + `; echo "rc $?"; read y; echo "back <$y>"`}, run.Args...)...)
			sh.Env = run.Env
			c := newConsole(t, sh)
			c.expect("ask")
			c.keys("hello\n")
			c.expect("got <hello>")
			c.expect("rc ")
			c.keys("more\n")
			c.expect("back <more>")
			c.exits(0)
		})
	}
}

// Programs that ask whether they are in the foreground are, without having
// touched the terminal.
func TestTerminalIsLentAtOnce(t *testing.T) {
	t.Parallel()
	c := newConsole(t, lockfabric(t, "run", "k", "--", "sh", "-c",
		inFront+"echo foreground"))
	c.expect("foreground")
	c.exits(0)
}

// A command in a pipeline gets it when it asks, and its job is not stopped.
func TestTerminalIsLentInAPipeline(t *testing.T) {
	t.Parallel()
	c := shell(t, lockfabric(t, "run", "k", "--", "sh", "-c", `echo ask; read x </dev/tty; echo "got <$x>"; exit 4`), "| cat")
	c.expect("ask")
	c.keys("hello\n")
	c.expect("got <hello>")
	c.expect("code 0")
	c.keys("exit 0\n")
	c.exits(0)
}

// inFront is what a shell's script begins with to wait until it has the terminal: what
// is typed before goes to run, or gets lost.
const inFront = `while set -- $(cat /proc/$$/stat); [ "$5" != "$8" ]; do sleep 0.01; done; `

// ^C at the terminal reaches the command once, and what it makes of it counts.
func TestTerminalInterrupt(t *testing.T) {
	t.Parallel()
	c := newConsole(t, lockfabric(t, "run", "k", "--", self(t), "child", "INT"))
	c.expect("ready")
	c.keys("\x03")
	c.expect("got INT")
	c.exits(0)
}

// ^C at the terminal ends the command of an observer, which alone gets it, and the observer with it.
func TestTerminalInterruptEndsElectObserve(t *testing.T) {
	t.Parallel()
	c := newConsole(t, lockfabric(t, "elect", "svc", "--observe", "--", "sh", "-c", inFront+"echo in; read x"))
	c.expect("in")
	c.keys("\x03")
	c.exits(0)
}

// The others end as their command does, and a member of a double barrier when the others have left.
func TestTerminalInterruptEndsTheOthers(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"elect", "svc"}, {"run", "k"}, {"barrier", "b", "-n", "1"}} {
		c := newConsole(t, lockfabric(t, append(args, "--", "sh", "-c", inFront+"echo in; read x")...))
		c.expect("in")
		c.keys("\x03")
		c.exits(130)
	}
}

// ^Z where no shell could ever continue us is not honoured.
func TestTerminalStopWithoutShell(t *testing.T) {
	t.Parallel()
	c := newConsole(t, lockfabric(t, "run", "k", "--", "sh", "-c", inFront+`echo in; read x; echo "got <$x>"`))
	c.expect("in")
	c.keys("\x1a")
	c.keys("on\n")
	c.expect("got <on>")
	c.exits(0)
}

// shell is an interactive one, which stops and continues jobs.
func shell(t *testing.T, run *exec.Cmd, redirect string) *console {
	t.Helper()
	sh := exec.Command("sh", "-i")
	sh.Env = append(slices.Clone(run.Env), "PS1=", "ENV=")
	c := newConsole(t, sh)
	c.keys("stty -echo; echo shell $((40+2))\n") // echoed or not
	c.expect("shell 42")
	c.keys("'" + strings.Join(run.Args, "' '") + "' " + redirect + "; echo \"code $?\"\n")
	return c
}

// ^Z stops the command and its run, so that the shell gets its prompt, and fg
// continues both with the terminal.
func TestTerminalStop(t *testing.T) {
	t.Parallel()
	c := shell(t, lockfabric(t, "run", "k", "--", "sh", "-c", inFront+`echo in; read x; echo "got <$x>"; exit 4`), "")
	c.expect("in")
	c.keys("\x1a")
	c.expect("code 147") // 128 + SIGSTOP
	c.keys("fg; echo \"then $?\"\n")
	c.keys("on\n")
	c.expect("got <on>")
	c.expect("then 4")
	c.keys("exit 0\n")
	c.exits(0)
}

// A command that is killed leaves the terminal as it was before; one that ends by
// itself leaves it as it wants it.
func TestTerminalModes(t *testing.T) {
	t.Parallel()
	for end, want := range map[string]struct {
		code   string
		cooked bool
	}{"kill -KILL $$": {"137", true}, "exit 3": {"3", false}} {
		c := shell(t, lockfabric(t, "run", "k", "--", "sh", "-c", "stty -icanon min 1; echo in; "+end), "")
		c.expect("in")
		c.expect("code " + want.code)
		modes, err := unix.IoctlGetTermios(int(c.user.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if cooked := modes.Lflag&unix.ICANON != 0; cooked != want.cooked {
			t.Errorf("after %q: lines are edited: %v, want %v", end, cooked, want.cooked)
		}
		c.keys("exit 0\n")
		c.exits(0)
	}
}

// A command that asks for the terminal while it is being lent to it goes on: there is
// nobody else to wait for.
func TestTerminalIsLentToWhoHasIt(t *testing.T) {
	t.Parallel()
	c := shell(t, lockfabric(t, "run", "k", "--", "sh", "-c",
		inFront+"kill -TTIN $$; kill -TTOU $$; echo went on; exit 4"), "")
	if text := c.expect("code "); !strings.Contains(text, "went on") || !strings.Contains(text, "code 4") {
		t.Errorf("%q", text)
	}
	c.keys("exit 0\n")
	c.exits(0)
}

// A run that was stopped for longer than its lease has lost the lock: its
// command must not go on.
func TestTerminalStopPastTheLease(t *testing.T) {
	t.Parallel()
	c := shell(t, lockfabric(t, "run", "k", "--ttl", "3s", "--", "sh", "-c", inFront+`trap "echo went on" CONT; echo in; read x; echo "went on"`), "")
	c.expect("in")
	c.keys("\x1a")
	c.expect("code 147")
	if code, _, stderr := run(t, lockfabric(t, "run", "k", "--", "true")); code != 0 {
		t.Fatalf("a stopped holder is not replaced: exit code %d, %s", code, stderr)
	}
	c.keys("fg; echo \"then $?\"\n")
	if text := c.expect("then "); !strings.Contains(text, "then 76") || strings.Contains(text, "\nwent on") {
		t.Errorf("after the lease: %q", text)
	}
	c.keys("exit 0\n")
	c.exits(0)
}

func TestTerminalLog(t *testing.T) {
	t.Parallel()
	for _, plain := range []string{"", "1"} {
		serve := bare(t, "serve", "--store", t.TempDir(), "--listen", "127.0.0.1:0")
		serve.Env = append(serve.Env, "NO_COLOR="+plain)
		c := newConsole(t, serve)
		if line := c.expect("Server is ready"); strings.Contains(line, "\x1b[") != (plain == "") || strings.Contains(line, "level=") {
			t.Errorf("NO_COLOR=%q: %q", plain, line)
		}
		c.expect("serving nats://")
		c.keys("\x03")
		c.exits(0)
	}
}

// Nothing is taken from many before somebody has said so.
func TestReleasePrefixIsConfirmed(t *testing.T) {
	t.Parallel()
	lock, err := manager(t).Acquire(t.Context(), "photos/a")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ keys, want string }{{"\n", "nothing was taken"}, {"no\n", "nothing was taken"}, {"y\n", "photos/a: 1 holder(s) told to let go"}} {
		if lock.Err() != nil {
			t.Fatal(lock.Err())
		}
		c := newConsole(t, lockfabric(t, "release", "--force", "--prefix", "photos/"))
		c.expect("  photos/a")
		c.upTo("[y/N] ")
		c.keys(tt.keys)
		c.expect(tt.want)
		c.exits(0)
	}
	<-lock.Lost()
}
