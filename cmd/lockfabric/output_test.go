//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestListAndInspect(t *testing.T) {
	t.Parallel()
	ls := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"ls"}, args...)...))
		if code != 0 || stderr != "" {
			t.Fatalf("ls: exit code %d, %s", code, stderr)
		}
		return stdout
	}
	if got := ls("--output", "json"); got != "[]\n" {
		t.Errorf("nothing in use: %q", got)
	}
	holder := start(t, lockfabric(t, "run", "photos/a", "--ttl", "7s", "--owner", "Zoë\x1b[2J", "--meta", "job=nightly", "--meta", "n=1", "--", self(t), "child", "TERM"))
	holder.ready()
	other := start(t, lockfabric(t, "run", "films/b", "--shared", "--", self(t), "child", "TERM"))
	other.ready()
	next := start(t, lockfabric(t, "run", "photos/a", "--", "true"))
	m := manager(t)
	waiters(t, m, "photos/a", 1)

	lines := strings.Split(strings.TrimSpace(ls()), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "KEY KIND STATE HOLDERS WAITERS TOKEN AGE OWNER" {
		t.Errorf("ls: %q", lines)
	}
	text := ls("photos/")
	if f := strings.Fields(text); len(f) != 21 || !strings.Contains(text, " on ") || !strings.Contains(text, " pid ") || f[8] != "photos/a" || f[9] != "lock" || f[10] != "X" || f[11] != "1" || f[12] != "1" || f[15] != `"Zoë\x1b[2J"` {
		t.Errorf("ls photos/: %q", text)
	}
	var list []fabric.Info
	if err := json.Unmarshal([]byte(ls("--output", "json", "photos")), &list); err != nil || len(list) != 1 || list[0].Key != "photos/a" || list[0].Holders[0].Token == 0 {
		t.Errorf("ls --output json: %+v, %v", list, err)
	}

	code, stdout, stderr := run(t, lockfabric(t, "inspect", "photos/a"))
	for _, want := range []string{"state:", "held", "HOLDER", "WAITER", "QUEUED", "live", "7s", `"Zoë\x1b[2J"`, "job=nightly n=1", "lockfabric"} {
		if code != 0 || !strings.Contains(stdout, want) || strings.Contains(stdout, "\x1b") {
			t.Errorf("inspect: exit code %d, no %q in %q, %s", code, want, stdout, stderr)
		}
	}
	code, stdout, _ = run(t, lockfabric(t, "--output", "json", "inspect", "photos/a"))
	var info map[string]any
	if err := json.Unmarshal([]byte(stdout), &info); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v", code, err)
	}
	h, w := info["holders"].([]any)[0].(map[string]any), info["waiters"].([]any)[0].(map[string]any)
	lease := h["lease"].(map[string]any)
	for _, ok := range []bool{
		info["key"] == "photos/a", info["kind"] == "lock", info["revision"].(float64) > 0,
		h["owner"] == "Zoë\x1b[2J", h["mode"] == "X", h["token"].(string) > "0", h["since"] != "", h["id"] != "",
		h["metadata"].(map[string]any)["job"] == "nightly",
		lease["state"] == "live", lease["ttl_ns"] == 7e9, int(lease["pid"].(float64)) == holder.cmd.Process.Pid, lease["host"] == hostname(),
		w["queued"].(string) > h["token"].(string), w["token"] == nil,
	} {
		if !ok {
			t.Errorf("inspect --output json: %s", stdout)
		}
	}
	code, stdout, _ = run(t, lockfabric(t, "inspect", "nobody's"))
	if code != 0 || !strings.Contains(stdout, "free") {
		t.Errorf("free lock: exit code %d, %q", code, stdout)
	}
	holder.signal(killable)
	other.signal(killable)
	holder.exits(0)
	other.exits(0)
	next.exits(0)
}

func TestRelease(t *testing.T) {
	t.Parallel()
	release := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"release", "--force", "k"}, args...)...))
		if code != 0 || stderr != "" {
			t.Fatalf("release: exit code %d, %s", code, stderr)
		}
		return stdout
	}
	if got := release(); got != "k: nobody to take it from\n" {
		t.Errorf("free: %q", got)
	}
	m := manager(t)
	var holders []*proc
	for range 2 {
		p := start(t, lockfabric(t, "run", "k", "--shared", "--", self(t), "child", "TERM"))
		p.ready()
		holders = append(holders, p)
	}
	info, err := m.Inspect(t.Context(), "k")
	if err != nil || len(info.Holders) != 2 {
		t.Fatalf("%+v, %v", info, err)
	}
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--holder", "x", "k")); code != 64 || !strings.Contains(stderr, "holder id") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	var got released
	if err := json.Unmarshal([]byte(release("--output", "json", "--now", "--holder", info.Holders[0].ID)), &got); err != nil || got != (released{Key: "k", Released: 1, Now: true}) {
		t.Errorf("%+v, %v", got, err)
	}
	holders[0].expect("got TERM")
	holders[0].exits(76)
	if now, err := m.Inspect(t.Context(), "k"); err != nil || len(now.Holders) != 1 || now.Holders[0].ID != info.Holders[1].ID {
		t.Errorf("%+v, %v", now, err)
	}
	if got := release(); got != "k: 1 holder(s) told to let go\n" {
		t.Errorf("%q", got)
	}
	holders[1].expect("got TERM")
	holders[1].exits(76)
}

func TestVersion(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t, bare(t, "version"))
	if code != 0 || !strings.HasPrefix(stdout, "lockfabric ") || !strings.Contains(stdout, runtime.Version()) {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	code, stdout, _ = run(t, bare(t, "version", "--output", "json"))
	var v versionInfo
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || v.Version == "" || v.Go != runtime.Version() || v.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("exit code %d, %+v, %v", code, v, err)
	}
}

func TestResultCanNotBeWritten(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		readOnly, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		cmd := lockfabric(t, "--output", format, "version")
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = readOnly, &stderr
		err = cmd.Run()
		_ = readOnly.Close()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitInternal || !strings.Contains(stderr.String(), "writing the result") {
			t.Errorf("%s: %v, stderr %q", format, err, stderr.String())
		}
	}
}

// An error passes through several packages, each of which says what it is.
func TestMessageSaysItOnce(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		(&fabric.LostError{Key: "k", Reason: fabric.ErrExpired}).Error():                                      `"k": the wait for it is lost: the lease ran out before it could be renewed`,
		"fabric: cluster unavailable: fabric: cluster unavailable: kv: unavailable: read of k: nats: timeout": "cluster unavailable: read of k: nats: timeout",
		"inspect \"k\": fabric: cluster unavailable: engine: no leader answers: kv: bucket is gone":           "inspect \"k\": cluster unavailable: no leader answers: bucket is gone",
		"fabric: invalid option: kv: invalid option: fabric name \"a b\"":                                     "invalid option: fabric name \"a b\"",
		"fabric: cluster unavailable: request not sent: nats: outbound buffer limit exceeded":                 "cluster unavailable: request not sent: no server is connected",
		"fabric: not known whether it was done: fabric: not known whether it was done: end":                   "not known whether it was done: end",
		"first\nsecond": "first second",
	} {
		if got := message(errors.New(text)); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
