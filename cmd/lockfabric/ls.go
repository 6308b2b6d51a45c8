package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type lsCmd struct {
	Prefix string `arg:"" optional:"" complete:"lock" help:"Only names that start so."`
	Long   bool   `help:"A line for everybody who holds or waits, with host, process and metadata."`
	Watch  bool   `help:"Go on with the names that change, until interrupted."`
}

func (*lsCmd) Help() string {
	return "With --watch the names that have changed are listed again, with the time; those that nobody uses any more with a dash as their kind. " +
		"With --output json each is one object on one line. Changes that come together are shown as one; the last one is never left out. SIGINT and SIGTERM end it with exit code 0."
}

// Run lists the locks in use. The JSON is an array of fabric.Info, [] when there
// are none; without --long the leases in it carry id and TTL only, inspect looks them up.
func (l *lsCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if l.Watch {
		return l.watch(ctx, c, s)
	}
	return show(ctx, c, s, func(ctx context.Context, m *fabric.Manager) ([]fabric.Info, error) {
		list, err := m.List(ctx, l.Prefix)
		infos := append([]fabric.Info{}, list...)
		if err == nil && (c.Output == "text" || l.Long) {
			err = m.Identify(ctx, infos)
		}
		return infos, err
	}, func(w io.Writer, infos []fabric.Info) {
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

func (l *lsCmd) watch(ctx context.Context, c *cli, s *streams) error {
	header := "TIME\t" + l.header() + "\n"
	return c.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		for changed, err := range m.WatchAll(ctx, l.Prefix) {
			if err != nil {
				return err
			}
			slices.SortFunc(changed, byKey)
			_ = m.Identify(ctx, changed) // who can't be looked up now is shown without
			now := time.Now()
			if c.Output == "json" {
				for _, i := range changed {
					if err := s.encode(watched{now, i}, ""); err != nil {
						return err
					}
				}
				continue
			}
			err = s.print(c.Output, nil, func(w io.Writer) {
				fmt.Fprint(w, header)
				l.rows(w, now.Format(time.TimeOnly)+"\t", changed, now)
			})
			if err != nil {
				return err
			}
			header = ""
		}
		return nil
	})
}

func byKey(a, b fabric.Info) int { return cmp.Compare(a.Key, b.Key) }

// inUse are the names in use, as WatchAll has told of them.
type inUse map[string]fabric.Info

func (n inUse) take(changed []fabric.Info) {
	for _, i := range changed {
		if i.Kind == "" {
			delete(n, i.Key)
		} else {
			n[i.Key] = i
		}
	}
}
