//go:build unix

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/primitives"
)

// The command gets its arguments as they were given: names of files are bytes, and
// what looks like a flag of ours is one of the command's, once that has begun.
func TestArgumentsArePassedOnAsTheyAre(t *testing.T) {
	t.Parallel()
	args := []string{"caf\xe9", "\xff\xfe", "ä☃", "", "a,b", `c\,d`, " ", "-h", "--help", "--wait", "0", "--output=json", "--", "-x", "a\nb"}
	want := strings.Join(args, "|") + "|"
	show := []string{"sh", "-c", `for a; do printf '%s|' "$a"; done`, "sh"}
	for name, line := range map[string][]string{
		"after dashes":      {"run", "k", "--"},
		"without dashes":    {"run", "k"},
		"dashes at first":   {"run", "--", "k"},
		"flags before":      {"run", "--wait", "0", "k"},
		"flags in between":  {"run", "k", "--wait", "0", "--owner", "o"},
		"flags, and dashes": {"run", "k", "--wait", "0", "--"},
	} {
		t.Run(name, func(t *testing.T) {
			line = append([]string{"--fabric", fabricName(t)}, line...)
			code, stdout, stderr := run(t, lockfabric(t, append(append(line, show...), args...)...))
			if code != 0 || strings.TrimSuffix(stdout, "\n") != want || stderr != "" {
				t.Errorf("exit code %d, %q, want %q; stderr %q", code, stdout, want, stderr)
			}
		})
	}
}

// Two names that differ are two locks: what is no UTF-8 is refused, and not made
// into something else that is.
func TestTextsThatAreNoUTF8(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"name":     {"run", "caf\xe9", "--", "echo", "in"},
		"owner":    {"run", "k", "--owner", "caf\xe9", "--", "echo", "in"},
		"metadata": {"run", "k", "--meta", "a=caf\xe9", "--", "echo", "in"},
	} {
		code, stdout, stderr := run(t, lockfabric(t, args...))
		if code != 64 || stdout != "" || !strings.Contains(stderr, want) || !strings.Contains(stderr, "UTF-8") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
	// The file is found, and has nothing in it.
	path := file(t, "caf\xe9", "")
	for flag, want := range map[string]string{"--creds": "credentials", "--tlsca": "no certificate in PEM"} {
		if code, _, stderr := run(t, bare(t, "--server", "127.0.0.1:1", flag, path, "ls")); code != 64 || !strings.Contains(stderr, want) || strings.Contains(stderr, "no such file") {
			t.Errorf("%s: exit code %d, %q", flag, code, stderr)
		}
	}
}

// An empty variable of a script must not move the lock to the local server, nor
// make somebody else of us.
func TestEmptyFlags(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	for _, flag := range []string{"server", "context", "creds", "nkey", "user", "password", "token", "tlscert", "tlskey", "tlsca", "inbox-prefix", "local-dir"} {
		for _, args := range [][]string{{"--" + flag, ""}, {"--" + flag + "="}} {
			if !slices.Contains([]string{"server", "context", "local-dir"}, flag) {
				args = append(args, "--server", server.ClientURL())
			}
			code, stdout, stderr := run(t, m.command(append(args, "run", "k", "--", "echo", "in")...))
			if code != 64 || stdout != "" || !strings.Contains(stderr, "--"+flag+" is empty: ") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%q: exit code %d, %q, %q", args, code, stdout, stderr)
			}
		}
	}
	if _, err := m.state(); err == nil {
		t.Error("a local server was started")
	}
	// A variable that is empty is as good as none, as documented, and a flag without
	// a value is none.
	if code, _, stderr := run(t, bare(t, "--server")); code != 64 || !strings.Contains(stderr, "--server: give a value") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// A duration that is none says what one looks like.
