package main

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var writeTour = flag.Bool("tour", false, "write docs/tour.md anew")

// tourPrompt is what the shell says when it is ready.
const tourPrompt = "@@@ "

// volatile is what differs from one tour to the next: ids, numbers, and the space that they take.
var volatile = regexp.MustCompile(`exit code \d+|[\w-]{22,}\.\d+|\d[\d.hms]*| +`)

func settled(text, host string) string {
	return volatile.ReplaceAllStringFunc(regexp.MustCompile(`\b`+regexp.QuoteMeta(host)+`\b`).ReplaceAllString(text, "host"), func(s string) string {
		switch s[0] {
		case 'e': // this is not
			return s
		case ' ':
			return " "
		}
		return "0"
	})
}

// docs/tour.md is what a terminal shows.
func TestTour(t *testing.T) {
	t.Parallel()
	const path = "../../docs/tour.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	recordedOn := string(regexp.MustCompile(` on (\S+) pid |$`).FindSubmatch(doc)[1])
	bash := exec.Command("bash", "--norc", "--noprofile", "--noediting", "-i")
	bash.Dir = t.TempDir()
	bash.Env = slices.Concat(bare(t).Env, []string{"PATH=" + bash.Dir + ":" + os.Getenv("PATH"), "PS1="})
	if err := os.Symlink(self(t), filepath.Join(bash.Dir, "lockfabric")); err != nil {
		t.Fatal(err)
	}
	addr := freeAddrs(t, 1)[0]
	c := newConsole(t, bash)
	c.resize(50, 200)
	c.keys("stty -echo; PS1='@@''@ '\n")
	c.upTo(tourPrompt)
	types := func(command string) string {
		c.keys(strings.ReplaceAll(command, "127.0.0.1:4222", addr) + "\n")
		first := ""
		if strings.HasSuffix(command, "# ^C") { // when it has said something
			first = c.upTo("\n")
			c.keys("\x03")
		}
		out := first + strings.TrimSuffix(c.upTo(tourPrompt), tourPrompt)
		out = strings.ReplaceAll(out, "\r\n", "\n")
		out = regexp.MustCompile(`(?m)^\[\d+\] \d+\n`).ReplaceAllString(out, "") // a job of the shell
		return strings.ReplaceAll(regexp.MustCompile(`(?m) +$`).ReplaceAllString(out, ""), addr, "127.0.0.1:4222")
	}
	var b strings.Builder
	command, want := "", ""
	flush := func() {
		if command == "" {
			return
		}
		got := types(command)
		if settled(got, hostname()) != settled(want, recordedOn) && !*writeTour {
			t.Errorf("$ %s\n%s\nbut docs/tour.md has\n%s\n(go test ./cmd/lockfabric -run TestTour -tour writes it anew)", command, got, want)
		}
		b.WriteString(got)
		command, want = "", ""
	}
	for line := range strings.Lines(string(doc)) {
		shown, visible := strings.CutPrefix(line, "$ ")
		silent, hidden := strings.CutPrefix(line, "<!-- $ ")
		switch {
		case visible:
			flush()
			command = strings.TrimSpace(shown)
		case command != "" && line != "```\n":
			want += line
			continue
		case hidden:
			types(strings.TrimSuffix(silent, " -->\n"))
		default:
			flush()
		}
		b.WriteString(line)
	}
	if *writeTour {
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
