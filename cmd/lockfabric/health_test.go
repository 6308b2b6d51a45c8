//go:build unix

package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestServeHealth(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	_ = systemd.SetReadDeadline(time.Now().Add(testTimeout))
	told := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		if n, err := systemd.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v, want %q", b[:n], err, want)
		}
	}
	cmd := bare(t, "--output", "json", "serve", "--store", filepath.Join(t.TempDir(), "s"), "--listen", "127.0.0.1:0", "--health", "127.0.0.1:0")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket)
	p := start(t, cmd)
	v := p.serving()
	told("READY=1")
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/": 404} {
		r, err := http.Get("http://" + v.Health + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%s: %d, %s", path, r.StatusCode, text)
		}
	}
	p.signal(killable)
	told("STOPPING=1")
	p.exits(0)
	if code, _, stderr := run(t, bare(t, "serve", "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--health", "nowhere")); code != 64 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// A server that has not started, or can't write, is alive and not ready.
func TestHealthOfAServerThatIsNotReady(t *testing.T) {
	t.Parallel()
	var h health
	gets := func(path string, want int) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
	gets("/livez", 200)
	gets("/readyz", 503)
	h.ready(func() error { return errors.New("disk full") })
	gets("/livez", 200)
	gets("/readyz", 503)
	h.ready(func() error { return nil })
	gets("/readyz", 200)
}

// What serve counts comes out for Prometheus: the server, its coalescer, and the process.
func TestServeMetrics(t *testing.T) {
	t.Parallel()
	p := start(t, bare(t, "--output", "json", "serve", "--store", filepath.Join(t.TempDir(), "s"), "--listen", "127.0.0.1:0", "--sync", "1s", "--log-level", "error", "--health", "127.0.0.1:0"))
	v := p.serving()
	m, err := fabric.Connect(t.Context(), v.URL, fabric.WithFabric("counted"), fabric.WithRoad(fabric.RoadCoalesced))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	values := map[string]float64{}
	scrape := func() {
		t.Helper()
		r, err := http.Get("http://" + v.Health + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK || strings.Contains(string(text), "counted") {
			t.Fatalf("%d, %v, %s", r.StatusCode, err, text)
		}
		for _, line := range regexp.MustCompile(`(?m)^(\w+) (\S+)$`).FindAllStringSubmatch(string(text), -1) {
			if values[line[1]], err = strconv.ParseFloat(line[2], 64); err != nil {
				t.Error(err)
			}
		}
	}
	// The coalescer writes when it takes its office, which it does when somebody asks.
	eventually(t, "writes of the coalescer", func() bool {
		l, err := m.Acquire(t.Context(), "k")
		if err == nil {
			err = l.Release(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		scrape()
		return values["lockfabric_writes_total"] > 0
	})
	for name, atLeast := range map[string]float64{"connections": 1, "connections_total": 1, "subscriptions": 1, "streams": 2, "stored_bytes": 1, "in_messages_total": 1, "api_requests_total": 1, "leader_known": 1} {
		if got := values["lockfabric_server_"+name]; got < atLeast {
			t.Errorf("%s is %v", name, got)
		}
	}
	if values["go_goroutines"] == 0 {
		t.Error("nothing of the process")
	}
	doc, err := os.ReadFile("../../docs/serving.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(lockfabric_server_\\w+)` \\|").FindAllStringSubmatch(string(doc), -1) {
		documented[row[1]] = true
	}
	for name := range values {
		if strings.HasPrefix(name, "lockfabric_server_") && !documented[name] {
			t.Errorf("%s is not in docs/serving.md", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/serving.md has %s, which is no metric", name)
	}
	p.signal(killable)
	p.exits(0)
}
