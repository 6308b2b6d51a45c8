package main

import (
	_ "embed"
	"fmt"
	"go/doc/comment"
	"strings"

	"github.com/alecthomas/kong"
)

// The man page is the text of --help for all commands, and the package comment.
//
//go:embed doc.go
var packageComment string

// manPage writes the manual of the command in roff.
func manPage(app *kong.Application) string {
	m := &roff{}
	m.request("TH", "LOCKFABRIC", "1", "", "lockfabric "+thisVersion().Version, "")
	m.section("NAME", "lockfabric - distributed locks on NATS JetStream")
	m.section("SYNOPSIS", app.Name+app.Summary())
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

// roff is text in the language of man pages.
type roff struct {
	strings.Builder
	begun bool // there is a paragraph in this section
}

// text makes every character stand for itself.
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

func (m *roff) section(name, text string) {
	m.request("SH", name)
	m.text(text)
}

// gap parts a paragraph from the one before it.
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
