//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestServe(t *testing.T) {
	t.Parallel()
	store := filepath.Join(t.TempDir(), "store")
	p := start(t, bare(t, "serve", "--store", store, "--listen", "127.0.0.1:0", "--allow-remote", "--log-level", "error"))
	text := p.line()
	url, rest, _ := strings.Cut(strings.TrimPrefix(text, "serving "), " ")
	if !strings.HasPrefix(url, "nats://127.0.0.1:") || rest != "from "+store {
		t.Fatalf("ready with %q", text)
	}
	cmd := bare(t, "run", "k", "--", "true")
	cmd.Env = append(cmd.Env, "LOCKFABRIC_SERVER="+url) // a server by the environment
	start(t, cmd).exits(0)
	if code, _, stderr := run(t, bare(t, "serve", "--store", store, "--listen", "127.0.0.1:0")); code != 69 || !strings.Contains(stderr, "in use") {
		t.Errorf("second server: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := run(t, bare(t, "serve", "--store", store+"2", "--log-level", "error", "--listen", strings.TrimPrefix(url, "nats://"))); code != 69 || !strings.Contains(stderr, "address already in use") || !strings.Contains(stderr, "another one with --listen") {
		t.Errorf("second server on the address: exit code %d, %s", code, stderr)
	}
	p.signal(killable)
	p.exits(0)
	if text := p.err.String(); text != "" {
		t.Errorf("stderr %q", text)
	}
}

func TestServeJSON(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	cmd := bare(t, "--output", "json", "serve", "--listen", "127.0.0.1:0", "--sync", "50ms", "--idle-exit", "50ms")
	cmd.Env = append(cmd.Env, "LOCKFABRIC_STORE="+store)
	p := start(t, cmd)
	var out strings.Builder
	for text := p.line(); text != ""; text = p.line() {
		out.WriteString(text)
	}
	var got serving
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.URL, "nats://") || got.Store != store || got.PID != p.cmd.Process.Pid || got.Cluster != "" || got.Auth || got.TLS {
		t.Errorf("%+v", got)
	}
	p.exits(0) // nobody came
	for l := range strings.SplitSeq(strings.TrimSpace(p.err.String()), "\n") {
		if !json.Valid([]byte(l)) {
			t.Errorf("log line %q", l)
		}
	}
}

// Signals that come before the server has started: it waits for its password in a
// named pipe meanwhile.
func TestServeEarlySignals(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	early := func(sig os.Signal) *proc {
		p := start(t, bare(t, "--log-level", "error", "serve", "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--allow-user", "bob", "--password-file", pipe))
		w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // waits for the reader
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		p.signal(sig)
		if _, err := w.WriteString("open sesame\n"); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := early(killable)
	p.exits(0)
	if text := p.err.String(); text != "" {
		t.Errorf("ended before it started, it says %q", text)
	}
	p = early(syscall.SIGHUP)
	if text := p.line(); !strings.HasPrefix(text, "serving ") {
		t.Errorf("SIGHUP before it started: %q", text)
	}
	p.signal(killable)
	p.exits(0)
}

// A write that fails is the end of a server, not a hang of all its clients. The
// limit for files stands for a full disk.
func TestServeStoreFailure(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	args := []string{"serve", "--store", store, "--listen", "127.0.0.1:0", "--log-level", "error"}
	cmd := bare(t, append([]string{"-c", `ulimit -f 8; exec "$0" "$@"`, self(t)}, args...)...)
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = sh
	cmd.Env = append(cmd.Env, notesEnv+"=") // the file of notes may be larger by now
	p := start(t, cmd)
	url := strings.Fields(p.line())[1]
	eventually(t, "word of a store that can't be written", func() bool {
		_, _, _ = run(t, bare(t, "--server", url, "--timeout", "2s", "run", "k", "--", "true"))
		text := p.err.String()
		return strings.Contains(text, "lockfabric: serve: store can't be written: ") && strings.Contains(text, "start the server again\n")
	})
	p.exits(69)
	p = start(t, bare(t, args...))
	url = strings.Fields(p.line())[1]
	start(t, bare(t, "--server", url, "run", "k", "--", "true")).exits(0)
}

func TestServeUsage(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "--store"},
		{[]string{"--store", store, "--user", "bob", "--password", "secret"}, "serve --user: that is for commands that connect"},
		{[]string{"--store", store, "--tlsca", "ca.pem"}, "serve --tlsca: that is for commands that connect"},
		{[]string{"--store", store, "--listen", "0.0.0.0:0"}, "--allow-user, --token-file, --allow-nkey or --tls-verify"},
		{[]string{"--store", store, "--listen", "nowhere"}, "host:port"},
		{[]string{"--store", store, "--sync", "sometimes"}, "--sync"},
		{[]string{"--store", store, "--sync", "1ns"}, "interval"},
		{[]string{"--store", store, "--idle-exit=-1s"}, "--idle-exit"},
		{[]string{"--store", store, "--shards=-1"}, "serve --shards=-1: give 1 to 64"},
		{[]string{"--store", store, "--shards=0"}, "serve --shards=0: give 1 to 64"},
		{[]string{"--store", store, "--shards=65"}, "serve --shards=65: give 1 to 64"},
		{[]string{"--store", store, "--routes", "127.0.0.1:1"}, "--cluster-listen"},
		{[]string{"--store", store, "--cluster-listen", "127.0.0.1:0", "--routes", "127.0.0.1:1"}, "--name"},
	} {
		code, stdout, stderr := run(t, bare(t, append([]string{"serve"}, tt.args...)...))
		if code != 64 || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

// freeAddrs returns addresses that are free now. Systems give no ports of this range to connections, so that nobody
// takes one before it is used.
func freeAddrs(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for len(addrs) < n {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 15000+rand.IntN(15000)))
		if err != nil {
			continue // taken
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

func TestServeCluster(t *testing.T) {
	t.Parallel()
	routes := freeAddrs(t, 3)
	dir := t.TempDir()
	var nodes []*proc
	var urls []string
	for i, r := range routes {
		p := start(t, bare(t, "serve", "--store", filepath.Join(dir, fmt.Sprint(i)), "--listen", "127.0.0.1:0", "--log-level", "error",
			"--name", fmt.Sprintf("node%d", i), "--cluster-name", "test", "--cluster-listen", r, "--routes", strings.Join(routes, ",")))
		nodes = append(nodes, p)
	}
	for _, p := range nodes {
		f := strings.Fields(p.line())
		if len(f) != 4 {
			t.Fatalf("not ready: %q", f)
		}
		urls = append(urls, f[1])
	}
	all := strings.Join(urls, ",")
	// Two servers can have a leader, and no place for three replicas until they know the third one.
	eventually(t, "a cluster of three", func() bool {
		code, _, _ := run(t, bare(t, "--server", all, "--timeout", "40s", "ls"))
		return code == 0
	})
	holder := start(t, bare(t, "--server", all, "--timeout", "40s", "run", "k", "--", self(t), "child", "TERM"))
	holder.ready()
	if code, _, stderr := run(t, bare(t, "--server", urls[2], "run", "k", "--wait", "0", "--", "true")); code != 75 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	// The lock outlives a node.
	nodes[0].signal(os.Interrupt)
	nodes[0].exits(0)
	if code, _, stderr := run(t, bare(t, "--server", urls[1], "--timeout", "40s", "inspect", "k")); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	holder.signal(killable)
	holder.exits(0)
}
