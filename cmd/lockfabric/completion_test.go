//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// completed has bash complete a line as it does when the user presses the tab
// key at its end. The words are those that bash cuts it into.
func completed(t *testing.T, line *exec.Cmd, words ...string) []string {
	t.Helper()
	if words[0] != "~/lockfabric" {
		words = append([]string{self(t)}, words...)
	}
	bash := exec.Command("bash", append([]string{"--norc", "-c", `source ./completion.bash || exit 3
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_lockfabric || exit 4
printf '%s\n' "${COMPREPLY[@]}"`, "bash"}, words...)...)
	bash.Env = line.Env
	out, err := bash.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", words, err, out)
	}
	return strings.Fields(string(out))
}

func TestCompletionInBash(t *testing.T) {
	t.Parallel()
	m := manager(t)
	for _, key := range []string{"films/a", "films/b:c", "photos/ä", "$(touch hacked)", "films/$HOME", "-films", "films/a b"} {
		if _, err := m.Acquire(t.Context(), key, fabric.WithMode(fabric.Shared)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := primitives.NewSemaphore(m, "pool", 2).Acquire(t.Context())
	_, gerr := primitives.NewDoubleBarrier(m, "phase", 1).Enter(t.Context())
	if err = errors.Join(err, gerr, primitives.NewLatch(m, "ready", 2).CountDown(t.Context())); err != nil {
		t.Fatal(err)
	}
	line := bare(t)
	home := t.TempDir()
	contexts := filepath.Join(home, "nats", "context")
	if err := os.MkdirAll(contexts, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"prod.json", "staging.json", "$(touch hacked).json", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(contexts, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(self(t), filepath.Join(home, "lockfabric")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "lockfabric-of-the-test"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	line.Env = append(line.Env, "PATH="+home+":"+os.Getenv("PATH"), "LOCKFABRIC_SERVER="+server.ClientURL(), "LOCKFABRIC_FABRIC="+fabricName(t), "HOME="+home, "XDG_CONFIG_HOME="+home)
	for _, tt := range []struct{ words, want string }{
		{"in", "inspect"},
		{"re", "release"},
		{"comple", "completion"},
		{"completion ", "bash fish zsh"},
		{"--out", "--output"},
		{"--output ", "json text"},
		{"--output = ", "json text"}, // bash leaves the '=' a word of its own
		{"--output = j", "json"},
		{"ls --output =", "json text"},
		{"--log-level w", "warn"},
		{"inspect --w", "--watch"},
		{"run k --mode S", "S SIX"},
		{"run k --no-p", "--no-progress"},
		{"run k --wait 1", "10m 10s 1h 1m 1s"},
		{"run k --hold-at-least = 5", "5m 5s"},
		{"--timeout 3", "30s"},
		{"run k --also fi", "films/a films/b:c"},
		{"run k --also films/a = S", "S SIX"},
		{"top --sort ", "age holders key rate waiters"},
		{"run k --semaphore 3 --pe", "--permits"},
		{"inspect ", "films/a films/b:c phase photos/ä pool ready"},
		{"run ", "films/a films/b:c photos/ä pool"}, // what it can be of
		{"lock p", "photos/ä"},
		{"inspect fi", "films/a films/b:c"},
		{"inspect films/b : ", "c"},
		{"inspect films/b : c", "c"},
		{"release --force ph", "phase photos/ä"},
		{"--timeout 3s ls f", "films/a films/b:c"},
		{"--fabric nobodys inspect ", ""},
		{"--fabric = nobodys inspect f", ""},
		{"--server nats://127.0.0.1:1 inspect ", ""},
		{"--context ", "prod staging"},
		{"--context = p", "prod"},
		{"--bogus inspect f", "films/a films/b:c"},
		{"run k -- lockfabric-of-the-t", "lockfabric-of-the-test"}, // a command in the PATH
		{"elect svc --ob", "--observe"},
		{"latch ", "count-down delete wait"},
		{"latch w", "wait"},
		{"latch wait ", "ready"},
		{"latch count-down -n 2 ", "ready"},
		{"latch delete fi", ""},
		{"barrier -n 3 ", "phase"},
		{"barrier sync -n 3 -- lockfabric-of-the-t", "lockfabric-of-the-test"},
		{"elect f", "films/a films/b:c"},
		{"elect svc --value x -- lockfabric-of-the-t", "lockfabric-of-the-test"},
		{"release k --holder = in", ""},
		{"run k echo --w", ""},
		{"nonsense ", ""},
		{"~/lockfabric in", "inspect"},
	} {
		// ": " at the end: the cursor stands right after it.
		words := strings.Split(tt.words, " ")
		if n := len(words); n > 1 && words[n-1] == "" && strings.Trim(words[n-2], ":=") == "" {
			words = words[:n-1]
		}
		got, want := completed(t, line, words...), strings.Fields(tt.want)
		for range 9 { // a shell waits for a second only, which a busy machine may need
			if slices.Equal(got, want) {
				break
			}
			got = completed(t, line, words...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", tt.words, got, want)
		}
	}
	if got := completed(t, line, ""); !slices.Contains(got, "run") || slices.Contains(got, "complete") {
		t.Errorf("commands: %q", got)
	}
}

// To complete a name starts no server and leaves no trace.
func TestCompletionStartsNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "none")
	line := bare(t)
	line.Env = append(line.Env, "LOCKFABRIC_DIR="+dir)
	if got := completed(t, line, "inspect", ""); len(got) != 0 {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the local server's directory: %v", err)
	}
	for _, args := range [][]string{{"complete"}, {"complete", "--"}, {"complete", "--", "--server", "::", "inspect", ""}, {"complete", "--", "inspect", "a", "b", ""}} {
		cmd := bare(t, args...)
		cmd.Env = line.Env
		if code, stdout, stderr := run(t, cmd); code != 0 || strings.TrimSpace(stdout) != "nothing" && strings.TrimSpace(stdout) != "files" || stderr != "" {
			t.Errorf("%v: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// The scripts of the other shells ask the same command; where the shell is there
// it reads its script.
func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	for shell, want := range map[string][]string{
		"bash": {"complete -o default -F _lockfabric lockfabric\n"},
		"zsh":  {"#compdef lockfabric\n", `complete -- "${(@)words[2,CURRENT]}"`, "compdef _lockfabric lockfabric\n"},
		"fish": {"complete -c lockfabric -f -a '(__lockfabric_complete)'\n", "complete -- $before (commandline -ct)"},
	} {
		code, stdout, stderr := run(t, bare(t, "completion", shell))
		script, err := completionScripts.ReadFile("completion." + shell)
		if err != nil || code != 0 || stdout != string(script) || stderr != "" {
			t.Errorf("%s: exit code %d, %s, %v", shell, code, stderr, err)
		}
		for _, w := range want {
			if !strings.Contains(stdout, w) {
				t.Errorf("%s: no %q in\n%s", shell, w, stdout)
			}
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // its text was checked
		}
		check := exec.Command(path, "-n")
		check.Stdin = strings.NewReader(stdout)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	if code, _, stderr := run(t, bare(t, "completion", "tcsh")); code != 64 || !strings.Contains(stderr, "bash") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// zsh, where it is there, adds what the command offers, in place of the last word.
func TestCompletionInZsh(t *testing.T) {
	t.Parallel()
	zsh, err := exec.LookPath("zsh")
	if err != nil {
		return
	}
	dir := t.TempDir()
	if err := os.Symlink(self(t), filepath.Join(dir, "lockfabric")); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"lockfabric in":               "inspect",
		"~/lockfabric in":             "inspect",
		"lockfabric completion ":      "bash fish zsh",
		"lockfabric --output=j":       "--output=json",
		"lockfabric run k --mode S":   "S SIX",
		"lockfabric run k --wait 1":   "10m 10s 1h 1m 1s",
		"lockfabric --creds in":       "files",
		"lockfabric run k -- ca":      "commands",
		"lockfabric ls --watch nobod": "files",
	} {
		cmd := exec.Command(zsh, append([]string{"-f", "-c", `compdef() {}; compadd() { print -l -- ${(P)2} }; _files() { print files }; _command_names() { print commands }
words=("$@") CURRENT=$#
source <(lockfabric completion zsh)
_lockfabric`, "zsh"}, strings.Split(line, " ")...)...)
		cmd.Env = slices.Concat(bare(t).Env, []string{"HOME=" + dir, "PATH=" + dir + ":" + os.Getenv("PATH")})
		out, err := cmd.CombinedOutput()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", line, got, err, want)
		}
	}
}

// fish offers the files of the directory beside what a script says, unless that says
// not to. (Where there is no fish, the test before this one has read the script.)
func TestCompletionInFish(t *testing.T) {
	t.Parallel()
	fish, err := exec.LookPath("fish")
	if err != nil {
		return
	}
	dir := t.TempDir()
	if err := os.Symlink(self(t), filepath.Join(dir, "lockfabric")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "inside"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for words, want := range map[string]string{
		"lockfabric in":              "inspect",
		"~/lockfabric in":            "inspect",
		"lockfabric completion ":     "bash fish zsh",
		"lockfabric --output=j":      "--output=json",
		"lockfabric --creds in":      "inside",
		"lockfabric run k --mode S":  "S SIX",
		"lockfabric run k --wait 1":  "10m 10s 1h 1m 1s",
		"lockfabric run k -- cat in": "inside",
	} {
		cmd := exec.Command(fish, "--no-config", "-c", `lockfabric completion fish | source; cd $HOME; complete -C $argv[1]`, words)
		cmd.Env = slices.Concat(bare(t).Env, []string{"HOME=" + dir, "PATH=" + dir + ":" + os.Getenv("PATH")})
		out, err := cmd.CombinedOutput()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", words, got, err, want)
		}
	}
}
