package benchmarks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// results are what was measured, kept as JSON beside the page. A run replaces the rows that it measures.
type results struct {
	Runs []string               `json:"runs"` // where, when and with what
	Rows map[string]measurement `json:"rows"` // by section, part and row
}

// measurement is a measured row. All its cells are of one run.
type measurement struct {
	Run    int                `json:"run"`
	Micros map[string]float64 `json:"microseconds,omitempty"` // by system
	Counts map[string]float64 `json:"counts,omitempty"`       // by column, of a row without times
	Missed map[string]string  `json:"missed,omitempty"`       // why there is none
}

// resultsOf is the file of a page's results.
func resultsOf(page string) string { return strings.TrimSuffix(page, ".md") + ".json" }

// load reads the results of earlier runs, and begins a run, or goes on with the last one.
func loadResults(page string, goOn bool, machine string) (*results, error) {
	r := &results{Rows: map[string]measurement{}}
	text, err := os.ReadFile(resultsOf(page))
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !goOn || len(r.Runs) == 0 {
		r.Runs = append(r.Runs, machine)
	}
	return r, nil
}

// measured reports whether the run at hand has measured a row.
func (r *results) measured(name string) bool {
	have, ok := r.Rows[name]
	return ok && have.Run == len(r.Runs)-1
}

// save writes the results and the page. Runs of which no row is left are forgotten.
func (r *results) save(page string) error {
	kept := &results{Rows: maps.Clone(r.Rows)}
	for run, machine := range r.Runs {
		used := false
		for name, row := range r.Rows {
			if row.Run == run {
				used = true
				row.Run = len(kept.Runs)
				kept.Rows[name] = row
			}
		}
		if used {
			kept.Runs = append(kept.Runs, machine)
		}
	}
	text, err := json.MarshalIndent(kept, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(resultsOf(page), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(page, []byte(kept.page()), 0o644); err != nil {
		return err
	}
	return draw(page)
}

const intro = `# Benchmarks

Written by the command in [benchmarks/README.md](../benchmarks/README.md), which says what is compared. Don't edit it.

Time of one round in microseconds: that of all clients together, divided by all their rounds. Each system has its servers on this
machine, reached over loopback TCP, and takes five turns, one after the other with the rest; a cell is the median. Smaller is better.
Three servers on one machine share its processors and its disk. The rows say nothing of what is promised: only the
systems that write to disk before they acknowledge survive a power failure, redsync depends on clocks, and its waiters,
and those of the semaphore in Redis, ask again and are not served in order.
The section on locks at rest counts: what one process sends that holds its locks, or waits for each, and what that takes of memory, there and in the server.
A waiter of etcd's recipes is told in rounds of 100 ms where its watch begins in the past, as it comes.

![One mutex, synced: handoffs in a second over the number of clients](benchmarks-1.svg)
![One mutex, not synced](benchmarks-2.svg)
`

func (r *results) page() string {
	var out strings.Builder
	out.WriteString(intro)
	for i, machine := range r.Runs {
		fmt.Fprintf(&out, "\nRun %d: %s\n", i+1, machine)
	}
	for _, sec := range sections {
		title := "\n## " + sec.title + "\n"
		for _, p := range sec.parts {
			head := fmt.Sprintf("\n### %s\n\n| | %s | run |\n|%s\n", p.what, strings.Join(p.systems, " | "), strings.Repeat("---|", len(p.systems)+2))
			misses := ""
			for _, row := range p.rows {
				have, ok := r.Rows[name(sec, p, row)]
				if !ok {
					continue
				}
				line := "| " + row.what
				for _, system := range p.systems {
					line += " | " + have.cell(system)
					if why, ok := have.Missed[system]; ok {
						misses += fmt.Sprintf("\nMissed: %s, %s: %s.\n", row.what, system, why)
					}
				}
				fmt.Fprintf(&out, "%s%s%s | %d |\n", title, head, line, have.Run+1)
				title, head = "", ""
			}
			out.WriteString(misses)
		}
	}
	return out.String()
}

func (r measurement) cell(system string) string {
	if n, ok := r.Counts[system]; ok {
		return strconv.FormatFloat(n, 'f', -1, 64)
	}
	us, ok := r.Micros[system]
	switch {
	case r.Missed[system] != "":
		return "missed"
	case !ok:
		return ""
	case us < 100:
		return fmt.Sprintf("%.1f", us)
	}
	return fmt.Sprintf("%.0f", us)
}

// name is that of a row among the results.
func name(sec section, p part, r row) string { return sec.title + "/" + p.what + "/" + r.what }

// Rows of several runs stand together, each with the run that it is of; one that lost all its rows goes.
func TestResults(t *testing.T) {
	page := t.TempDir() + "/page.md"
	sec := sections[0]
	p := sec.parts[1]
	first, other := name(sec, p, p.rows[0]), name(sec, p, p.rows[1])
	measure := func(goOn bool, machine string, rows ...string) *results {
		t.Helper()
		r, err := loadResults(page, goOn, machine)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if r.measured(row) {
				t.Errorf("%s: %s is measured already", machine, row)
			}
			r.Rows[row] = measurement{Run: len(r.Runs) - 1, Micros: map[string]float64{"direct": 12345.6, "etcd": 7}, Missed: map[string]string{"Redis": "gone"}}
		}
		if err := r.save(page); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if line := "| " + row[strings.LastIndexByte(row, '/')+1:]; !strings.Contains(string(text), line) {
				t.Errorf("%s: no line %q in %s", machine, line, text)
			}
		}
		r, err = loadResults(page, true, "none")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	measure(false, "one", first)
	measure(true, "not begun", other)
	r := measure(false, "two", first)
	if !reflect.DeepEqual(r.Runs, []string{"one", "two"}) || r.Rows[first].Run != 1 || r.Rows[other].Run != 0 || !r.measured(first) || r.measured(other) {
		t.Errorf("%+v", r)
	}
	if r = measure(false, "three", first); !reflect.DeepEqual(r.Runs, []string{"one", "three"}) || r.Rows[first].Run != 1 {
		t.Errorf("%+v", r)
	}
	text, _ := os.ReadFile(page)
	if want := "| " + p.rows[0].what + " |  | 12346 |  |  |  |  | 7.0 | missed |  |  |  |  | 2 |\n"; !strings.Contains(string(text), want) || !strings.Contains(string(text), "Missed: "+p.rows[0].what+", Redis: gone.") {
		t.Errorf("no %q in\n%s", want, text)
	}
	if !slices.Contains(strings.Split(string(text), "\n"), "Run 1: one") {
		t.Errorf("no run in %s", text)
	}
}

// micros is how a time is kept.
func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
