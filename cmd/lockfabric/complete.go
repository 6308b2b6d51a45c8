package main

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/natscontext"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// The scripts call "lockfabric complete" to get the possible next words; they only know their shell.
//
//go:embed completion.bash completion.zsh completion.fish
var completionScripts embed.FS

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
}

func (v *completionCmd) Run(s *streams) error {
	text, err := completionScripts.ReadFile("completion." + v.Shell)
	if err == nil {
		_, err = s.out.Write(text)
	}
	return writeError(err)
}

type completeCmd struct {
	Words []string `arg:"" optional:"" help:"The command line up to the cursor, without the program's name; the last word may be empty."`
}

// Run prints the possible next words, one on each line. It never fails, because a shell cannot show an error.
func (v *completeCmd) Run(s *streams) error {
	all, offer := candidates(v.Words)
	for _, text := range all {
		fmt.Fprintln(s.out, text)
	}
	if len(all) == 0 {
		fmt.Fprintln(s.out, offer)
	}
	return nil
}

// completionTime limits how long a shell waits for names of locks.
const completionTime = time.Second

// What a shell may offer if there are no candidates, as a line of its own. No name starts with a tab.
const (
	offerFiles    = "\tfiles"
	offerCommands = "\tcommands"
	offerNothing  = "\tnothing"
)

// candidates returns the candidates for the last word, and what the shell may offer if there are none.
func candidates(words []string) (all []string, offer string) {
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard)
	if err != nil || len(words) == 0 {
		return nil, offerNothing
	}
	line := commandLine{node: parser.Model.Node, top: parser.Model.Flags}
	word := words[len(words)-1]
	for _, w := range words[:len(words)-1] {
		line.take(w)
	}
	offer = offerFiles
	switch {
	case line.rest && line.runs() && words[len(words)-2] == "--":
		return nil, offerCommands
	case line.rest:
		return nil, offerFiles
	case line.open != nil:
		all, offer = line.values(line.open), line.offer(line.open)
		if key, _, moded := strings.Cut(word, "="); moded && line.open.Name == "also" {
			for _, m := range modes {
				all = append(all, key+"="+m)
			}
		}
	case strings.HasPrefix(word, "--") && strings.Contains(word, "="):
		name, _, _ := strings.Cut(word[2:], "=")
		offer = line.offer(line.flag(name))
		for _, v := range line.values(line.flag(name)) {
			all = append(all, "--"+name+"="+v)
		}
	case strings.HasPrefix(word, "-"):
		for _, f := range line.flags() {
			if !f.Hidden {
				all = append(all, "--"+f.Name)
			}
		}
	case line.args < len(line.node.Positional):
		all = line.values(line.node.Positional[line.args])
	default:
		all = commandNames(line.node)
	}
	all = slices.DeleteFunc(all, func(s string) bool { return !strings.HasPrefix(s, word) })
	slices.Sort(all)
	return slices.Compact(all), offer
}

func (l *commandLine) offer(v *kong.Value) string {
	if v != nil && (v.Enum != "" || v.Tag.Get("complete") != "" || isDuration(v)) {
		return offerNothing
	}
	return offerFiles
}

// commandLine is the state after reading a part of a command line.
type commandLine struct {
	node   *kong.Node
	top    []*kong.Flag // flags of all commands
	args   int          // number of positional arguments so far
	open   *kong.Value  // the flag whose value comes next
	rest   bool         // the rest belongs to another command
	global []string     // flags of all commands with their values, as given
}

func (l *commandLine) take(w string) {
	switch {
	case l.rest:
	case l.open != nil:
		if l.ofAll(l.open) {
			l.global = append(l.global, w)
		}
		l.open = nil
	case w == "--":
		l.rest = true
	case strings.HasPrefix(w, "--"):
		name, _, given := strings.Cut(w[2:], "=")
		f := l.flag(name)
		if f != nil && l.ofAll(f) {
			l.global = append(l.global, w)
		}
		if f != nil && !f.IsBool() && !given {
			l.open = f
		}
	case strings.HasPrefix(w, "-"):
		for _, f := range l.flags() { // flags of one letter
			if w == "-"+string(f.Short) && !f.IsBool() {
				l.open = f.Value
			}
		}
	default:
		for _, n := range l.node.Children {
			if n.Name == w {
				l.node, l.args = n, 0
				return
			}
		}
		l.args++
		// There is no such command, or there are too many words, or the command of run begins.
		l.rest = l.args >= len(l.node.Positional)
	}
}

