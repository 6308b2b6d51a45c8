package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
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
	err := c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
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

// progressEvery is how long a wait is silent first, and then how often what is shown is brought up to date.
const progressEvery = time.Second

// startProgress shows, from a second on, who is in the way of an acquire by this manager. The function it returns
// ends that and erases the line; nothing is written after it has returned.
func startProgress(ctx context.Context, m *fabric.Manager, key string, line *statusLine) (erase func()) {
	var last atomic.Pointer[fabric.Info]
	started := time.Now()
	text := func() string { return waiting(key, last.Load(), started, time.Now()) }
	return showing(ctx, line, text, func(ctx context.Context) {
		if !pause.For(ctx, progressEvery) {
			return // most waits end here, and nobody had to be asked
		}
		for info, err := range m.Watch(ctx, key) {
			if err != nil {
				return // the acquire tells, if it matters
			}
			last.Store(&info)
			line.show(text())
			if !pause.For(ctx, progressEvery) { // a busy lock is looked at no more often than it is shown
				return
			}
		}
	})
}

// telling shows text, from a second on, where a terminal and nothing else gets what the command says. erase ends that
// and erases the line.
func (c *cli) telling(ctx context.Context, s *streams, text func() string) (erase func()) {
	if c.Output != "text" || !s.status.usable() {
		return func() {}
	}
	return showing(ctx, s.status, text, func(context.Context) {})
}

// since is a text with the time from now on.
func since(format string) func() string {
	started := time.Now()
	return func() string { return fmt.Sprintf(format, age(started, time.Now())) }
}

// showing shows text, brought up to date every second, and calls beside until erase, which waits for it.
func showing(ctx context.Context, line *statusLine, text func() string, beside func(ctx context.Context)) (erase func()) {
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

// waiting is the line. What matters most comes first, because the end may be cut.
func waiting(key string, info *fabric.Info, started, now time.Time) string {
	text := fmt.Sprintf("waiting %s for %s", age(started, now), printable(key))
	if info == nil {
		return text
	}
	if info.Parties > 0 || info.Kind == fabric.KindLatch {
		return text + ", " + state(*info)
	}
	for i, p := range info.Waiters {
		if p.Own {
			text += fmt.Sprintf(", %d of %d in the queue", i+1, len(info.Waiters))
			break
		}
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

// holder names who is behind a hold as well as it is known.
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

// statusLine is a terminal whose last line can be replaced. What is written through it, such as a log, goes before
// that line. On any other file it only writes.
type statusLine struct {
	term *os.File

	mu    sync.Mutex
	shown string
}

// usable reports whether a line can be shown and replaced there. Colours are never used, so NO_COLOR changes nothing.
func (l *statusLine) usable() bool {
	kind := os.Getenv("TERM")
	return term.IsTerminal(int(l.term.Fd())) && kind != "dumb"
}

func (l *statusLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown == "" {
		return l.term.Write(p)
	}
	// One write, so that nothing of others comes in between.
	if _, err := l.term.Write(append([]byte(clearLine), append(p[:len(p):len(p)], l.shown...)...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// clearLine goes to the start of the terminal's line and erases it.
const clearLine = "\r\x1b[K"

// show replaces the line, "" erases it. A text that is too long for the terminal is cut: where it wrapped, it could
// not be erased any more. In the background the terminal is somebody else's, and nothing is shown.
func (l *statusLine) show(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if (text != "" || l.shown != "") && !inForeground(l.term) {
		l.shown = "" // what stands there has scrolled into the other's output
		return
	}
	if text != "" {
		width, _, err := term.GetSize(int(l.term.Fd()))
		if err != nil || width <= 0 {
			width = 80
		}
		text = fit(text, width-1) // some terminals wrap when the last column is used
	}
	if text == "" && l.shown == "" {
		return
	}
	_, _ = l.term.WriteString(clearLine + text) // a terminal that is gone shows nothing
	l.shown = text
}

// fit cuts a text to at most so many columns of a terminal. Anything that may be wide counts as two.
func fit(text string, columns int) string {
	text = oneLine(text)
	used, cut := 0, 0 // cut is where the text ends if it has to be cut
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
