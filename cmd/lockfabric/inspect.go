package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type inspectCmd struct {
	Key   string `arg:"" complete:"lock" help:"Name of the lock."`
	Watch bool   `help:"Show it again after each change, until interrupted."`
}

// Help tells what --watch writes.
func (*inspectCmd) Help() string {
	return "With --watch each state is a block that begins with the time, or with --output json one object on one line. " +
		"Changes that come faster than they can be written are shown together; the last one is never left out. SIGINT and SIGTERM end it with exit code 0."
}

// Run shows one lock. The JSON is a fabric.Info; a lock that nobody uses has no
// holders and no waiters, and is no error.
func (i *inspectCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(i.Key); err != nil {
		return err
	}
	if i.Watch {
		return i.watch(ctx, c, s)
	}
	var info fabric.Info
	err := c.with(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) {
		info, err = m.Inspect(ctx, i.Key)
		return err
	})
	if err != nil {
		return err
	}
	return s.print(c.Output, info, func(w io.Writer) { describe(w, info, time.Now()) })
}

// watch shows the lock until it is interrupted, which is the only way to end it
// and therefore a success.
func (i *inspectCmd) watch(ctx context.Context, c *cli, s *streams) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	m, err := c.connect(ctx, s)
	if ctx.Err() != nil {
		err = nil
	}
	if m == nil {
		return err
	}
	defer func() { _ = m.Close() }()
	guarded, leave := c.welcome.guard(ctx)
	defer leave()
	for info, err := range m.Watch(guarded, i.Key) {
		if ctx.Err() != nil {
			return nil
		}
		err = c.welcome.why(guarded, err)
		if err == nil {
			err = s.printWatched(c.Output, watched{time.Now(), info})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// watched is the JSON of one line of inspect --watch.
type watched struct {
	Time time.Time `json:"time"` // when it was seen, by the clock of this host
	fabric.Info
}

// printWatched writes each state at once, so that a reader gets whole blocks.
func (s *streams) printWatched(format string, v watched) error {
	var b bytes.Buffer
	if format == "json" {
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return writeError(err)
		}
	} else {
		fmt.Fprintf(&b, "%s %s %s, revision %d\n", v.Time.Format(time.RFC3339), printable(v.Key), state(v.Info), v.Revision)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		allParties(w, v.Info, v.Time)
		_ = w.Flush()
		fmt.Fprintln(&b)
	}
	_, err := s.out.Write(b.Bytes())
	return writeError(err)
}

func state(info fabric.Info) string {
	switch {
	case slices.ContainsFunc(info.Holders, func(p fabric.Party) bool { return p.Converting != "" }):
		return "held, a conversion waits"
	case len(info.Holders) > 0:
		return "held"
	case len(info.Waiters) > 0:
		return "about to be granted"
	}
	return "free"
}

func describe(w io.Writer, info fabric.Info, now time.Time) {
	fmt.Fprintf(w, "key:\t%s\nkind:\t%s\nstate:\t%s\nrevision:\t%d\n", printable(info.Key), orDash(info.Kind), state(info), info.Revision)
	if len(info.Holders)+len(info.Waiters) > 0 {
		fmt.Fprintln(w)
	}
	allParties(w, info, now)
}

func allParties(w io.Writer, info fabric.Info, now time.Time) {
	parties(w, "HOLDER\tMODE\tTOKEN\tSINCE", info.Holders, now, func(p fabric.Party) uint64 { return p.Token })
	if len(info.Holders) > 0 && len(info.Waiters) > 0 {
		fmt.Fprintln(w)
	}
	parties(w, "WAITER\tMODE\tQUEUED\tWAITED", info.Waiters, now, func(p fabric.Party) uint64 { return p.Queued })
}

func parties(w io.Writer, header string, list []fabric.Party, now time.Time, value func(fabric.Party) uint64) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "%s\tHOST\tPID\tLABEL\tLEASE\tTTL\tOWNER\tMETADATA\n", header)
	for _, p := range list {
		mode, lease, pid := string(p.Mode), p.Lease.State, "-"
		if p.Converting != "" {
			mode += "->" + string(p.Converting) // held in the one, and waits for the other
		}
		if lease == "stale" {
			lease = "looks dead, renewed " + age(p.Lease.Renewed, now) + " ago"
		}
		if p.Revoked {
			lease += ",revoked"
		}
		if p.Lease.PID != 0 {
			pid = strconv.Itoa(p.Lease.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%v\t%s\t%s\n", printable(p.ID), mode, value(p), age(p.Since, now),
			orDash(p.Lease.Host), pid, orDash(p.Lease.Label), lease, p.Lease.TTL, printable(p.Owner), metadata(p.Metadata))
	}
}

func metadata(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, printable(k)+"="+printable(m[k]))
	}
	return orDash(strings.Join(out, " "))
}
