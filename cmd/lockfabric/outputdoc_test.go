//go:build unix

package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// printed runs a command line that ends with the exit code, wants its JSON as the
// table says, and returns it. Without --output json it prints no JSON.
func (tb table) printed(t *testing.T, code int, args ...string) string {
	t.Helper()
	got, stdout, stderr := run(t, lockfabric(t, append([]string{"--output", "json"}, args...)...))
	if got != code || (stderr == "") != (code == 0) {
		t.Fatalf("%v: exit code %d, want %d: %s", args, got, code, stderr)
	}
	tb.check(t, args[0], stdout)
	return stdout
}

func (tb table) check(t *testing.T, command, text string) {
	t.Helper()
	for _, w := range tb.reads(text) {
		t.Errorf("%s: %s", command, w)
	}
}

// complete fails the test for what is documented and was not seen, and for what is
// in the struct and is not documented.
func (tb table) complete(t *testing.T, v any, never ...string) {
	t.Helper()
	for _, w := range append(tb.unproven(), tb.holds(v, never...)...) {
		t.Error(w)
	}
}

// listed is printed for ls, whose array is of any number of objects.
func (tb table) listed(t *testing.T, want ...string) {
	t.Helper()
	code, stdout, stderr := run(t, lockfabric(t, "ls", "--output", "json"))
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != 0 || stderr != "" || len(list) != len(want) || list == nil {
		t.Fatalf("ls: exit code %d, %s, %v in %s", code, stderr, err, stdout)
	}
	for i, one := range list {
		tb.check(t, "ls", string(one))
		if !strings.Contains(stdout, want[i]) {
			t.Errorf("ls: no %s in %s", want[i], stdout)
		}
	}
}

