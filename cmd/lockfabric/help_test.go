//go:build unix

package main

import (
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help", "latch", "wait"}, {"latch", "wait", "--help"}} {
		code, stdout, stderr := run(t, bare(t, args...))
		examples, own, all := strings.Index(stdout, "\nExamples:\n\n    lockfabric latch wait "), strings.Index(stdout, "\n      --count"), strings.Index(stdout, "\nFlags of all commands:\n")
		if code != 0 || stderr != "" || examples < 0 || own < examples || all < own || strings.Contains(stdout[:all], "--server") {
			t.Errorf("%v: exit code %d, %s%s", args, code, stdout, stderr)
		}
	}
	if code, stdout, stderr := run(t, bare(t, "help")); code != 0 || stderr != "" || !strings.Contains(stdout, "\n  inspect ") {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := run(t, bare(t, "help", "bogus")); code != 64 || stdout != "" || !strings.Contains(stderr, "bogus") {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
}

func TestVersionFlag(t *testing.T) {
	t.Parallel()
	_, want, _ := run(t, bare(t, "version"))
	for _, args := range [][]string{{"--version"}, {"ls", "--version"}} {
		if code, stdout, stderr := run(t, bare(t, args...)); code != 0 || stdout != want || stderr != "" {
			t.Errorf("%v: exit code %d, %q, %q, want %q", args, code, stdout, stderr, want)
		}
	}
}

func examplesOf(path string) (lines []string) {
	_, text, _ := strings.Cut(helpOf(path), "Examples:\n\n")
	for line := range strings.Lines(text) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// Every command has examples in its help, and they are command lines of that command.
func TestExamples(t *testing.T) {
	t.Parallel()
	unused, dir := map[string]bool{}, t.TempDir()
	for block := range strings.SplitSeq(helpText, "\n== ") {
		if path, _, ok := strings.Cut(block, "\n\n"); ok && !strings.HasPrefix(helpText, block) {
			unused[path] = true
		}
	}
	for _, n := range model().Leaves(true) {
		path := pathOf(n)
		delete(unused, path)
		if len(examplesOf(path)) == 0 {
			t.Errorf("%s has none", path)
		}
		for _, line := range examplesOf(path) {
			// What else is on the line may fail.
			sh := exec.Command("sh", "-c", `exec 3>&1; lockfabric() { printf '%s\0' "$@" >&3; }; `+line)
			sh.Dir = dir // one of them writes a file
			words, _ := sh.Output()
			parser, err := newParser(&cli{}, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			var selected *kong.Node
			parsed, err := parser.Parse(strings.Split(strings.TrimSuffix(string(words), "\x00"), "\x00"))
			if err == nil {
				selected = parsed.Selected()
			}
			if err != nil || pathOf(selected) != path {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
	for path := range unused {
		t.Errorf("help of %q, which is no command", path)
	}
}
