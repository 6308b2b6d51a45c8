package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/lockfabric/lockfabric/fabric"
)

type topCmd struct {
	Prefix string        `arg:"" optional:"" complete:"name" help:"Only names that start with this."`
	Sort   string        `enum:"waiters,holders,rate,age,key" default:"waiters" help:"Order of the rows: waiters, holders, rate, age or key."`
	Every  time.Duration `default:"1s" from:"10ms" give:"10ms or more" help:"Interval between updates, in which changes are counted."`
	Once   bool          `help:"Count once for the time of --every, print the table and end. It needs no terminal."`
}

// The columns by which top can sort, in the order of the key s.
var topOrders = []string{"waiters", "holders", "rate", "age", "key"}

// Terminal sequences: an alternate screen without cursor and line wrapping, and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	topLeft     = "\x1b[H"
	clearRight  = "\x1b[K"
	clearBelow  = "\x1b[J"
)

func (c *topCmd) Run(ctx context.Context, cl *cli, s *streams) error {
	screen, _ := s.out.(*os.File)
	switch {
	case cl.Output == "json":
		return usageError("top is for people: see ls, with --watch and --output json")
	case !c.Once && (screen == nil || !term.IsTerminal(int(screen.Fd()))):
		return usageError("top: stdout is no terminal: give --once")
	}
	return cl.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		b := &board{cmd: c, names: inUse{}, counts: map[string]int{}, rates: map[string]float64{}, leases: map[string]fabric.Lease{}}
		changes, ended := make(chan []fabric.Info), make(chan error, 1)
		wg.Go(func() {
			for changed, err := range m.WatchAll(ctx, c.Prefix) {
				if err != nil {
					ended <- err
					return
				}
				select {
				case changes <- changed:
				case <-ctx.Done():
				}
			}
		})
		if c.Once {
			return b.once(ctx, m, s, changes, ended)
		}
		return b.live(ctx, m, screen, changes, ended)
	})
}

// board is the state of top.
type board struct {
	cmd    *topCmd
	begun  bool
	names  inUse
	newest uint64 // newest revision that was reported
	last   uint64 // newest when counting started
	counts map[string]int
	since  time.Time // when counting started
	rates  map[string]float64
	writes float64 // per second
	leases map[string]fabric.Lease
}

func (b *board) take(changed []fabric.Info) {
	b.names.take(changed)
	for _, i := range changed {
		b.newest = max(b.newest, i.Revision)
		b.counts[i.Key]++
	}
	if !b.begun { // the first states are not changes
		b.begun, b.last, b.since = true, b.newest, time.Now()
		clear(b.counts)
	}
}

// count computes rates from the counters, and resets the counters.
func (b *board) count(now time.Time) {
	if !b.begun {
		return
	}
	seconds := max(now.Sub(b.since), time.Millisecond).Seconds()
	clear(b.rates)
	for key, n := range b.counts {
		b.rates[key] = float64(n) / seconds
	}
	b.writes = float64(b.newest-b.last) / seconds
	b.last, b.since = b.newest, now
	clear(b.counts)
}

// sorted returns the names in use, ordered by a column.
func (b *board) sorted() []fabric.Info {
	all := slices.SortedFunc(maps.Values(b.names), byKey)
	slices.SortStableFunc(all, func(x, y fabric.Info) int {
		switch b.cmd.Sort {
		case "waiters":
			return cmp.Compare(len(y.Waiters), len(x.Waiters))
		case "holders":
			return cmp.Compare(len(y.Holders), len(x.Holders))
		case "rate":
			return cmp.Compare(b.rates[y.Key], b.rates[x.Key])
		case "age":
			return heldSince(x).Compare(heldSince(y))
		}
		return 0
	})
	return all
}

// heldSince is far in the future if nobody holds.
func heldSince(i fabric.Info) time.Time {
	if len(i.Holders) == 0 {
		return time.Now().Add(time.Hour)
	}
	return i.Holders[0].Since
}

// identify looks up the processes of the first holders, once for each.
func (b *board) identify(ctx context.Context, m *fabric.Manager, rows []fabric.Info) {
	var unknown []fabric.Info
	for _, i := range rows {
		if len(i.Holders) > 0 && b.leases[i.Holders[0].Lease.ID].Host == "" {
			unknown = append(unknown, fabric.Info{Holders: slices.Clone(i.Holders[:1])})
		}
	}
	_ = m.Identify(ctx, unknown) // a process that can't be looked up now is shown without details
	for _, i := range unknown {
		b.leases[i.Holders[0].Lease.ID] = i.Holders[0].Lease
	}
}

