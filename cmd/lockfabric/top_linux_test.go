package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockfabric/lockfabric/fabric"
)

// frame returns the next picture of top that the terminal shows, without what erases.
func (c *console) frame() []string {
	c.t.Helper()
	_, text, ok := strings.Cut(c.upTo(clearBelow), topLeft)
	if !ok {
		c.t.Fatalf("no whole picture: %q", text)
	}
	return strings.Split(strings.ReplaceAll(strings.TrimSuffix(text, clearRight+clearBelow), clearRight, ""), "\r\n")
}

// shows waits for a picture that has these lines, whatever is between their columns.
func (c *console) shows(want ...string) []string {
	c.t.Helper()
	for {
		lines, found := c.frame(), 0
		for _, line := range lines {
			line = strings.Join(strings.Fields(line), " ")
			if found < len(want) && regexp.MustCompile(want[found]).MatchString(line) {
				found++
			}
		}
		if found == len(want) {
			return lines
		}
	}
}

func (c *console) resize(rows, columns uint16) {
	c.t.Helper()
	if err := unix.IoctlSetWinsize(int(c.user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		c.t.Fatal(err)
	}
}

func TestTop(t *testing.T) {
	t.Parallel()
	m := manager(t)
	hold := func(key string, opts ...fabric.AcquireOption) *fabric.Lock {
		t.Helper()
		l, err := m.Acquire(t.Context(), key, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	hold("photos/a", fabric.WithOwner("Zoë\x1b[2J"))
	c := newConsole(t, lockfabric(t, "top", "--every", "50ms"))
	c.resize(24, 100)
	c.shows(`1 in use, 1 hold, 0 wait, 0\.0 writes/s, by waiters$`, `^KEY KIND STATE HOLDERS WAITERS RATE AGE WAITED OWNER$`,
		fmt.Sprintf(`^photos/a lock X 1 0 0\.0 \d+s - "Zoë\\x1b\[2J" on %s pid \d+$`, regexp.QuoteMeta(hostname())))
	films := []*fabric.Lock{hold("films/b", fabric.WithMode(fabric.Shared)), hold("films/b", fabric.WithMode(fabric.Shared))}
	waiter := start(t, lockfabric(t, "run", "films/b", "--", "true"))
	c.shows(`2 in use, 3 hold, 1 wait`, `^films/b lock S 2 1 .* \d+s \d+s `, `photos/a`) // who is waited for is on top
	for _, l := range films {
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	waiter.exits(0)
	c.shows(`1 in use, 1 hold, 0 wait`)

	// Rates, and the order of another column.
	done, busy := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(busy)
		for {
			select {
			case <-done:
				return
			default:
				if l, err := m.Acquire(t.Context(), "zoo"); err == nil {
					_ = l.Release(t.Context())
				}
			}
		}
	}()
	c.keys("ss")
	c.shows(`[1-9]\d*\.\d writes/s, by rate$`, `^zoo .* [1-9]\d*\.\d `, `photos/a`)
	close(done)
	<-busy
	c.keys("ss")
	for i := range 10 {
		hold(fmt.Sprint("key", i))
	}
	c.shows(`11 in use, .* by key$`, `^KEY`, `^key0 `, `^key9 `, `^photos/a `)
	c.resize(4, 30)
	for len(c.frame()) != 4 {
	}
	if lines := c.frame(); !strings.Contains(lines[3], "key1 ") {
		t.Errorf("in a small terminal: %q", lines)
	}
	c.keys("q")
	c.upTo(leaveScreen)
	c.exits(0)
	modes, err := unix.IoctlGetTermios(int(c.user.Fd()), unix.TCGETS)
	if err != nil || modes.Lflag&unix.ICANON == 0 || modes.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal is left as %+v, %v", modes, err)
	}
}

// A signal ends it as a key does, and leaves the terminal as it was.
func TestTopIsEnded(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(c *console){
		"^C":   func(c *console) { c.keys("\x03") },
		"TERM": func(c *console) { _ = c.cmd.Process.Signal(killable) },
	} {
		c := newConsole(t, lockfabric(t, "top", "--every", "50ms", "nobodys/"))
		c.resize(24, 80)
		c.shows(`0 in use`)
		end(c)
		c.upTo(leaveScreen)
		c.exits(0)
		if modes, err := unix.IoctlGetTermios(int(c.user.Fd()), unix.TCGETS); err != nil || modes.Lflag&unix.ICANON == 0 {
			t.Errorf("%s: the terminal is left as %+v, %v", name, modes, err)
		}
	}
}

// Without a terminal it writes the table once, or says how.
func TestTopOnce(t *testing.T) {
	t.Parallel()
	if _, err := manager(t).Acquire(t.Context(), "photos/a"); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := run(t, lockfabric(t, "top", "--once", "--every", "10ms", "--sort", "age", "photos/"))
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if code != 0 || stderr != "" || len(lines) != 3 || !strings.HasSuffix(lines[0], ", by age") || !strings.HasPrefix(lines[2], "photos/a ") || strings.Contains(stdout, "\x1b") {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	for want, args := range map[string][]string{"give --once": {}, "--every=0s": {"--once", "--every", "0s"}, "for people": {"--once", "--output", "json"}, "waiters": {"--sort", "x"}} {
		if code, stdout, stderr := run(t, lockfabric(t, append([]string{"top"}, args...)...)); code != 64 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit code %d, %q, %s, want %s", args, code, stdout, stderr, want)
		}
	}
}
