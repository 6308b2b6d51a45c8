package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// print writes a result: the value as JSON, or what text writes in columns that are separated by tabs.
func (s *streams) print(format string, v any, text func(w io.Writer)) error {
	if format == "json" {
		return s.encode(v, "  ")
	}
	_, err := s.out.Write(columns(text))
	return writeError(err)
}

// again writes one of several results, as print does, or as JSON on one line.
func (s *streams) again(format string, v any, text func(w io.Writer)) error {
	if format == "json" {
		return s.encode(v, "")
	}
	return s.print(format, v, text)
}

// show asks the fabric something, within --timeout, and prints the answer.
func show[T any](ctx context.Context, c *cli, s *streams, ask func(ctx context.Context, m *fabric.Manager) (T, error), text func(w io.Writer, answer T)) error {
	var answer T
	err := c.with(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) {
		answer, err = ask(ctx, m)
		return err
	})
	if err != nil {
		return err
	}
	return s.print(c.Output, answer, func(w io.Writer) { text(w, answer) })
}

// columns aligns what is separated by tabs.
func columns(text func(w io.Writer)) []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	text(w)
	_ = w.Flush()
	return b.Bytes()
}

// encode writes a value as JSON, in one piece.
func (s *streams) encode(v any, indent string) error {
	enc := json.NewEncoder(s.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return writeError(enc.Encode(v))
}

func writeError(err error) error {
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// printable makes text that others chose safe for a terminal and for a column:
// quoted where it is empty or has characters that move the cursor or the eye.
func printable(text string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	if text == "" || strings.ContainsFunc(text, odd) {
		return strconv.Quote(text)
	}
	return text
}

// message makes one line of an error, and leaves out which package says it.
func message(err error) string {
	text := ": " + oneLine(err.Error())
	for _, pkg := range []string{"fabric", "engine", "kv", "embedded"} {
		text = strings.ReplaceAll(text, ": "+pkg+": ", ": ")
	}
	// Each of several packages has said it.
	for _, said := range [][2]string{
		{"invalid option: invalid option", "invalid option"},
		{"cluster unavailable: unavailable", "cluster unavailable"},
		{"cluster unavailable: cluster unavailable", "cluster unavailable"},
		{"not known whether it was done: not known whether it was done", "not known whether it was done"},
	} {
		text = strings.ReplaceAll(text, ": "+said[0]+": ", ": "+said[1]+": ")
	}
	// So the client says that there is no connection, where nothing is to be sent later.
	text = strings.ReplaceAll(text, nats.ErrReconnectBufExceeded.Error(), "no server is connected")
	return strings.TrimPrefix(text, ": ")
}

// oneLine replaces what would break a line, or move a terminal's cursor.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// age tells how long ago t was, by the clock of this host, in whole seconds.
func age(t, now time.Time) string { return max(now.Sub(t), 0).Truncate(time.Second).String() }

// orDash marks an empty column.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return printable(text)
}
