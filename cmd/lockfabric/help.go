package main

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"go/doc/comment"
	"io"
	"io/fs"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"
)

// helpCmd is the command form of --help.
type helpCmd struct {
	Command []string `arg:"" optional:"" complete:"command" help:"The command to describe."`
	Man     bool     `help:"Print the manual of all commands, in roff, as for man -l."`
}

func (h *helpCmd) Run(s *streams) error {
	parser, err := newParser(&cli{}, s.out, s.err)
	if err == nil && h.Man {
		_, err = io.WriteString(s.out, manPage(parser.Model))
		return writeError(err)
	}
	if err == nil {
		_, err = parser.Parse(append(h.Command, "--help"))
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok && path.Op == "write" {
		return writeError(err)
	}
	if err != nil {
		return usageError("help: %w: see 'lockfabric --help'", err)
	}
	return nil
}

// versionFlag is the flag form of the command version.
type versionFlag bool

// BeforeReset is called by the parser if the flag was given.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	thisVersion().write(app.Stdout)
	app.Exit(0)
	return nil
}

// helpText is the text of --help and of the man page for each command, in addition to its flags, with examples.
//
//go:embed help.txt
var helpText string

// helpOf returns the part of helpText for a command.
func helpOf(command string) string {
	_, text, _ := strings.Cut(helpText, "\n== "+command+"\n")
	text, _, _ = strings.Cut(text, "\n== ")
	return strings.TrimSpace(text)
}

// pathOf returns the name of a command; a subcommand has several words.
func pathOf(n *kong.Node) string {
	name := n.Name
	for n = n.Parent; n != nil && n.Parent != nil; n = n.Parent {
		name = n.Name + " " + name
	}
	return name
}

// arrange completes the help of all commands: it adds the examples, and lists a command's own flags first.
func arrange(app *kong.Application) {
	all := &kong.Group{Key: "all", Title: "Flags of all commands:"}
	for _, f := range app.Flags {
		if f != app.HelpFlag {
			f.Group = all
		}
	}
	for _, n := range app.Leaves(false) {
		n.Detail = helpOf(pathOf(n))
	}
}

// The man page consists of the text of --help for all commands, and of the package comment.
//
//go:embed doc.go
var packageComment string

// manPage returns the manual of the command in roff.
func manPage(app *kong.Application) string {
	m := &roff{}
	m.request("TH", "LOCKFABRIC", "1", "", "lockfabric "+thisVersion().Version, "")
	m.request("SH", "NAME")
	m.text("lockfabric - distributed locks on NATS JetStream")
	m.request("SH", "SYNOPSIS")
	m.text(app.Name + app.Summary())
	m.request("SH", "DESCRIPTION")
	m.doc(packageComment)
	m.request("SH", "COMMANDS")
	for _, n := range app.Leaves(true) {
		m.request("SS", n.Summary())
		m.paragraph(n.Help)
		for _, p := range n.Positional {
			m.item(p.Summary(), p.Help)
		}
		m.flags(n.Flags)
		detail, examples, _ := strings.Cut(n.Detail, "Examples:\n\n")
		for p := range strings.SplitSeq(detail, "\n\n") {
			m.paragraph(p)
		}
		m.verbatim(examples)
	}
	m.request("SH", "FLAGS OF ALL COMMANDS")
	m.flags(app.Flags)
	return m.String()
}

// roff is a text in the format of man pages.
type roff struct {
	strings.Builder
	begun bool // this section has a paragraph
}

func (m *roff) text(s string) {
	for line := range strings.SplitSeq(s, "\n") {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			m.WriteString(`\&`)
		}
		m.WriteString(strings.NewReplacer(`\`, `\e`, "-", `\-`, "^", `\(ha`, "~", `\(ti`, "`", `\(ga`, "'", `\(aq`).Replace(line) + "\n")
	}
}

func (m *roff) request(name string, args ...string) {
	fmt.Fprintf(m, ".%s", name)
	for _, a := range args {
		m.WriteString(` "` + strings.NewReplacer(`\`, `\e`, `"`, `\(dq`, "-", `\-`).Replace(a) + `"`)
	}
	m.WriteString("\n")
	m.begun = name != "SH" && name != "SS"
}

// gap separates a paragraph from the one before.
func (m *roff) gap() {
	if m.begun {
		m.request("PP")
	}
	m.begun = true
}

func (m *roff) paragraph(text string) {
	if text = strings.TrimSpace(text); text != "" {
		m.gap()
		m.text(text)
	}
}

func (m *roff) item(what, text string) {
	m.request("TP")
	m.text(what)
	m.text(text)
}

func (m *roff) verbatim(text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		m.gap()
		m.WriteString(".RS 4\n.nf\n")
		m.text(text)
		m.WriteString(".fi\n.RE\n")
	}
}

func (m *roff) flags(flags []*kong.Flag) {
	for _, f := range flags {
		if !f.Hidden {
			m.item(f.String(), kong.DefaultHelpValueFormatter(f.Value))
		}
	}
}

// doc writes a package comment.
func (m *roff) doc(source string) {
	source, _, _ = strings.Cut(source, "\npackage ")
	lines := strings.Split(source, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(strings.TrimPrefix(lines[i], "//"), " ")
	}
	var p comment.Printer
	for _, block := range new(comment.Parser).Parse(strings.Join(lines, "\n")).Content {
		text := strings.TrimSpace(string(p.Text(&comment.Doc{Content: []comment.Block{block}})))
		switch b := block.(type) {
		case *comment.Heading:
			m.request("SS", strings.TrimPrefix(text, "# "))
		case *comment.Code:
			m.verbatim(strings.ReplaceAll(b.Text, "\t", "        "))
		default:
			m.paragraph(text)
		}
	}
}

type versionCmd struct{}

// versionInfo is the JSON of version.
type versionInfo struct {
	Version  string `json:"version"`            // of the module, "(devel)" for a build from a work tree without tags
	Revision string `json:"revision,omitempty"` // of the version control system
	Time     string `json:"time,omitempty"`     // of that revision, RFC 3339
	Modified bool   `json:"modified,omitempty"` // the work tree had changes
	Go       string `json:"go"`
	Platform string `json:"platform"` // "linux/amd64"
}

// newVersionInfo returns what is known about a build; build is nil if nothing was recorded.
func newVersionInfo(build *debug.BuildInfo) versionInfo {
	v := versionInfo{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if build == nil {
		return v
	}
	v.Version = cmp.Or(build.Main.Version, v.Version)
	for _, setting := range build.Settings {
		switch setting.Key {
		case "vcs.revision":
			v.Revision = setting.Value
		case "vcs.time":
			v.Time = setting.Value
		case "vcs.modified":
			v.Modified = setting.Value == "true"
		}
	}
	return v
}

func (*versionCmd) Run(c *cli, s *streams) error {
	v := thisVersion()
	return s.print(c.Output, v, v.write)
}

func thisVersion() versionInfo {
	build, _ := debug.ReadBuildInfo()
	return newVersionInfo(build)
}

func (v versionInfo) write(w io.Writer) {
	fmt.Fprintf(w, "lockfabric %s", v.Version)
	if v.Revision != "" {
		fmt.Fprintf(w, " %.12s", v.Revision)
		if v.Modified {
			fmt.Fprint(w, "+changes")
		}
	}
	fmt.Fprintf(w, " %s %s\n", v.Go, v.Platform)
}
