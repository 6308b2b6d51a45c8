package main

import (
	"os"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/term"
)

// statusLine is a terminal whose last line can be replaced. What is written
// through it, such as a log, goes before that line. On any other file it only
// writes.
type statusLine struct {
	term *os.File

	mu    sync.Mutex
	shown string
}

// usable reports whether a line can be shown and replaced there. Colours are never
// used, so NO_COLOR changes nothing.
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

// show replaces the line, "" erases it. A text that is too long for the terminal
// is cut: where it wrapped, it could not be erased any more. In the background
// the terminal is somebody else's, and nothing is shown.
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

// fit cuts a text to at most so many columns of a terminal. Anything that may be wide
// counts as two.
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
