package benchmarks

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var plots = flag.String("plots", "", "page whose plots are drawn anew, without measuring")

const page = "../docs/benchmarks.md"

// A graph is the rows "one mutex, n clients" of one table.
type graph struct {
	title   string
	clients []int
	systems []string
	rates   [][]float64 // handoffs in a second of each system, for each number of clients; 0 = not measured
}

// graphs reads them from a page that TestTable has written.
func graphs(text string) (list []graph) {
	var title string
	var header []string
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		var n int
		switch {
		case strings.HasPrefix(line, "## "):
			title = strings.TrimSpace(line[3:])
		case strings.HasPrefix(line, "| |"):
			header = slices.DeleteFunc(cells[1:], func(c string) bool { return c == "run" })
		case len(header) > 0 && len(cells) > len(header):
			if _, err := fmt.Sscanf(cells[0], "one mutex, %d clients", &n); err != nil {
				continue
			}
			if len(list) == 0 || list[len(list)-1].title != title {
				list = append(list, graph{title: title, systems: header, rates: make([][]float64, len(header))})
			}
			g := &list[len(list)-1]
			g.clients = append(g.clients, n)
			for i, cell := range cells[1 : len(header)+1] {
				rate := 0.0
				if us, err := strconv.ParseFloat(cell, 64); err == nil {
					rate = 1e6 / us
				}
				g.rates[i] = append(g.rates[i], rate)
			}
		}
	}
	return slices.DeleteFunc(list, func(g graph) bool { return len(g.clients) < 3 })
}

// Sizes of a drawing, in pixels.
const (
	width, height             = 760, 420
	left, right, above, below = 70, 150, 46, 48
)

var colours = []string{"#888888", "#1b6ac9", "#3aa0e8", "#0b3d91", "#7b3fb5", "#16a085", "#d35400", "#c0392b", "#b8860b"}

// svg draws the handoffs in a second over the number of clients, both on logarithmic axes.
func (g *graph) svg() string {
	low, high := math.Inf(1), 0.0
	for _, rates := range g.rates {
		for _, r := range rates {
			if r > 0 {
				low, high = min(low, r), max(high, r)
			}
		}
	}
	low, high = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	first, last := math.Log2(float64(g.clients[0])), math.Log2(float64(slices.Max(g.clients)))
	x := func(n int) float64 {
		return left + (math.Log2(float64(n))-first)/max(last-first, 1)*(width-left-right)
	}
	y := func(rate float64) float64 {
		return above + math.Log10(high/rate)/max(math.Log10(high/low), 1)*(height-above-below)
	}
	var out strings.Builder
	text := func(x, y float64, anchor, text string) {
		fmt.Fprintf(&out, `<text x="%.0f" y="%.0f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, text)
	}
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#222222">`+"\n", width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	text(left, 24, "start", "Handoffs of one mutex in a second: "+g.title)
	for rate := low; rate <= high; rate *= 10 {
		fmt.Fprintf(&out, `<path d="M%d %.1fH%d" stroke="#dddddd"/>`+"\n", left, y(rate), width-right)
		text(left-8, y(rate)+4, "end", fmt.Sprintf("%.0f", rate))
	}
	for _, n := range g.clients {
		text(x(n), height-below+20, "middle", strconv.Itoa(n))
	}
	text((left+width-right)/2, height-8, "middle", "clients")
	lowest := 0.0 // of the names so far
	order := make([]int, len(g.systems))
	for i := range order {
		order[i] = i
	}
	end := func(i int) float64 { // where its line ends
		for k := len(g.clients) - 1; k >= 0; k-- {
			if r := g.rates[i][k]; r > 0 {
				return y(r)
			}
		}
		return math.Inf(1)
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(math.Copysign(1, end(a)-end(b))) })
	for _, i := range order {
		var points []string
		for k, r := range g.rates[i] {
			if r > 0 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(g.clients[k]), y(r)))
			}
		}
		if points == nil {
			continue
		}
		colour := colours[i%len(colours)]
		fmt.Fprintf(&out, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		lowest = max(lowest+15, end(i)+4)
		fmt.Fprintf(&out, `<g fill="%s">`, colour)
		text(width-right+10, lowest, "start", g.systems[i])
		out.WriteString("</g>\n")
	}
	out.WriteString("</svg>\n")
	return out.String()
}

// file is where the n-th graph of a page is drawn.
func file(page string, n int) string {
	return strings.TrimSuffix(page, ".md") + "-" + strconv.Itoa(n+1) + ".svg"
}

// draw writes the plots of a page.
func draw(page string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	for i, g := range graphs(string(text)) {
		if err := os.WriteFile(file(page, i), []byte(g.svg()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The plots show what the page says.
func TestPlots(t *testing.T) {
	if *plots != "" {
		if err := draw(*plots); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	list := graphs(string(text))
	if len(list) != 2 {
		t.Fatalf("%d tables of many clients", len(list))
	}
	for i, g := range list {
		drawn, err := os.ReadFile(file(page, i))
		if err != nil || string(drawn) != g.svg() {
			t.Errorf("%s is not of this page, %v; draw it with -plots %s", filepath.Base(file(page, i)), err, page)
		}
	}
}

func TestGraphs(t *testing.T) {
	list := graphs(`
## Synced
| | floor | ours | theirs | run |
|---|---|---|---|---|
| another row | 1 | 2 | 3 | 1 |
| one mutex, 2 clients |  | 1000 | 50.0 | 1 |
| one mutex, 8 clients |  | missed |  | 1 |
| one mutex, 64 clients |  | 2000 |  | 1 |
## Three servers
| | floor | ours | theirs | run |
|---|---|---|---|---|
| one mutex, 2 clients |  | 1000 | 50.0 | 1 |
`)
	if len(list) != 1 {
		t.Fatal(list)
	}
	g := list[0]
	if fmt.Sprint(g) != "{Synced [2 8 64] [floor ours theirs] [[0 0 0] [1000 0 500] [20000 0 0]]}" {
		t.Error(g)
	}
	if svg := g.svg(); strings.Count(svg, "<polyline") != 2 || strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Error(svg)
	}
}
