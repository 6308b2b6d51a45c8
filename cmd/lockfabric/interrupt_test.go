//go:build unix

package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/faultproxy"
)

// insist signals a program until it has ended.
func (p *proc) insist(sig syscall.Signal) {
	p.t.Helper()
	ended := make(chan struct{})
	go func() {
		p.wait()
		close(ended)
	}()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-tick.C:
			_ = p.cmd.Process.Signal(sig) // it may be gone
		case <-ended:
			tick.Stop()
			return
		}
	}
}

// Whoever wants to end a run need not wait for a server that does not answer.
func TestInsistingEndsTheRelease(t *testing.T) {
	t.Parallel()
	proxy := faultproxy.New(t, server.ClientURL())
	p := start(t, bare(t, "--server", proxy.URL(), "--fabric", fabricName(t), "run", "k", "--", self(t), "child", "INT"))
	p.ready()
	proxy.Stall(true)
	p.insist(syscall.SIGINT)
	p.exits(0) // the command's
	if text := p.err.String(); !strings.Contains(text, "given up") || strings.Count(text, "\n") != 1 {
		t.Errorf("stderr %q", text)
	}
}

func TestInsistingEndsTheWait(t *testing.T) {
	t.Parallel()
	m := manager(t)
	if _, err := m.Acquire(t.Context(), "k", fabric.WithMode(fabric.Shared)); err != nil {
		t.Fatal(err)
	}
	proxy := faultproxy.New(t, server.ClientURL())
	p := start(t, bare(t, "--server", proxy.URL(), "--fabric", fabricName(t), "run", "k", "--", "echo", "in"))
	waiters(t, m, "k", 1)
	proxy.Stall(true)
	p.insist(syscall.SIGTERM)
	p.exits(143)
	if text := p.err.String(); !strings.Contains(text, "nothing is held, but no server has confirmed") || strings.Count(text, "\n") != 1 {
		t.Errorf("stderr %q", text)
	}
}
