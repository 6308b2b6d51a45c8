//go:build unix

package main

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// A run whose server is gone when its command ends is over within the time that docs/command.md
// says, and its exit code is the command's.
func TestRunEndsSoonWithoutItsServer(t *testing.T) {
	t.Parallel()
	serve, s := startServe(t, nil, "--store", t.TempDir()+"/s", "--listen", "127.0.0.1:0")
	p := start(t, bare(t, "--server", s.URL, "run", "k", "--", self(t), "child", "TERM"))
	p.ready()
	serve.signal(syscall.SIGSTOP)
	p.signal(syscall.SIGTERM)
	p.expect("got TERM")
	begun := time.Now()
	p.exits(0)
	if took := time.Since(begun); took > 12*time.Second {
		t.Errorf("run stayed for %v", took)
	}
	serve.signal(syscall.SIGCONT)
	serve.signal(killable)
	serve.exits(0)
}

// ls names the process behind a hold.
func TestLsNamesTheHolder(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--", self(t), "child", "TERM"))
	p.ready()
	code, stdout, stderr := run(t, lockfabric(t, "ls"))
	if code != 0 || !strings.Contains(stdout, " pid ") {
		t.Errorf("exit code %d, %s, %s", code, stdout, stderr)
	}
	p.signal(killable)
	p.exits(0)
}
