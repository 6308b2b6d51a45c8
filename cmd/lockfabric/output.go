package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"golang.org/x/term"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// print writes a result: the value as JSON, or the columns, separated by tabs, that text writes.
func (s *streams) print(format string, v any, text func(w io.Writer)) error {
	if format == "json" {
		return s.encode(v, "  ")
	}
	_, err := s.out.Write(columns(text))
	return writeError(err)
}

// again is print for one of several results; JSON is on one line.
func (s *streams) again(format string, v any, text func(w io.Writer)) error {
	if format == "json" {
		return s.encode(v, "")
	}
	return s.print(format, v, text)
}

// show calls ask with the fabric, within --timeout, and prints the answer.
func show[T any](ctx context.Context, c *cli, s *streams, ask func(ctx context.Context, m *fabric.Manager) (T, error), text func(w io.Writer, answer T)) error {
	var answer T
	err := c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) {
		answer, err = pause.Within(ctx, c.Timeout, func(ctx context.Context) (T, error) { return ask(ctx, m) })
		return err
	})
	if err != nil {
		return err
	}
	return s.print(c.Output, answer, func(w io.Writer) { text(w, answer) })
}

// follow calls fn with every value of a watch, until a signal ends the command.
func follow[T any](ctx context.Context, c *cli, s *streams, watch func(*fabric.Manager, context.Context, string) iter.Seq2[T, error],
	name string, fn func(ctx context.Context, m *fabric.Manager, value T) error) error {
	return c.whileRead(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		for value, err := range watch(m, ctx, name) {
			if err == nil {
				err = fn(ctx, m, value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// columns aligns columns that are separated by tabs.
func columns(text func(w io.Writer)) []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	text(w)
	_ = w.Flush()
	return b.Bytes()
}

// encode writes a value as JSON, with one write.
func (s *streams) encode(v any, indent string) error {
	enc := json.NewEncoder(s.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return writeError(enc.Encode(v))
}

func writeError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("writing the result: %w", err)
}

// printable makes a text of another user safe for a terminal and a column. It quotes an empty text, and one with
// characters that move the cursor or change the appearance.
func printable(text string) string {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// message makes one line of an error, without package names.
func message(err error) string {
	text := ": " + oneLine(err.Error())
	for _, pkg := range []string{"fabric", "engine", "kv", "embedded"} {
		text = strings.ReplaceAll(text, ": "+pkg+": ", ": ")
	}
	// Several packages add the same text.
	for _, said := range [][2]string{
		{"invalid option: invalid option", "invalid option"},
		{"cluster unavailable: unavailable", "cluster unavailable"},
		{"cluster unavailable: cluster unavailable", "cluster unavailable"},
		{"not known whether it was done: not known whether it was done", "not known whether it was done"},
	} {
		text = strings.ReplaceAll(text, ": "+said[0]+": ", ": "+said[1]+": ")
	}
	// The client returns this error if there is no connection and nothing must be sent later.
	text = strings.ReplaceAll(text, nats.ErrReconnectBufExceeded.Error(), "no server is connected")
	return strings.TrimPrefix(text, ": ")
}

// oneLine replaces characters that would break a line or move a terminal's cursor.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// age returns how long ago t was, by the clock of this host, in whole seconds.
func age(t, now time.Time) string { return max(now.Sub(t), 0).Truncate(time.Second).String() }

// orDash marks an empty column.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return printable(text)
}

// progressEvery is the time before the first progress line, and the interval of its updates.
const progressEvery = time.Second

// startProgress shows, after one second, which holder blocks an acquire of this manager, until erase is called.
func startProgress(ctx context.Context, m *fabric.Manager, key string, line *statusLine) (erase func()) {
	var last atomic.Pointer[fabric.Info]
	started := time.Now()
	text := func() string { return waiting(key, last.Load(), started, time.Now()) }
	return keepShowing(ctx, line, text, func(ctx context.Context) {
		if !pause.For(ctx, progressEvery) {
			return // most waits end here, without a request
		}
		for info, err := range m.Watch(ctx, key) {
			if err != nil {
				return // the acquire reports the error if it matters
			}
			last.Store(&info)
			line.show(text())
			if !pause.For(ctx, progressEvery) { // a busy lock is read only as often as it is shown
				return
			}
		}
	})
}

// showLater shows text after one second, if the output is a terminal and nothing else, until erase is called.
func (c *cli) showLater(ctx context.Context, s *streams, text func() string) (erase func()) {
	if c.Output != "text" || !s.status.usable() {
		return func() {}
	}
	return keepShowing(ctx, s.status, text, func(context.Context) {})
}

// since returns a text with the time since the call.
func since(format string) func() string {
	started := time.Now()
	return func() string { return fmt.Sprintf(format, age(started, time.Now())) }
}

// keepShowing shows text, updated every second, and calls beside, until erase is called. After erase, nothing is
// written.
func keepShowing(ctx context.Context, line *statusLine, text func() string, beside func(ctx context.Context)) (erase func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { beside(ctx) })
	wg.Go(func() {
		for pause.For(ctx, progressEvery) {
			line.show(text())
		}
	})
	return func() {
		cancel()
		wg.Wait()
		line.show("")
	}
}

// waiting returns the progress line. The most important part comes first, because the end may be cut.
func waiting(key string, info *fabric.Info, started, now time.Time) string {
	text := fmt.Sprintf("waiting %s for %s", age(started, now), printable(key))
	if info == nil {
		return text
	}
	if info.Parties > 0 || info.Kind == fabric.KindLatch {
		return text + ", " + state(*info)
	}
	if i := slices.IndexFunc(info.Waiters, func(p fabric.Party) bool { return p.Own }); i >= 0 {
		text += fmt.Sprintf(", %d of %d in the queue", i+1, len(info.Waiters))
	}
	if len(info.Holders) == 0 {
		return text
	}
	h := info.Holders[0]
	text += ", held by " + holder(h) + ", who asked " + age(h.Since, now) + " ago"
	if n := len(info.Holders) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// holder describes a holder as precisely as it is known.
func holder(p fabric.Party) string {
	var words []string
	if p.Owner != p.ID || p.Lease.Host == "" {
		words = append(words, printable(p.Owner))
	}
	if p.Lease.Label != "" {
		words = append(words, printable(p.Lease.Label))
	}
	if p.Lease.Host != "" {
		if len(words) > 0 {
			words = append(words, "on")
		}
		words = append(words, printable(p.Lease.Host))
	}
	if p.Lease.PID != 0 {
		words = append(words, "pid", strconv.Itoa(p.Lease.PID))
	}
	switch p.Lease.State {
	case "dead", "missing":
		words = append(words, "("+p.Lease.State+")")
	case "stale":
		words = append(words, "(looks dead)")
	}
	return strings.Join(words, " ")
}

// statusLine is a terminal whose last line can be replaced. Other output through it, such as a log, is written before
// this line. For any other file, it only writes.
type statusLine struct {
	term *os.File

	mu    sync.Mutex
	shown string
}

// usable reports whether a line can be shown and replaced. Colours are never used, so NO_COLOR does not matter.
func (l *statusLine) usable() bool {
	return term.IsTerminal(int(l.term.Fd())) && os.Getenv("TERM") != "dumb"
}

func (l *statusLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown == "" {
		return l.term.Write(p)
	}
	// With one write, no other output comes in between.
	if _, err := l.term.Write(append([]byte(clearLine), append(p[:len(p):len(p)], l.shown...)...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// clearLine moves to the start of the terminal's line and erases it.
const clearLine = "\r\x1b[K"

// show replaces the line; "" erases it. A text that is too long for the terminal is cut, because a wrapped line could
// not be erased. In the background, another program has the terminal, and nothing is shown.
func (l *statusLine) show(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if (text != "" || l.shown != "") && !inForeground(l.term) {
		l.shown = "" // the line has scrolled into other output
		return
	}
	if text != "" {
		width, _, err := term.GetSize(int(l.term.Fd()))
		if err != nil || width <= 0 {
			width = 80
		}
		text = fit(text, width-1) // some terminals wrap if the last column is used
	}
	if text == "" && l.shown == "" {
		return
	}
	_, _ = l.term.WriteString(clearLine + text) // a closed terminal shows nothing
	l.shown = text
}

// fit cuts a text to a number of terminal columns. Every character that may be wide counts as two columns.
func fit(text string, columns int) string {
	text = oneLine(text)
	used, cut := 0, 0 // cut is the end of the text if it must be cut
	for i, r := range text {
		size := 1
		if r >= 0x1100 && !unicode.Is(unicode.Mn, r) {
			size = 2
		}
		if used+size > columns {
			if columns < 4 {
				return strings.Repeat(".", max(columns, 0))
			}
			return text[:cut] + "..."
		}
		if used += size; used <= columns-3 {
			cut = i + len(string(r))
		}
	}
	return text
}
