//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// The tests run the command from outside. Every command line that they run is
// noted in a file with its exit code, and when all tests have passed, this is held
// against what the command offers: each command, flag, and variable has to be used
// in earnest, and each exit code that is documented has to come out of something.

// notesEnv names the file.
const notesEnv = "LOCKFABRIC_TEST_NOTES"

// note is one command line, noted twice: when it begins, and when it ends unless it
// is killed.
type note struct {
	ID   string   `json:"id"`
	Args []string `json:"args"`
	Env  []string `json:"env"`  // the variables of the command that were set
	Code int      `json:"code"` // killed, or not ended
}

const killed = -1

// noted runs a command line.
func noted(args []string, execute func() int) int {
	n := note{ID: fmt.Sprint(os.Getpid(), time.Now().UnixNano()), Args: args, Code: killed}
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "LOCKFABRIC_") && value != "" {
			n.Env = append(n.Env, name)
		}
	}
	n.write()
	n.Code = execute()
	n.write()
	return n.Code
}

func (n *note) write() {
	if path := os.Getenv(notesEnv); path != "" {
		line, err := json.Marshal(n)
		if err == nil {
			var f *os.File
			if f, err = os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0); err == nil {
				_, err = f.Write(append(line, '\n'))
				_ = f.Close()
			}
		}
		if err != nil && !os.IsNotExist(err) { // it is gone when the tests are over
			panic(err)
		}
	}
}

// exercised runs the tests and, if these were all, checks what they have used.
func exercised(tests func() int) int {
	dir, err := os.MkdirTemp("", "lockfabric-notes-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "notes")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		panic(err)
	}
	if err := os.Setenv(notesEnv, path); err != nil {
		panic(err)
	}
	code := tests()
	for _, selection := range []string{"run", "skip", "list"} {
		if flag.Lookup("test."+selection).Value.String() != "" {
			return code
		}
	}
	if code != 0 {
		return code
	}
	notes, err := readNotes(path)
	if err != nil {
		panic(err)
	}
	missing := append(unused(notes), unseen(notes)...)
	for _, m := range missing {
		fmt.Fprintln(os.Stderr, "no test runs the command with", m)
	}
	if len(missing) > 0 {
		return 1
	}
	return 0
}

func readNotes(path string) (notes map[string]note, err error) {
	notes = map[string]note{}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for in := bufio.NewReader(f); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return notes, nil
		}
		var n note
		if err == nil {
			err = json.Unmarshal(line, &n)
		}
		if err != nil {
			return nil, err
		}
		notes[n.ID] = n
	}
}

// unused returns the commands, flags and variables that no command line used, those
// that were refused as making no sense left out.
func unused(notes map[string]note) (missing []string) {
	used := map[string]bool{}
	commands := map[string]*kong.Node{}
	addCommands(commands, "", model().Node)
	for _, n := range notes {
		if n.Code == exitUsage {
			continue
		}
		command := ""
		for _, word := range n.Args {
			if word == "--" {
				break
			}
			if name, isFlag := strings.CutPrefix(word, "--"); isFlag {
				name, _, _ = strings.Cut(name, "=")
				used["--"+name] = true
				used[command+" --"+name] = true
			} else if longer := strings.TrimSpace(command + " " + word); commands[longer] != nil {
				used[longer] = true
				command = longer
			}
		}
		for _, name := range n.Env {
			used[name] = true
		}
	}
	app := model()
	want := func(what string) {
		if !used[what] {
			missing = append(missing, what)
		}
	}
	flags := func(command string, list []*kong.Flag) {
		for _, f := range list {
			switch {
			case f.Hidden || f.Name == "help":
				continue
			case command == "":
				want("--" + f.Name)
			default:
				want(command + " --" + f.Name)
			}
			for _, e := range f.Envs {
				want(e)
			}
		}
	}
	flags("", app.Flags)
	for name, c := range commands {
		want(name)
		flags(name, c.Flags)
	}
	return missing
}

// addCommands adds those under a node by their names, which are several words where one
// stands under another.
func addCommands(all map[string]*kong.Node, name string, node *kong.Node) {
	for _, c := range node.Children {
		if !c.Hidden {
			inner := strings.TrimSpace(name + " " + c.Name)
			all[inner] = c
			addCommands(all, inner, c)
		}
	}
}

func model() *kong.Application {
	parser, err := newParser(&cli{}, io.Discard, io.Discard)
	if err != nil {
		panic(err)
	}
	return parser.Model
}

// unseen returns the exit codes of the package comment that nothing ended with.
func unseen(notes map[string]note) (missing []string) {
	seen := map[string]bool{}
	for _, n := range notes {
		seen[fmt.Sprint(n.Code)] = true
		if n.Code > exitSignal {
			seen["128+n"] = true
		}
	}
	for _, code := range slices.Sorted(maps.Keys(documented())) {
		if !seen[code] {
			missing = append(missing, "exit code "+code)
		}
	}
	return missing
}

// documented reads the codes of the table in the package comment.
func documented() map[string]string {
	source, err := os.ReadFile("doc.go")
	if err != nil {
		panic(err)
	}
	_, table, _ := strings.Cut(string(source), "// # Exit codes\n")
	table, _, _ = strings.Cut(table, "\npackage main")
	codes := map[string]string{}
	for _, line := range regexp.MustCompile(`(?m)^//\t(\d\S*)\s+(.*)$`).FindAllStringSubmatch(table, -1) {
		codes[line[1]] = line[2]
	}
	if len(codes) < 8 {
		panic("no table of exit codes")
	}
	return codes
}
