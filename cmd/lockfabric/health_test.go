//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
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
	var v serving
	if err := json.Unmarshal([]byte(p.object()), &v); err != nil {
		t.Fatal(err)
	}
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
