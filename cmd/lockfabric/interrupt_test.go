//go:build unix

package main

import (
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
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

// A server that says nothing keeps nobody either: the client waits for it for seconds.
func TestInterruptedWhileConnecting(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		code int
	}{"run": {[]string{"run", "k", "--", "echo", "in"}, 143}, "watch": {[]string{"inspect", "--watch", "k"}, 0}} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			servers := "127.0.0.1:" + port + ",localhost:" + port
			p := start(t, bare(t, append([]string{"--server", servers, "--timeout", "1h"}, tt.args...)...))
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p.signal(syscall.SIGTERM)
			p.exits(tt.code)
			// It has not gone on to the next server.
			marker, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer marker.Close()
			next, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			if next.RemoteAddr().String() != marker.LocalAddr().String() {
				t.Error("it tried another server")
			}
			if text := p.err.String(); (text != "") != (tt.code != 0) {
				t.Errorf("stderr %q", text)
			}
		})
	}
}
