package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

type lsCmd struct {
	Prefix string `arg:"" optional:"" complete:"lock" help:"Only names that start so."`
	Long   bool   `help:"A line for everybody who holds or waits, with host, process and metadata."`
	Watch  bool   `help:"Go on with the names that change, until interrupted."`
}

// Help tells what --watch writes.
func (*lsCmd) Help() string {
	return "With --watch the names that have changed are listed again every second, with the time; those that nobody uses any more with a dash as their kind. " +
		"With --output json each is one object on one line. Changes within a second are shown together; the last one is never left out. SIGINT and SIGTERM end it with exit code 0."
}

// Run lists the locks in use. The JSON is an array of fabric.Info, [] when there
// are none; without --long the leases in it carry id and TTL only, inspect looks them up.
func (l *lsCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if l.Watch {
		return l.watch(ctx, c, s)
	}
	infos := []fabric.Info{}
	err := c.with(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		list, err := m.List(ctx, l.Prefix)
		infos = append(infos, list...)
		if err != nil || c.Output != "text" && !l.Long {
			return err
		}
		return m.Identify(ctx, infos)
	})
	if err != nil {
		return err
	}
	return s.print(c.Output, infos, func(w io.Writer) {
		fmt.Fprintln(w, l.header())
		l.rows(w, "", infos, time.Now())
	})
}

func (l *lsCmd) header() string {
	if l.Long {
		return "KEY\tKIND\tSTATE\tROLE\tMODE\tTOKEN\tAGE\tHOST\tPID\tLABEL\tLEASE\tOWNER\tMETADATA"
	}
	return "KEY\tKIND\tSTATE\tHOLDERS\tWAITERS\tTOKEN\tAGE\tOWNER"
}

func (l *lsCmd) rows(w io.Writer, before string, infos []fabric.Info, now time.Time) {
	for _, i := range infos {
		name := fmt.Sprintf("%s%s\t%s\t%s", before, printable(i.Key), orDash(i.Kind), short(i))
		if !l.Long {
			token, held, owner := "-", "-", "-"
			if len(i.Holders) > 0 {
				h := i.Holders[0]
				token, held, owner = strconv.FormatUint(h.Token, 10), age(h.Since, now), holder(h)
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", name, len(i.Holders), len(i.Waiters), token, held, owner)
			continue
		}
		if len(i.Holders)+len(i.Waiters)+len(i.Conditions) == 0 {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t-\t-\t-\n", name)
		}
		_, of := share(i.Kind)
		row := func(role string, p fabric.Party) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, role, orDash(of(p)), numberOrDash(p.Token), age(p.Since, now),
				orDash(p.Lease.Host), numberOrDash(uint64(p.Lease.PID)), orDash(p.Lease.Label), p.Lease.State, printable(p.Owner), metadata(p.Metadata))
		}
		for _, p := range i.Holders {
			row("holds", p)
		}
		for _, p := range i.Waiters {
			row("waits", p)
		}
		for _, c := range i.Conditions {
			for _, p := range c.Waiters {
				row("waits for "+printable(c.Name), p)
			}
		}
	}
}

func numberOrDash(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

// watch lists what changes until it is interrupted.
func (l *lsCmd) watch(ctx context.Context, c *cli, s *streams) error {
	known := map[string]fabric.Info{}
	begun := false
	return c.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		return c.survey(ctx, s, m, l.Prefix, func(now time.Time, infos []fabric.Info) error {
			changed := changes(known, infos)
			if err := m.Identify(ctx, changed); err != nil {
				return err
			}
			if c.Output == "json" {
				for _, i := range changed {
					if err := s.encode(watched{now, i}, ""); err != nil {
						return err
					}
				}
				return nil
			}
			var b bytes.Buffer
			w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
			if !begun {
				fmt.Fprintln(w, "TIME\t"+l.header())
				begun = true
			}
			l.rows(w, now.Format(time.TimeOnly)+"\t", changed, now)
			_ = w.Flush()
			_, err := s.out.Write(b.Bytes())
			return writeError(err)
		})
	})
}

// changes returns the names whose record is another one than is known, and those that
// are not in use any more, without a kind; and knows them then.
func changes(known map[string]fabric.Info, infos []fabric.Info) (changed []fabric.Info) {
	here := map[string]bool{}
	for _, i := range infos {
		here[i.Key] = true
		if known[i.Key].Revision != i.Revision {
			known[i.Key] = i
			changed = append(changed, i)
		}
	}
	for key := range known {
		if !here[key] {
			delete(known, key)
			changed = append(changed, fabric.Info{Key: key, Holders: []fabric.Party{}, Waiters: []fabric.Party{}})
		}
	}
	slices.SortFunc(changed, func(a, b fabric.Info) int { return cmp.Compare(a.Key, b.Key) })
	return changed
}

// surveyEvery is how often a list that is watched is made.
const surveyEvery = time.Second

// survey lists the names in use again and again, until ctx ends or fn fails. A server
// that does not answer is waited for.
func (c *cli) survey(ctx context.Context, s *streams, m *fabric.Manager, prefix string, fn func(now time.Time, infos []fabric.Info) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, c.Timeout)
		infos, err := m.List(limited, prefix)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fabric.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
			s.log.Warn("the list can't be made, it is tried again", "error", err)
		case err != nil:
			return err
		default:
			if err := fn(time.Now(), infos); err != nil {
				return err
			}
		}
		if !pause.For(ctx, surveyEvery) {
			return ctx.Err()
		}
	}
}
