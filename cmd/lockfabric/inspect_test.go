//go:build unix

package main

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

func TestInspectWatch(t *testing.T) {
	t.Parallel()
	m := manager(t)
	asJSON := start(t, lockfabric(t, "--output", "json", "inspect", "--watch", "k"))
	text := start(t, lockfabric(t, "inspect", "k", "--watch"))
	// shows waits until both show it, each in a whole line.
	shows := func(line string, so func(w watched) bool) {
		t.Helper()
		for {
			var w watched
			one := asJSON.line()
			if err := json.Unmarshal([]byte(one), &w); err != nil || w.Key != "k" || time.Since(w.Time).Abs() > time.Hour {
				t.Fatalf("%q: %v", one, err)
			}
			if so(w) {
				break
			}
		}
		for {
			one := text.line()
			if one == "" && !text.lines.Scan() {
				t.Fatalf("ended before %q", line)
			} else if one == "" {
				one = text.lines.Text()
			}
			at, rest, _ := strings.Cut(one, " ")
			if _, err := time.Parse(time.RFC3339, at); err == nil && strings.HasPrefix(rest, "k "+line+", revision ") {
				return
			}
		}
	}
	shows("free", func(w watched) bool { return w.Kind == "" && len(w.Holders) == 0 })
	lock, err := m.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	shows("held", func(w watched) bool { return len(w.Holders) == 1 && w.Holders[0].Token == lock.Token() })
	if err := lock.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	shows("free", func(w watched) bool { return w.Kind == "" && len(w.Holders) == 0 })
	asJSON.signal(os.Interrupt)
	text.signal(syscall.SIGTERM)
	asJSON.exits(0)
	text.exits(0)
	if asJSON.err.String()+text.err.String() != "" {
		t.Errorf("stderr: %s%s", asJSON.err, text.err)
	}
	// One that can't go on says why.
	if code, _, stderr := run(t, lockfabric(t, "inspect", "--watch", "a\nb")); code != 65 && code != 64 || stderr == "" {
		t.Errorf("bad name: exit code %d, %q", code, stderr)
	}
}

func TestInspectConversion(t *testing.T) {
	t.Parallel()
	m := manager(t)
	a, err := m.Acquire(t.Context(), "k", fabric.WithMode(fabric.Shared))
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Acquire(t.Context(), "k", fabric.WithMode(fabric.Shared))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Convert(ctx, fabric.Exclusive) }()
	eventually(t, "conversion", func() bool {
		code, stdout, stderr := run(t, lockfabric(t, "inspect", "k"))
		if code != 0 {
			t.Fatalf("exit code %d, %s", code, stderr)
		}
		return strings.Contains(stdout, "S->X") && strings.Contains(stdout, "held, a conversion waits")
	})
	cancel()
	<-done
	for _, l := range []*fabric.Lock{a, b} {
		if err := l.Release(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// While the server can't be reached nothing new can be shown; that is not silence.
func TestInspectWatchWithoutServer(t *testing.T) {
	t.Parallel()
	m := manager(t)
	proxy := faultproxy.New(t, server.ClientURL())
	p := start(t, bare(t, "--server", proxy.URL(), "--fabric", fabricName(t), "--output", "json", "inspect", "--watch", "k"))
	if one := p.line(); !strings.Contains(one, `"k"`) {
		t.Fatalf("%q", one)
	}
	proxy.Cut()
	eventually(t, "word of the loss", func() bool {
		return strings.Contains(p.err.String(), `"the connection is lost, trying to connect again"`)
	})
	lock, err := m.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Release(context.Background()) }()
	proxy.Heal()
	for one := p.line(); !strings.Contains(one, lock.ID()); one = p.line() {
		if one == "" {
			t.Fatalf("ended without the holder: %s", p.err)
		}
	}
	p.signal(os.Interrupt)
	p.exits(0)
	lines := strings.Split(strings.TrimSpace(p.err.String()), "\n")
	if len(lines) < 2 || !strings.Contains(lines[len(lines)-1], `"connected again"`) {
		t.Errorf("stderr: %s", p.err)
	}
	for _, one := range lines {
		if !json.Valid([]byte(one)) {
			t.Errorf("stderr: %q is no JSON", one)
		}
	}
}