// Locks in all the states that have fields of their own. What nobody prints, as the
// struct is that of holders and of waiters, is said at the end.
func TestOutputOfLocks(t *testing.T) {
	t.Parallel()
	doc := outputDoc(t)
	locks := outputTable(t, doc, "ls and inspect")
	m := manager(t)
	locks.listed(t)
	locks.printed(t, 0, "inspect", "free")

	hold := func(args ...string) *proc {
		return start(t, lockfabric(t, append(append([]string{"run"}, args...), "--", self(t), "child", "TERM")...))
	}
	// Held, and waited for; how long that takes is not known.
	first := hold("busy", "--owner", "nightly", "--meta", "job=report")
	first.ready()
	second := hold("busy")
	waiters(t, m, "busy", 1)
	locks.printed(t, 0, "inspect", "busy")
	// It is, when one has released it while another waited.
	first.signal(killable)
	first.exits(0)
	second.ready()
	third := hold("busy", "--shared", "--meta", "job=1")
	waiters(t, m, "busy", 1)
	locks.printed(t, 0, "inspect", "busy")
	locks.listed(t, `"busy"`)

	// A holder that waits for another mode.
	var shared []*fabric.Lock
	for range 2 {
		l, err := m.Acquire(t.Context(), "converting", fabric.WithMode(fabric.Shared))
		if err != nil {
			t.Fatal(err)
		}
		shared = append(shared, l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	converted := make(chan error)
	go func() { converted <- shared[0].Convert(ctx, fabric.Exclusive) }()
	eventually(t, "conversion", func() bool {
		return strings.Contains(locks.printed(t, 0, "inspect", "converting"), `"converting": "X"`)
	})
	cancel()
	<-converted

	// One that was told to let go and does not hear it.
	deaf := hold("deaf")
	deaf.ready()
	deaf.signal(syscall.SIGSTOP)
	release := outputTable(t, doc, "release")
	release.printed(t, 0, "release", "--force", "deaf")
	if got := locks.printed(t, 0, "inspect", "deaf"); !strings.Contains(got, `"revoked": true`) {
		t.Errorf("not revoked: %s", got)
	}
	deaf.signal(syscall.SIGCONT)
	deaf.expect("got TERM")
	deaf.exits(76)
	release.printed(t, 0, "release", "--force", "--now", "deaf") // nobody is there
	if err := primitives.NewLatch(m, "latch", 2).CountDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	release.printed(t, 0, "release", "--force", "latch")
	release.complete(t, released{})
	lock := outputTable(t, doc, "lock")
	taken, stdin := withStdin(t, lockfabric(t, "--output", "json", "lock", "taken", "--stdin"))
	lock.check(t, "lock", taken.object())
	_ = stdin.Close()
	taken.exits(0)
	lock.complete(t, locked{})

	// A record that can't be read.
	_, js := dialTo(t, server.ClientURL())
	put(t, js, "-locks", "broken", "mine")
	locks.listed(t, `"busy"`, `"converting"`, `"unreadable"`)
	bucket, err := js.KeyValue(t.Context(), fabricName(t)+"-locks")
	if err == nil {
		err = bucket.Purge(t.Context(), "broken")
	}
	if err != nil {
		t.Fatal(err)
	}

	outputOfSemaphores(t, m, locks)
	outputOfElections(t, m, locks)
	outputOfConditions(t, m, locks)
	outputOfKept(t, m, locks)
	outputOfBarriers(t, m, locks)
	outputOfLatches(t, m, doc, locks)

	// The same, line by line.
	watch := outputTable(t, doc, "inspect --watch")
	timed := outputTable(t, doc, "ls and inspect").with(outputTable(t, doc, "inspect")).with(watch)
	for _, key := range []string{"busy", "free"} {
		w := start(t, lockfabric(t, "--output", "json", "inspect", "--watch", key))
		timed.check(t, "inspect --watch", w.line())
		w.signal(os.Interrupt)
		w.exits(0)
		if rest := w.line(); rest != "" {
			t.Errorf("inspect --watch wrote more: %q", rest)
		}
	}
	for _, w := range watch.unproven() {
		t.Error(w)
	}
	never := []string{"waiters[].token", "waiters[].converting", "waiters[].revoked", "holders[].queued", "holders[].expected_wait_ns", "holders[].refused"}
	never = append(never, "waiters[].leaving", "waiters[].kept")
	locks.complete(t, fabric.Info{}, never...)
	one := outputTable(t, doc, "ls and inspect").with(outputTable(t, doc, "inspect"))
	outputOfCoalescer(t, one)
	for _, w := range one.holds(inspected{}, never...) {
		t.Error(w)
	}
	for _, w := range timed.holds(watched{}, never...) {
		t.Error(w)
	}

	second.signal(killable)
	second.exits(0)
	third.ready()
	third.signal(killable)
	third.exits(0)
	for _, l := range shared {
		if err := l.Release(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestOutputOfServe(t *testing.T) {
	t.Parallel()
	tb := outputTable(t, outputDoc(t), "serve")
	routes := freeAddrs(t, 2)
	for _, cluster := range [][]string{nil, {"--health", "127.0.0.1:0", "--ui", "127.0.0.1:0", "--name", "node0", "--cluster-listen", routes[0], "--routes", strings.Join(routes, ",")}} {
		p := start(t, bare(t, append([]string{"--output", "json", "serve", "--store", filepath.Join(t.TempDir(), "s"), "--listen", "127.0.0.1:0"}, cluster...)...))
		tb.check(t, "serve", p.object())
		p.signal(killable)
		p.exits(0)
		if rest := p.line(); rest != "" {
			t.Errorf("serve wrote more: %q", rest)
		}
		onlyJSON(t, p.err.String())
	}
	tb.complete(t, serving{})
}

// onlyJSON wants log lines as documented.
func onlyJSON(t *testing.T, log string) {
	t.Helper()
	for line := range strings.Lines(log) {
		v, err := decode(line)
		entry, _ := v.(map[string]any)
		for _, key := range []string{"time", "level", "msg"} {
			if entry[key] == nil {
				t.Errorf("no %s in the log line %q: %v", key, line, err)
			}
		}
	}
}

// A test binary has no version control recorded in it, so that part is made here.
func TestOutputOfVersion(t *testing.T) {
	t.Parallel()
	tb := outputTable(t, outputDoc(t), "version")
	tb.printed(t, 0, "version")
	var info debug.BuildInfo
	for key, value := range map[string]string{"vcs.revision": "4f2a", "vcs.time": "2026-11-23T02:00:00Z", "vcs.modified": "true"} {
		info.Settings = append(info.Settings, debug.BuildSetting{Key: key, Value: value})
	}
	text, err := json.Marshal(newVersionInfo(&info))
	if err != nil {
		t.Fatal(err)
	}
	tb.check(t, "version", string(text))
	tb.complete(t, versionInfo{})
}

// The local server is known to sync, so that it is listed without a system account.
func TestOutputOfDoctor(t *testing.T) {
	t.Parallel()
	tb := outputTable(t, outputDoc(t), "doctor")
	local := freshMachine(t)
	if code, _, stderr := run(t, local.command("ls")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	d := diagnose(t, local.command("--output", "json", "doctor"))
	tb.check(t, "doctor", d.stdout)
	if len(d.Cluster.Servers) != 1 || len(d.Fabric.Buckets) != 2 || d.Latency.Acquire == nil {
		t.Errorf("nothing was listed: %s", d.stdout)
	}
	if got := tb.printed(t, 0, "doctor", "--no-probe"); !strings.Contains(got, `"acquire": null`) || !strings.Contains(got, `"remedy"`) || !strings.Contains(got, `"buckets": []`) {
		t.Errorf("%s", got)
	}
	tb.printed(t, 78, "doctor", "--strict", "--probes", "1")
	coalescer(t)
	tb.check(t, "doctor", measured(t).stdout)
	tb.complete(t, doctor.Report{})
}

// What --output json does not change, or nobody could tell from the text.
func TestOutputIsDocumentedForAllCommands(t *testing.T) {
	t.Parallel()
	doc := outputDoc(t)
	_, rows, _ := strings.Cut(doc, "| command | stdout with `--output json` |\n|---|---|\n")
	rows, _, _ = strings.Cut(rows, "\n\n")
	var documented []string
	for row := range strings.Lines(rows) {
		documented = append(documented, cell.FindStringSubmatch(row)[1])
	}
	for _, c := range model().Children {
		found := c.Hidden
		for _, d := range documented {
			found = found || d == c.Name
		}
		if !found {
			t.Errorf("docs/output.md does not tell of %s", c.Name)
		}
	}

	_, script, _ := run(t, bare(t, "completion", "bash"))
	if code, same, stderr := run(t, bare(t, "--output", "json", "completion", "bash")); code != 0 || same != script || stderr != "" {
		t.Errorf("completion: exit code %d, %q, %s", code, same, stderr)
	}
	m := manager(t)
	for _, args := range [][]string{{"ls"}, {"inspect", "k"}, {"release", "--force", "k"}, {"version"}, {"doctor", "--no-probe"}, {"run", "k", "--", "echo", "in"}} {
		if code, stdout, stderr := run(t, lockfabric(t, args...)); code != 0 || json.Valid([]byte(stdout)) || stdout == "" || stderr != "" {
			t.Errorf("%v in text: exit code %d, %q, %s", args, code, stdout, stderr)
		}
	}
	if code, stdout, stderr := run(t, lockfabric(t, "--output", "json", "run", "k", "--", "sh", "-c", "echo in; echo out >&2")); code != 0 || stdout != "in\n" || stderr != "out\n" {
		t.Errorf("run: exit code %d, %q, %q", code, stdout, stderr)
	}

	// An error is the last line, and text.
	failed := func(command string, code, want int, stdout, stderr string) {
		t.Helper()
		log, last := "", strings.TrimSuffix(stderr, "\n")
		if i := strings.LastIndex(last, "\n"); i >= 0 {
			log, last = last[:i+1], last[i+1:]
		}
		if code != want || stdout != "" || !strings.HasPrefix(last, "lockfabric: ") || !strings.HasSuffix(stderr, "\n") {
			t.Errorf("%s: exit code %d, want %d, %q, %q", command, code, want, stdout, stderr)
		}
		onlyJSON(t, log)
	}
	lock, err := m.Acquire(t.Context(), "held")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		code int
		args []string
	}{
		{64, []string{"ls", "--bogus"}},
		{64, []string{"release", "k"}},
		{64, []string{"serve"}},
		{64, []string{"doctor", "--probes", "0"}},
		{64, []string{"completion", "tcsh"}},
		{64, []string{"inspect", "a\nb\x1b[2J"}},
		{69, []string{"--server", "nats://127.0.0.1:1", "--timeout", "1s", "inspect", "k"}},
		{69, []string{"--server", "nats://127.0.0.1:1", "--timeout", "1s", "--log-level", "debug", "inspect", "--watch", "k"}},
		{69, []string{"--server", "nats://127.0.0.1:1", "--timeout", "1s", "doctor"}},
		{75, []string{"run", "held", "--wait", "0", "--", "true"}},
		{127, []string{"run", "k", "--", "no-such-command"}},
	} {
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"--output", "json"}, tt.args...)...))
		failed(strings.Join(tt.args, " "), code, tt.code, stdout, stderr)
	}
	if err := lock.Release(context.Background()); err != nil {
		t.Error(err)
	}
	p := start(t, lockfabric(t, "--output", "json", "run", "lost", "--", self(t), "child", "TERM"))
	p.ready()
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "lost")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	p.expect("got TERM")
	failed("run", p.wait(), 76, p.line(), p.err.String())
	if !strings.Contains(p.err.String(), `"msg":"lock lost"`) {
		t.Errorf("no JSON log in %q", p.err)
	}
}
