//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// term reads a line of elect --observe and wants the value in it.
func (p *proc) term(value string) (term uint64) {
	p.t.Helper()
	text := p.line()
	if got := strings.SplitN(text, " ", 2); len(got) != 2 || got[1] != value {
		p.t.Fatalf("%v wrote %q, want the leader %s", p.cmd.Args[1:], text, value)
	}
	if _, err := fmt.Sscan(text, &term); err != nil {
		p.t.Fatal(err)
	}
	return term
}

func TestElect(t *testing.T) {
	t.Parallel()
	m := manager(t)
	told := start(t, lockfabric(t, "elect", "svc", "--observe"))
	ran := start(t, lockfabric(t, "elect", "svc", "--observe", "--", "sh", "-c", `echo "$LOCKFABRIC_LEADER_TERM $LOCKFABRIC_LEADER_VALUE"; exit 3`))
	all := start(t, lockfabric(t, "--output", "json", "elect", "svc", "--observe"))
	object := func() (l leading) {
		t.Helper()
		if err := json.Unmarshal([]byte(all.line()), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	none := object()
	if told.term("-") != 0 || ran.term("") != 0 || none.Term != 0 || none.Value != nil || none.Time.IsZero() {
		t.Errorf("nobody leads, and somebody is told: %+v", none)
	}
	leader := start(t, lockfabric(t, "elect", "svc", "--value", "a b", "--meta", "zone=1", "--kill-after", "9s", "--ttl", "20s", "--no-progress", "--owner", "first", "--", self(t), "child", "TERM"))
	leader.ready()
	first := told.term("a b")
	if got := ran.term("a b"); got != first || first == 0 {
		t.Errorf("term %d and %d", got, first)
	}
	if got := object(); got.Term != first || *got.Value != "a b" || got.Owner != "first" {
		t.Errorf("%+v", got)
	}
	for _, args := range [][]string{{"--wait", "0"}, {"--wait", "50ms", "--no-takeover"}, {"--owner", "first"}} {
		code, stdout, stderr := run(t, lockfabric(t, append(append([]string{"elect", "svc"}, args...), "--", "echo", "in")...))
		if code != 75 || stdout != "" || !strings.Contains(stderr, `"svc" not elected: `) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	next := start(t, lockfabric(t, "elect", "svc", "--value", "b", "--", "sh", "-c", `echo "$LOCKFABRIC_KEY $LOCKFABRIC_TOKEN"; exec "$0" child TERM`, self(t)))
	waiters(t, m, "svc", 1)
	if code, stdout, _ := run(t, lockfabric(t, "inspect", "svc")); code != 0 || !strings.Contains(stdout, "VALUE") || !strings.Contains(stdout, "a b") {
		t.Errorf("inspect: exit code %d, %q", code, stdout)
	}
	// It resigns when its command ends.
	leader.signal(killable)
	leader.exits(0)
	second := told.term("b")
	next.expect(fmt.Sprintf("svc %d", second))
	next.ready()
	if got := ran.term("b"); got != second || second <= first {
		t.Errorf("term %d and %d after %d", got, second, first)
	}
	object()
	// Its leadership is taken away.
	if code, _, stderr := run(t, lockfabric(t, "release", "--force", "--now", "svc")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	next.expect("got TERM")
	next.exits(76)
	if told.term("-") != 0 || ran.term("") != 0 || object().Term != 0 {
		t.Error("somebody leads")
	}
	// One who says nothing of itself, or what no variable can have.
	for _, value := range []string{"", "x\x00\xff"} {
		h, err := m.Claim(t.Context(), "svc", fabric.Claim{Kind: fabric.KindLock, Value: []byte(value)})
		if err != nil {
			t.Fatal(err)
		}
		told.term(printable(value))
		ran.term(strings.TrimSuffix(value, "\x00\xff"))
		if l := object(); l.Term != h.Token() || (l.Value == nil) != (value != "") || string(l.Data) == "" != (value == "") {
			t.Errorf("%q: %+v", value, l)
		}
		if err := h.Release(context.Background()); err != nil {
			t.Fatal(err)
		}
		told.term("-")
		ran.term("")
		object()
	}
	told.signal(os.Interrupt)
	ran.signal(syscall.SIGTERM)
	all.signal(syscall.SIGTERM)
	for _, p := range []*proc{told, ran, all} {
		p.exits(0)
	}
	if text := ran.err.String(); !strings.Contains(text, "exit_code=3") {
		t.Errorf("stderr %q", text)
	}
}

func TestElectLeadsUnderTheNameOfItsHost(t *testing.T) {
	t.Parallel()
	leader := start(t, lockfabric(t, "elect", "svc", "--", self(t), "child", "TERM"))
	leader.ready()
	told := start(t, lockfabric(t, "elect", "svc", "--observe"))
	told.term(hostname())
	// A signal ends the command that an observer runs, and the observer.
	slow := start(t, lockfabric(t, "elect", "svc", "--observe", "--", self(t), "child", "TERM"))
	slow.ready()
	slow.signal(killable)
	slow.expect("got TERM")
	slow.exits(0)
	told.signal(killable)
	told.exits(0)
	leader.signal(killable)
	leader.exits(0)
}

func TestElectRefuses(t *testing.T) {
	t.Parallel()
	sem := start(t, lockfabric(t, "run", "pool", "--semaphore", "2", "--", self(t), "child", "TERM"))
	sem.ready()
	for _, tt := range []struct {
		code   int
		stderr string
		args   []string
	}{
		{64, "the command is empty", []string{"svc"}},
		{64, "leave out --wait", []string{"svc", "--observe", "--wait", "1s"}},
		{64, "leave out --value", []string{"svc", "--observe", "--value", "x"}},
		{64, "--wait", []string{"svc", "--wait=-1s", "--", "true"}},
		{64, "--kill-after", []string{"svc", "--kill-after=-1s", "--", "true"}},
		{64, "name", []string{"", "--observe"}},
		{127, "was not found", []string{"svc", "--", "no-such-command"}},
		{127, "was not found", []string{"svc", "--observe", "--", "no-such-command"}},
		{65, "another kind", []string{"pool", "--", "true"}},
		{3, "", []string{"svc", "--", "sh", "-c", "exit 3"}},
	} {
		code, stdout, stderr := run(t, lockfabric(t, append([]string{"elect"}, tt.args...)...))
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%v: exit code %d, want %d; stdout %q; stderr %q", tt.args, code, tt.code, stdout, stderr)
		}
	}
	sem.signal(killable)
	sem.exits(0)
}