// draw returns the lines, at most limit of them; 0 = no limit.
func (b *board) draw(ctx context.Context, m *fabric.Manager, now time.Time, limit int) [][]byte {
	all := b.sorted()
	holders, waiters := 0, 0
	for _, i := range all {
		holders, waiters = holders+len(i.Holders), waiters+len(i.Waiters)
	}
	rows := all
	if limit > 0 {
		rows = rows[:min(len(rows), max(limit-2, 0))]
	}
	b.identify(ctx, m, rows)
	text := columns(func(w io.Writer) {
		fmt.Fprintln(w, "KEY\tKIND\tSTATE\tHOLDERS\tWAITERS\tRATE\tAGE\tWAITED\tOWNER")
		for _, i := range rows {
			held, waited, owner := "-", "-", "-"
			if len(i.Holders) > 0 {
				h := i.Holders[0]
				h.Lease = b.leases[h.Lease.ID]
				held, owner = age(h.Since, now), holder(h)
			}
			if len(i.Waiters) > 0 {
				waited = age(i.Waiters[0].Since, now)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%.1f\t%s\t%s\t%s\n", printable(i.Key), orDash(i.Kind), short(i), len(i.Holders), len(i.Waiters), b.rates[i.Key], held, waited, owner)
		}
	})
	title := fmt.Sprintf("%s  %d in use, %d hold, %d wait, %.1f writes/s, by %s", now.Format(time.TimeOnly), len(all), holders, waiters, b.writes, b.cmd.Sort)
	if !b.begun {
		title = now.Format(time.TimeOnly) + "  waiting for the server"
	}
	lines := append([][]byte{[]byte(title)}, bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))...)
	if limit > 0 {
		lines = lines[:min(len(lines), limit)]
	}
	return lines
}

// once counts for a while and prints the table.
func (b *board) once(ctx context.Context, m *fabric.Manager, s *streams, changes <-chan []fabric.Info, ended <-chan error) error {
	var over <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case changed := <-changes:
			if b.take(changed); over == nil {
				over = time.After(b.cmd.Every)
			}
		case now := <-over:
			b.count(now)
			_, err := s.out.Write(append(bytes.Join(b.draw(ctx, m, now, 0), []byte("\n")), '\n'))
			return writeError(err)
		}
	}
}

// live draws on a terminal until a key or ctx ends it.
func (b *board) live(ctx context.Context, m *fabric.Manager, screen *os.File, changes <-chan []fabric.Info, ended <-chan error) error {
	keys := make(chan byte)
	if in := int(os.Stdin.Fd()); term.IsTerminal(in) {
		before, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("top: %w", err)
		}
		defer func() { _ = term.Restore(in, before) }()
		go func() { // a read can't be cancelled; the process ends
			for b := make([]byte, 1); ; keys <- b[0] {
				if _, err := os.Stdin.Read(b); err != nil {
					return
				}
			}
		}()
	}
	if _, err := screen.WriteString(enterScreen); err != nil {
		return writeError(err)
	}
	defer func() { _, _ = screen.WriteString(leaveScreen) }()
	tick := time.NewTicker(b.cmd.Every)
	defer tick.Stop()
	for shown := false; ; {
		if !shown { // fill the terminal, in its present size, with one write
			_, height, err := term.GetSize(int(screen.Fd()))
			if err != nil {
				return fmt.Errorf("top: %w", err)
			}
			lines := bytes.Join(b.draw(ctx, m, time.Now(), max(height, 1)), []byte(clearRight+"\r\n"))
			if _, err := fmt.Fprintf(screen, "%s%s%s", topLeft, lines, clearRight+clearBelow); err != nil {
				return writeError(err)
			}
		}
		shown = false
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case changed := <-changes:
			shown = b.begun // later changes are drawn together
			b.take(changed)
		case now := <-tick.C:
			b.count(now)
		case key := <-keys:
			switch key {
			case 'q', 'Q', 3: // ^C
				return nil
			case 's':
				b.cmd.Sort = topOrders[(slices.Index(topOrders, b.cmd.Sort)+1)%len(topOrders)]
			}
		}
	}
}