func (l *commandLine) ofAll(v *kong.Value) bool { return slices.Contains(l.top, v.Flag) }

func (l *commandLine) runs() bool {
	args := l.node.Positional
	return len(args) > 0 && args[len(args)-1].Passthrough
}

func (l *commandLine) flags() []*kong.Flag { return slices.Concat(l.node.AllFlags(false)...) }

func (l *commandLine) flag(name string) *kong.Value {
	for _, f := range l.flags() {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

// values returns the known possible values of a flag or an argument.
func (l *commandLine) values(v *kong.Value) []string {
	if v == nil {
		return nil
	}
	if v.Enum != "" {
		return strings.Split(v.Enum, ",")
	}
	if isDuration(v) {
		return durations
	}
	switch kind := v.Tag.Get("complete"); kind {
	case "", "-":
		return nil
	case "command":
		return commandNames(l.node.Parent)
	case "name", "lock", "lock,semaphore", "barrier,gate", "latch":
		return lockNames(l.global, kind)
	case "context":
		dir, err := natscontext.Dir()
		if err != nil {
			return nil
		}
		return slices.DeleteFunc(natscontext.Names(dir), func(name string) bool { return !plain(name) })
	default:
		return strings.Split(kind, ",")
	}
}

// durations are offered where a duration is expected, to show how it is written.
var durations = []string{"0s", "1s", "5s", "10s", "30s", "1m", "5m", "10m", "1h"}

func isDuration(v *kong.Value) bool {
	t := v.Target.Type()
	return t == reflect.TypeFor[time.Duration]() || t == reflect.TypeFor[*time.Duration]()
}

func commandNames(node *kong.Node) (names []string) {
	for _, n := range node.Children {
		if !n.Hidden {
			names = append(names, n.Name)
		}
	}
	return names
}

// lockNames returns the names of these kinds ("name": all) in use. It only reads: it creates nothing and starts no
// server.
func lockNames(global []string, kinds string) (names []string) {
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard, kong.Exit(func(int) {})) // otherwise it would print help and end the process
	if err != nil {
		return nil
	}
	parsed, err := parser.Parse(append(slices.Clone(global), "ls"))
	if err != nil {
		return nil
	}
	c.note(parsed)
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	nc, err := c.peek()
	if err != nil {
		return nil
	}
	defer nc.Close()
	x, err := jskv.NewExaminer(nc, jskv.Config{Fabric: c.Fabric})
	if err != nil {
		return nil
	}
	add := func(e jskv.Entry) (more bool) {
		var is struct{ Kind string }
		_ = json.Unmarshal(e.Value, &is)
		if name, err := kv.DecodeKey(e.Key); err == nil && plain(name) && (kinds == "name" || slices.Contains(strings.Split(kinds, ","), is.Kind)) {
			names = append(names, name)
		}
		return true
	}
	for i, bucket := range append(kv.LocksBuckets(c.Fabric, 1), kv.LocksBuckets(c.Fabric, kv.MaxShards)...) {
		locks, err := x.Open(ctx, bucket)
		switch {
		case err == nil:
			_ = locks.Entries(ctx, ">", add)
			if i == 0 {
				return names
			}
		case i > 0: // else the fabric may have shards
			return names
		}
	}
	return names
}

// peek connects to an existing server, within half of the time.
func (c *cli) peek() (*nats.Conn, error) {
	opts := []nats.Option{nats.Timeout(completionTime / 2), nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	to, err := c.target()
	if err != nil {
		return nil, err
	}
	if to != nil {
		return nats.Connect(to.servers, append(opts, to.options...)...)
	}
	dir, err := c.localPath()
	if err != nil {
		return nil, err
	}
	state, err := readState(filepath.Clean(dir))
	if err != nil {
		return nil, err
	}
	return nats.Connect(state.URL, append(opts, nats.Token(state.Token), nats.SetCustomDialer(localDialer{state.Name}))...)
}

// plain reports whether every shell takes the name literally: $(reboot) must not get onto a command line by a key press.
func plain(name string) bool {
	return name != "" && !strings.HasPrefix(name, "-") && !strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_./:@%+,", r)
	})
}
