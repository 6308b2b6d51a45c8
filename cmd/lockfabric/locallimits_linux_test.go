package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The local server is everybody's, and not limited by what the one who happened to
// start it had set for itself.
func TestLocalServerIsFreeOfItsStarter(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	cmd := m.command()
	// As root it may take back the niceness, too.
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c",
		`trap "" TERM INT HUP; umask 0; ulimit -S -t 1000; ulimit -S -f 1000000; exec nice -n 5 "$0" run k -- "$0" child none`, self(t)}
	holder := start(t, cmd)
	pid := holder.ready()
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	server := m.mustState().PID
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", server))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Max cpu time", "Max file size", "Max open files"} {
		_, line, ok := strings.Cut(string(limits), name)
		if f := strings.Fields(line); !ok || len(f) < 2 || f[0] != f[1] {
			t.Errorf("%s: %.40s", name, line)
		}
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", server))
	if err != nil || len(threads) == 0 {
		t.Fatal(threads, err)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if nice := fields[16]; os.Geteuid() == 0 && nice != "0" {
			t.Errorf("%s: nice %s", path, nice)
		}
	}
	if err := unix.Kill(server, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the server by SIGTERM", func() bool { return gone(server) })
}

// A hard limit can't be raised: then the server does not start, and whoever would have
// started it learns why.
func TestTooFewFilesForTheLocalServer(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	limited := func() (int, string) {
		cmd := m.command()
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `ulimit -n 30; exec "$0" ls`, self(t)}
		code, _, stderr := run(t, cmd)
		return code, stderr
	}
	if code, stderr := limited(); code != 69 || !strings.Contains(stderr, "at most 30 files may be open") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if code, _, stderr := run(t, m.command("ls")); code != 0 {
		t.Errorf("without the limit: exit code %d, %s", code, stderr)
	}
	if code, stderr := limited(); code != 0 {
		t.Errorf("with a server that others started: exit code %d, %s", code, stderr)
	}
}
