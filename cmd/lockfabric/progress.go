package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

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

// startChecks shows, from a second on, what doctor looks at, as it is told by at.
// erase ends that and erases the line.
func startChecks(ctx context.Context, line *statusLine) (at func(what string), erase func()) {
	var now atomic.Value
	started := time.Now()
	return func(what string) { now.Store(what) }, showing(ctx, line, func() string {
		return fmt.Sprintf("doctor %s: %v", age(started, time.Now()), now.Load())
	}, func(context.Context) {})
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
	name := ""
	if p.Owner != p.ID || p.Lease.Host == "" {
		name = printable(p.Owner)
	}
	if p.Lease.Label != "" {
		name += " " + printable(p.Lease.Label)
	}
	if p.Lease.Host != "" {
		if name != "" {
			name += " on"
		}
		name += " " + printable(p.Lease.Host)
	}
	if p.Lease.PID != 0 {
		name += " pid " + strconv.Itoa(p.Lease.PID)
	}
	switch p.Lease.State {
	case "dead", "missing":
		name += " (" + p.Lease.State + ")"
	case "stale":
		name += " (looks dead)"
	}
	if name[0] == ' ' {
		name = name[1:]
	}
	return name
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
