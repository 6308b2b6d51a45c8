//go:build unix

package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestRunSeveral(t *testing.T) {
	t.Parallel()
	m := manager(t)
	show := []string{"--", "sh", "-c", `echo "$LOCKFABRIC_KEY $LOCKFABRIC_TOKENS"`}
	for name, c := range map[string]struct {
		args  []string
		key   string
		names []string
	}{
		"also":  {[]string{"run", "k2", "--also", "k1", "--also", "k=3=S", "--shared"}, "k2", []string{"k=3", "k1", "k2"}},
		"path":  {[]string{"run", "p/b/c", "--path"}, "p/b/c", []string{"p", "p/b", "p/b/c"}},
		"under": {[]string{"run", "object-lock", "--under", "global-lock", "--under", "bucket-lock", "--wait", "0"}, "object-lock", []string{"bucket-lock", "global-lock", "object-lock"}},
	} {
		code, stdout, stderr := run(t, lockfabric(t, append(c.args, show...)...))
		key, text, _ := strings.Cut(stdout, " ")
		var tokens map[string]string
		if err := json.Unmarshal([]byte(text), &tokens); code != 0 || err != nil || key != c.key || len(tokens) != len(c.names) {
			t.Errorf("%s: exit code %d, %v, %q, %s", name, code, err, stdout, stderr)
		}
		for _, n := range c.names {
			if tokens[n] == "" {
				t.Errorf("%s: no token of %s in %v", name, n, tokens)
			}
		}
	}

	held := start(t, lockfabric(t, "run", "k4", "--also", "k5=S", "--", self(t), "child", "TERM"))
	held.ready()
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"k5", "--also", "k6", "--wait", "0"}, 75, "k5"},
		{[]string{"k5", "--also", "k4", "--wait", "50ms"}, 75, "k4"},
		{[]string{"k6", "--path", "--semaphore", "2"}, 64, "--semaphore"},
		{[]string{"k6", "--path", "--under", "k"}, 64, "--under"},
		{[]string{"k6", "--also", ""}, 64, "name"},
		{[]string{"k6", "--under", "k6"}, 64, "lockfabric: not acquired: invalid option: \"k6\" is twice"},
		{[]string{"k6", "--also", "k7=s"}, 64, "--also=k7=s"},
		{[]string{"k6", "--also", "k7="}, 64, "--also=k7="},
		{[]string{"k6", "--also", "=S"}, 64, "name"},
		{[]string{"k6", "--semaphore", "0"}, 64, "--semaphore=0"},
	} {
		code, stdout, stderr := run(t, lockfabric(t, append(append([]string{"run"}, c.args...), "--", "echo", "in")...))
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%v: exit code %d, %q%s", c.args, code, stdout, stderr)
		}
	}
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "k5")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	held.expect("got TERM")
	held.exits(76)
	if info, err := m.Inspect(t.Context(), "k4"); err != nil || len(info.Holders) > 0 {
		t.Errorf("the other member: %+v, %v", info.Holders, err)
	}
}

func TestTree(t *testing.T) {
	t.Parallel()
	m := manager(t)
	set, err := m.AcquirePath(t.Context(), "global/bucket/object", fabric.Shared, fabric.WithOwner("reader"), fabric.WithoutSharedIntents())
	if err != nil {
		t.Fatal(err)
	}
	plain, err := m.Acquire(t.Context(), "global/other/object")
	if err != nil {
		t.Fatal(err)
	}
	waiter := start(t, lockfabric(t, "run", "global", "--", "true"))
	waiters(t, m, "global", 1)
	code, stdout, stderr := run(t, lockfabric(t, "tree", "global/"))
	var lines []string
	for line := range strings.SplitSeq(stdout, "\n") {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	text := regexp.MustCompile(` (\d+m)?\d+s `).ReplaceAllString(strings.Join(lines, "\n"), " AGE ")
	for _, want := range []string{"global lock holds IS", ". lock waits X", "bucket lock holds IS", "object lock holds S AGE reader", "other - - - -", "object lock holds X AGE"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if code != 0 || stderr != "" || strings.Count(text, "no intent above") != 1 {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
	code, stdout, stderr = run(t, lockfabric(t, "--output", "json", "tree"))
	var nodes []node
	if err := json.Unmarshal([]byte(stdout), &nodes); err != nil || code != 0 || len(nodes) != 5 || nodes[0].Key != "global" || nodes[2].Depth != 2 ||
		len(nodes[4].Unannounced) != 1 || nodes[4].Unannounced[0] != plain.ID() || len(nodes[2].Unannounced) != 0 {
		t.Errorf("exit code %d, %v, %s%s", code, err, stdout, stderr)
	}
	for _, field := range []string{"depth", "unannounced"} {
		if !strings.Contains(outputDoc(t), "| `"+field+"` |") {
			t.Errorf("%s is not in docs/output.md", field)
		}
	}
	seen := start(t, lockfabric(t, "--output", "json", "tree", "global/bucket", "--watch"))
	if line := seen.line(); !strings.Contains(line, `"key":"global/bucket/object"`) {
		t.Errorf("seen: %s", line)
	}
	if err := set.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiter.exits(0)
	for line := ""; !strings.Contains(line, `"nodes":[]`); {
		line = seen.line()
	}
	seen.signal(killable)
	seen.exits(0)
	if err := plain.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}