func TestDurationsThatAreNone(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"--ttl: give a value: ": {"run", "--ttl"},
		"--ttl: give a value, after a = if it begins with a dash: ":      {"run", "k", "--ttl", "--", "true"},
		`--ttl: "" is no duration: give one like 30s, 5m or 1h30m: `:     {"run", "--ttl=", "k", "--", "true"},
		`--wait: "-99999999999h" is too long: give at most 2562047h`:     {"run", "--wait=-99999999999h", "k", "--", "true"},
		`--wait: "99999999999h" is too long: give at most 2562047h`:      {"run", "--wait", "99999999999h", "k", "--", "true"},
		`--timeout: "10" is no duration: give one like 30s, 5m or 1h30m`: {"--timeout", "10", "ls"},
		"--timeout=-10s: give more than 0: ":                             {"--timeout=-10s", "ls"},
	} {
		code, stdout, stderr := run(t, lockfabric(t, args...))
		if code != 64 || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// What makes no sense names the command whose help tells more, and gives no bad advice.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"run", "--bogus"}, "unknown flag --bogus: see 'lockfabric run --help'"},
		{[]string{"latch", "wait", "--bogus"}, "unknown flag --bogus: see 'lockfabric latch wait --help'"},
		{[]string{"--output", "xml", "ls"}, "see 'lockfabric ls --help'"},
		{[]string{"bogus"}, "unexpected argument bogus: see 'lockfabric --help'"},
		{[]string{"help", "--bogus"}, "see 'lockfabric help --help'"},
		{[]string{"run", "k", "-E", "-1", "--", "true"}, "run --conflict-exit-code=-1: give 0 to 255"},
		{[]string{"run", "k", "--conflict-exit-code=-1", "--", "true"}, "run --conflict-exit-code=-1: give 0 to 255"},
		{[]string{"run", "k", "-E=-1", "--", "true"}, "run --conflict-exit-code=-1: give 0 to 255"},
		{[]string{"run", "k", "-E", "--", "true"}, "--conflict-exit-code: give a value, after a = if it begins with a dash: see 'lockfabric run --help'"},
		{[]string{"run", "k", "-E", "x", "--", "true"}, `--conflict-exit-code: "x" is no whole number`},
		{[]string{"barrier", "b", "-n", fmt.Sprint(primitives.MaxParties + 1)}, fmt.Sprintf("barrier --parties=%d: give 1 to %d\n", primitives.MaxParties+1, primitives.MaxParties)},
		{[]string{"barrier", "b", "-n", "2", "--wait", "0s"}, "barrier --wait=0s: give more than 0, or leave it out to wait without limit\n"},
		{[]string{"latch", "wait", "l", "--count=0"}, "latch wait --count=0: give 1 to 2147483647, or leave it out for one that there is\n"},
		{[]string{"latch", "wait", "l", "--wait=-1s"}, "latch wait --wait=-1s: give 0 to only look, or leave it out to wait without limit\n"},
		{[]string{"latch", "delete", "l", "--wait=-1s"}, "latch delete --wait=-1s: give a time, or leave it out to only try\n"},
		{[]string{"lock", "k", "--wait=-1s"}, "lock --wait=-1s: give 0 to only try, or leave it out to wait without limit\n"},
		{[]string{"elect", "k", "--kill-after=-1ns", "--", "true"}, "elect --kill-after=-1ns: give 0 or more\n"},
		{[]string{"run", "k", "--hold-at-least=-1s", "--", "true"}, "run --hold-at-least=-1s: give 0 or more\n"},
		{[]string{"top", "--every=9ms"}, "top --every=9ms: give 10ms or more\n"},
		{[]string{"deadlocks", "--every=9ms"}, "deadlocks --every=9ms: give 10ms or more\n"},
		{[]string{"serve", "--idle-exit=-1s"}, "serve --idle-exit=-1s: give a time, or 0 for never\n"},
		{[]string{"doctor", "--probes=0"}, "doctor --probes=0: give 1 to 1000\n"},
		{[]string{"doctor", "--ttl=99ms"}, fmt.Sprintf("doctor --ttl=99ms: give %v to %v\n", lease.MinTTL, lease.MaxTTL)},
		{[]string{"doctor", "--ttl=24h1s"}, fmt.Sprintf("doctor --ttl=24h0m1s: give %v to %v\n", lease.MinTTL, lease.MaxTTL)},
		{[]string{"elect", "k", "--value", strings.Repeat("x", 1025), "--", "true"}, "elect --value of 1025 bytes: use at most 1024"},
		{[]string{"run", "k", "--meta", "=foo", "--", "true"}, `expected KEY=VALUE but got "=foo"`},
		{[]string{"--server", "a", "--bogus", "ls"}, "unknown flag --bogus"},
		{[]string{"--password", "-bogus", "ls"}, "give a value"},
		{[]string{"--token", "hush", "ls", "hush", "hush", "hush"}, "unexpected argument xxxxx"},
	} {
		code, stdout, stderr := run(t, bare(t, tt.args...))
		if code != 64 || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "hush") {
			t.Errorf("%q: exit code %d, %q, %q, want %q", tt.args, code, stdout, stderr, tt.want)
		}
	}
}

// An address that is taken is the host's trouble, one that is none is the caller's.
func TestAddressesOfPages(t *testing.T) {
	t.Parallel()
	taken := server.Addr().String()
	for _, args := range [][]string{{"serve", "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--health"}, {"ui", "--listen"}} {
		for addr, want := range map[string]int{taken: 69, "127.0.0.1:x": 64, "127.0.0.1": 64, "127.0.0.1:99999": 64} {
			code, stdout, stderr := run(t, bare(t, append(slices.Clone(args), addr)...))
			if code != want || stdout != "" || !strings.Contains(stderr, args[0]+" "+args[len(args)-1]+"="+addr) {
				t.Errorf("%v %s: exit code %d, %q, %q, want %d", args, addr, code, stdout, stderr, want)
			}
		}
	}
}
