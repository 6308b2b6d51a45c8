package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// waitingConsole is a terminal of this width with a run in it that has to wait.
func waitingConsole(t *testing.T, m *fabric.Manager, width uint16, cmd *exec.Cmd) *console {
	t.Helper()
	// The size is set before the command looks: it looks again for each line.
	c := newConsole(t, cmd)
	if err := unix.IoctlSetWinsize(int(c.user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: width}); err != nil {
		t.Fatal(err)
	}
	waiters(t, m, "k", 1)
	return c
}

// upTo reads until the text was written, not necessarily at the end of a line.
func (c *console) upTo(text string) string {
	c.t.Helper()
	var seen []byte
	for !bytes.Contains(seen, []byte(text)) {
		b, err := c.out.ReadByte()
		if err != nil {
			c.t.Fatalf("no %q on the terminal, but %q, %v", text, seen, err)
		}
		seen = append(seen, b)
	}
	return string(seen)
}

func TestProgress(t *testing.T) {
	t.Parallel()
	m := manager(t)
	lock, err := m.Acquire(t.Context(), "k", fabric.WithOwner("Zoë\x1b[2J"))
	if err != nil {
		t.Fatal(err)
	}
	c := waitingConsole(t, m, 200, lockfabric(t, "run", "k", "--", "echo", "in"))
	first := c.upTo("s ago")
	for _, want := range []string{"waiting ", " for k", "1 of 1 in the queue", `held by "Zoë\x1b[2J"`, "on " + hostname(), "pid "} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in %q", want, first)
		}
	}
	if !strings.HasPrefix(first, clearLine) || strings.Contains(first, "\n") || strings.Contains(first, "\x1b[2J") || strings.Contains(strings.ReplaceAll(first, clearLine, ""), "\x1b") {
		t.Errorf("not one line that can be erased, without colour: %q", first)
	}
	c.upTo(clearLine + "waiting ") // again, in place
	if err := lock.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	// What is on the screen in the end is the command's.
	if rest := c.upTo("in\r\n"); !strings.HasSuffix(rest, clearLine+"in\r\n") {
		t.Errorf("not erased: %q", rest)
	}
	c.exits(0)
}

// Where no queue is, it says how many have come.
func TestProgressOfABarrier(t *testing.T) {
	t.Parallel()
	c := waitingConsole(t, manager(t), 200, lockfabric(t, "barrier", "k", "-n", "3"))
	c.upTo(" for k, 1 of 3 arrived")
	c.keys("\x03")
	c.exits(130)
}

func TestGcProgress(t *testing.T) {
	t.Parallel()
	leftDead(t, "3s", "k", "1 of 1 ", "gc", "--dry-run")
	c := newConsole(t, lockfabric(t, "gc"))
	c.upTo("s: what looks dead is observed")
	c.expect("1 of 1 processes dead")
	c.exits(0)
}

func TestProgressFitsTheTerminal(t *testing.T) {
	t.Parallel()
	m := manager(t)
	lock, err := m.Acquire(t.Context(), "k", fabric.WithOwner(strings.Repeat("長い", 30)))
	if err != nil {
		t.Fatal(err)
	}
	c := waitingConsole(t, m, 60, lockfabric(t, "run", "k", "--", "echo", "in"))
	c.upTo("...")
	c.upTo(clearLine)
	line := strings.TrimSuffix(c.upTo("..."), clearLine)
	columns := 0
	for _, r := range line {
		columns++
		if r > 0x1100 {
			columns++
		}
	}
	if columns >= 60 || columns < 50 || !strings.Contains(line, "長い") {
		t.Errorf("%d columns: %q", columns, line)
	}
	if err := lock.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.exits(0)
}

// A slow link: 2 ms for each of a thousand round trips.
func TestDoctorProgress(t *testing.T) {
	t.Parallel()
	made(t, server.ClientURL())
	proxy := faultproxy.New(t, server.ClientURL())
	proxy.SetDelay(time.Millisecond, 0)
	c := newConsole(t, bare(t, "--server", proxy.URL(), "--fabric", fabricName(t), "doctor", "--no-probe", "--probes", "1000"))
	line := c.upTo(" of 1000")
	if !strings.HasPrefix(line, clearLine+"doctor ") || !strings.Contains(line, "s: rtt, ") || strings.Contains(line, "\n") {
		t.Errorf("%q", line)
	}
	// What is on the screen in the end is the report.
	if rest := c.upTo("STATUS"); !strings.HasSuffix(rest, clearLine+"STATUS") {
		t.Errorf("not erased: %q", rest)
	}
	c.exits(0)
}

// A wait that lasts for seconds, and not a byte about it.
func TestNoProgress(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		env  string
		pipe bool
	}{
		"no terminal": {pipe: true},
		"asked":       {args: []string{"--no-progress"}},
		"json":        {args: []string{"--output", "json"}},
		"dumb":        {env: "TERM=dumb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := manager(t)
			lock, err := m.Acquire(t.Context(), "k", fabric.WithMode(fabric.Shared))
			if err != nil {
				t.Fatal(err)
			}
			// It waits longer than a line takes to show up, and then gives up.
			cmd := lockfabric(t, append(append([]string{"run", "k", "--wait", "2500ms"}, tt.args...), "--", "echo", "in")...)
			cmd.Env = append(cmd.Env, tt.env)
			var seen string
			if tt.pipe {
				file := start(t, cmd)
				file.exits(75)
				seen = file.err.String()
			} else {
				seen = newConsole(t, cmd).expect("held by")
			}
			if strings.Contains(seen, "\x1b") || strings.Contains(seen, "waiting ") || strings.Count(seen, "\n") != 1 {
				t.Errorf("%q", seen)
			}
			if err := lock.Release(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A log line goes before what is shown, and that stays.
func TestStatusLine(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := &statusLine{term: w, shown: "waiting"}
	if _, err := l.Write([]byte("log\n")); err != nil {
		t.Fatal(err)
	}
	l.show("") // no terminal, so there is nothing to erase
	w.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil || b.String() != clearLine+"log\nwaiting" {
		t.Errorf("%q, %v", b.String(), err)
	}
	for _, tt := range []struct {
		text    string
		columns int
		want    string
	}{{"abcdef", 6, "abcdef"}, {"abcdefg", 6, "abc..."}, {"日本語", 6, "日本語"}, {"日本語x", 6, "日..."}, {"a\x1b[2J\nb", 20, "a [2J b"}, {"abc", 2, ".."}, {"abc", 0, ""}} {
		if got := fit(tt.text, tt.columns); got != tt.want {
			t.Errorf("%q in %d columns: %q, want %q", tt.text, tt.columns, got, tt.want)
		}
	}
}
