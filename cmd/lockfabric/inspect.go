package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type inspectCmd struct {
	Key string `arg:"" help:"Name of the lock."`
}

// Run shows one lock. The JSON is a fabric.Info; a lock that nobody uses has no
// holders and no waiters, and is no error.
func (i *inspectCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(i.Key); err != nil {
		return err
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

func describe(w io.Writer, info fabric.Info, now time.Time) {
	state := "free"
	switch {
	case len(info.Holders) > 0:
		state = "held"
	case len(info.Waiters) > 0:
		state = "about to be granted"
	}
	fmt.Fprintf(w, "key:\t%s\nkind:\t%s\nstate:\t%s\nrevision:\t%d\n", printable(info.Key), orDash(info.Kind), state, info.Revision)
	parties(w, "HOLDER", "TOKEN", info.Holders, now, func(p fabric.Party) uint64 { return p.Token })
	parties(w, "WAITER", "QUEUED", info.Waiters, now, func(p fabric.Party) uint64 { return p.Queued })
}

func parties(w io.Writer, who, number string, list []fabric.Party, now time.Time, value func(fabric.Party) uint64) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\tMODE\t%s\tSINCE\tHOST\tPID\tLABEL\tLEASE\tTTL\tOWNER\tMETADATA\n", who, number)
	for _, p := range list {
		lease, pid := p.Lease.State, "-"
		if p.Revoked {
			lease += ",revoked"
		}
		if p.Lease.PID != 0 {
			pid = strconv.Itoa(p.Lease.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%v\t%s\t%s\n", printable(p.ID), p.Mode, value(p), age(p.Since, now),
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
