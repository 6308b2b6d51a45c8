package main

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// launched has a command line started with signals ignored and blocked.
func launched(t *testing.T, ignored, blocked []syscall.Signal, cmd *exec.Cmd) *exec.Cmd {
	list := func(sigs []syscall.Signal) string {
		var text []string
		for _, s := range sigs {
			text = append(text, strconv.Itoa(int(s)))
		}
		return strings.Join(text, ",")
	}
	path, err := exec.LookPath(cmd.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	by := exec.Command(self(t), append([]string{"launch", list(ignored), list(blocked), path}, cmd.Args[1:]...)...)
	by.Env = append(os.Environ(), actAs+"=1")
	if cmd.Env != nil {
		by.Env = cmd.Env
	}
	return by
}

// dispositions returns the lines of /proc/self/status that "cat" prints of itself.
func dispositions(t *testing.T, cmd *exec.Cmd) map[string]string {
	t.Helper()
	code, stdout, stderr := run(t, cmd)
	lines := map[string]string{}
	for line := range strings.Lines(stdout) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && slices.Contains([]string{"SigIgn", "SigBlk", "SigCgt"}, name) {
			lines[name] = strings.TrimSpace(value)
		}
	}
	if code != 0 || len(lines) != 3 {
		t.Fatalf("exit code %d, %s, %s", code, stdout, stderr)
	}
	return lines
}

// A command under run starts with signals as it would without: ignored by nohup, a
// shell's trap or systemd, or blocked.
func TestSignalDispositionsAreInherited(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ ignored, blocked []syscall.Signal }{
		"none":    {},
		"trap":    {ignored: []syscall.Signal{unix.SIGTERM}},
		"systemd": {ignored: []syscall.Signal{unix.SIGPIPE}},
		"many": {ignored: []syscall.Signal{
			unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGCONT,
			unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGPROF, unix.SIGWINCH, unix.SIGIO, unix.SIGPWR, 35, 64,
		}},
		"blocked": {blocked: []syscall.Signal{unix.SIGUSR1, 40}},
	} {
		t.Run(name, func(t *testing.T) {
			var known []syscall.Signal
			for _, sig := range c.ignored {
				if remembered(sig) {
					known = append(known, sig)
				}
			}
			want := dispositions(t, launched(t, known, c.blocked, exec.Command("cat", "/proc/self/status")))
			got := dispositions(t, launched(t, c.ignored, c.blocked, lockfabric(t, "run", "k", "--", "cat", "/proc/self/status")))
			if !maps.Equal(got, want) {
				t.Errorf("%v under run, %v without", got, want)
			}
		})
	}
}

// What is ignored at the start does not end a run that waits either.
func TestIgnoredSignalsDontEndAWait(t *testing.T) {
	t.Parallel()
	m := manager(t)
	if _, err := m.Acquire(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	p := start(t, launched(t, []syscall.Signal{unix.SIGHUP}, nil, lockfabric(t, "run", "k", "--", "true")))
	waiters(t, m, "k", 1)
	p.signal(unix.SIGHUP)
	p.signal(unix.SIGTERM)
	p.exits(143)
}

// Every signal that Go can catch, and which does not come of what run does itself,
// gets to the command.
func TestEverySignalIsPassedOn(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--", self(t), "child", "TERM"))
	p.ready()
	for _, sig := range endings {
		if sig != unix.SIGTERM {
			p.signal(sig)
			p.expect("got " + signalName(sig))
		}
	}
	p.signal(unix.SIGTERM)
	p.expect("got TERM")
	p.exits(0)
	if text := p.err.String(); text != "" {
		t.Errorf("stderr %q", text)
	}
	all := map[int]bool{}
	for _, sig := range forwarded {
		all[signalNumber(sig)] = true
	}
	for _, sig := range []syscall.Signal{
		unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGXFSZ, unix.SIGTTIN, unix.SIGTTOU, unix.SIGPROF, 32, 33, 34,
	} { // as the page of run says
		if all[int(sig)] {
			t.Errorf("%v is passed on", sig)
		}
		all[int(sig)] = true
	}
	for n := 1; n <= int(lastSignal); n++ {
		if !all[n] {
			t.Errorf("signal %d (%s) is neither passed on nor named as an exception", n, unix.SignalName(syscall.Signal(n)))
		}
	}
}
