package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// state says in few words how it stands with a name of any kind.
func state(info fabric.Info) string {
	switch {
	case info.Kind == fabric.KindSemaphore:
		return fmt.Sprintf("%d of %d permits taken", info.Taken, info.Size)
	case info.Kind == fabric.KindGate && info.Open:
		return fmt.Sprintf("open, %d of %d inside", info.Arrived, info.Parties)
	case info.Kind == fabric.KindBarrier && info.Acting:
		return fmt.Sprintf("an action runs, %d of %d arrived for the next time", info.Arrived, info.Parties)
	case info.Parties > 0:
		return fmt.Sprintf("%d of %d arrived", info.Arrived, info.Parties)
	case info.Kind == fabric.KindLatch && !info.Open:
		return fmt.Sprintf("%d to go", info.Count)
	case info.Open:
		return "open"
	case info.By != "":
		return "done"
	case slices.ContainsFunc(info.Holders, func(p fabric.Party) bool { return p.Converting != "" }):
		return "held, a conversion waits"
	case len(info.Holders) > 0:
		return "held"
	case len(info.Waiters) > 0:
		return "about to be granted"
	}
	return "free"
}

// short is state in one word, for a column.
func short(info fabric.Info) string {
	switch {
	case info.Kind == fabric.KindSemaphore:
		return fmt.Sprintf("%d/%d", info.Taken, info.Size)
	case info.Open:
		return "open"
	case info.Parties > 0:
		return fmt.Sprintf("%d/%d", info.Arrived, info.Parties)
	case info.Kind == fabric.KindLatch:
		return strconv.Itoa(info.Count)
	case info.By != "":
		return "done"
	case len(info.Holders) > 0:
		return orDash(string(info.Holders[0].Mode))
	}
	return "-"
}

// facts writes what is known beside who holds and who waits, a line for each.
func facts(w io.Writer, info fabric.Info) {
	if info.Size != info.Initial || info.Kind == fabric.KindLatch {
		fmt.Fprintf(w, "made with:\t%d\n", info.Initial)
	}
	if info.Parties > 0 {
		fmt.Fprintf(w, "generation:\t%d\n", info.Generation)
	}
	for _, e := range info.Ended {
		how := "passed"
		if e.Broken {
			how = "broken: " + e.Why + " by " + orDash(e.Who)
		}
		fmt.Fprintf(w, "generation %d:\t%s, %d arrived\n", e.Generation, how, len(e.IDs))
	}
	if v := info.Bytes(); v != nil {
		fmt.Fprintf(w, "value:\t%s\n", printable(string(v)))
	}
}

func describe(w io.Writer, info fabric.Info, now time.Time) {
	fmt.Fprintf(w, "key:\t%s\nkind:\t%s\nstate:\t%s\nrevision:\t%d\n", printable(info.Key), orDash(info.Kind), state(info), info.Revision)
	facts(w, info)
	if len(info.Holders)+len(info.Waiters)+len(info.Conditions) > 0 {
		fmt.Fprintln(w)
	}
	allParties(w, info, now)
}

func allParties(w io.Writer, info fabric.Info, now time.Time) {
	tables := []partyTable{{"HOLDER", "TOKEN\tSINCE", info.Holders, func(p fabric.Party) uint64 { return p.Token }}}
	queued := func(p fabric.Party) uint64 { return p.Queued }
	tables = append(tables, partyTable{"WAITER", "QUEUED\tWAITED", info.Waiters, queued})
	for _, c := range info.Conditions {
		tables = append(tables, partyTable{"WAITER FOR " + printable(c.Name), "QUEUED\tWAITED", c.Waiters, queued})
	}
	between := ""
	for _, t := range tables {
		if len(t.rows) > 0 {
			fmt.Fprint(w, between)
			t.write(w, info.Kind, now)
			between = "\n"
		}
	}
}

// partyTable lists those who hold, or wait in one queue.
type partyTable struct {
	who, columns string
	rows         []fabric.Party
	number       func(fabric.Party) uint64
}

func (t *partyTable) write(w io.Writer, kind string, now time.Time) {
	what, of := share(kind)
	valued := slices.ContainsFunc(t.rows, func(p fabric.Party) bool { return p.Bytes() != nil })
	fmt.Fprintf(w, "%s\t%s\t%s\tHOST\tPID\tLABEL\tLEASE\tTTL\tOWNER\tMETADATA", t.who, what, t.columns)
	if valued {
		fmt.Fprint(w, "\tVALUE")
	}
	fmt.Fprintln(w)
	for _, p := range t.rows {
		lease, pid := p.Lease.State, "-"
		if lease == "stale" {
			lease = "looks dead, renewed " + age(p.Lease.Renewed, now) + " ago"
		}
		if p.Revoked {
			lease += ",revoked"
		}
		if p.Lease.PID != 0 {
			pid = strconv.Itoa(p.Lease.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%v\t%s\t%s", printable(p.ID), orDash(of(p)), t.number(p), age(p.Since, now),
			orDash(p.Lease.Host), pid, orDash(p.Lease.Label), lease, p.Lease.TTL, printable(p.Owner), metadata(p.Metadata))
		if v := p.Bytes(); valued && v != nil {
			fmt.Fprintf(w, "\t%s", printable(string(v)))
		}
		fmt.Fprintln(w)
	}
}

// share is the column that tells what of the whole a party has or wants.
func share(kind string) (header string, of func(fabric.Party) string) {
	switch kind {
	case fabric.KindSemaphore:
		return "PERMITS", func(p fabric.Party) string {
			if p.Refused {
				return strconv.Itoa(p.Permits) + " (more than there are)"
			}
			return strconv.Itoa(p.Permits)
		}
	case fabric.KindBarrier:
		return "GENERATION", func(p fabric.Party) string { return strconv.FormatUint(p.Generation, 10) }
	case fabric.KindGate:
		return "PLACE", func(p fabric.Party) string {
			if p.Leaving {
				return "leaving"
			}
			return ""
		}
	}
	return "MODE", func(p fabric.Party) string {
		mode := string(p.Mode)
		if p.Converting != "" {
			mode += "->" + string(p.Converting) // held in the one, and waits for the other
		}
		if p.Signalled != "" {
			mode += " after " + printable(p.Signalled)
		}
		return mode
	}
}

func metadata(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, printable(k)+"="+printable(m[k]))
	}
	return orDash(strings.Join(out, " "))
}
