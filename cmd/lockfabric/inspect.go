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
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

type inspectCmd struct {
	Key   string `arg:"" complete:"name" help:"Name of the lock."`
	Watch bool   `help:"Show it again after each change, until interrupted."`
}

// Run shows one lock. The JSON is a fabric.Info. A lock that nobody uses is not an error.
func (i *inspectCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := checkName(i.Key); err != nil {
		return err
	}
	if !i.Watch {
		return show(ctx, c, s, func(ctx context.Context, m *fabric.Manager) (is inspected, err error) {
			if is.Info, err = m.Inspect(ctx, i.Key); err == nil {
				is.Coalescer = coalescerOf(ctx, m, i.Key)
			}
			return is, err
		}, func(w io.Writer, is inspected) {
			fmt.Fprintf(w, "key:\t%s\nkind:\t%s\nstate:\t%s\nrevision:\t%d\n", printable(is.Key), orDash(is.Kind), state(is.Info), is.Revision)
			facts(w, is)
			if len(is.Holders)+len(is.Waiters)+len(is.Conditions) > 0 {
				fmt.Fprintln(w)
			}
			allParties(w, is.Info, time.Now())
		})
	}
	return follow(ctx, c, s, (*fabric.Manager).Watch, i.Key, func(ctx context.Context, m *fabric.Manager, info fabric.Info) error {
		now, is := time.Now(), inspected{info, coalescerOf(ctx, m, i.Key)}
		return s.again(c.Output, watched{now, is}, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s %s, revision %d\n", now.Format(time.RFC3339), printable(info.Key), state(info), info.Revision)
			facts(w, is)
			allParties(w, info, now)
			fmt.Fprintln(w)
		})
	})
}

// inspected is the JSON of inspect.
type inspected struct {
	fabric.Info
	Coalescer shardOwner `json:"coalescer,omitzero"`
}

// shardOwner is the coalescer of a name's shard.
type shardOwner struct {
	Shard int    `json:"shard"`
	Rank  int    `json:"rank"`
	Term  uint64 `json:"term,string"`
	Host  string `json:"host"`
	PID   int    `json:"pid"`
}

// coalescerOf returns the coalescer of the name's shard, or the zero value if there is none or it can't be read.
func coalescerOf(ctx context.Context, m *fabric.Manager, name string) (c shardOwner) {
	key, _ := kv.EncodeName(name)
	shard := kv.Shard(key, m.Shards())
	info, err := m.CoalescerOf(ctx, shard)
	if err != nil || len(info.Holders) == 0 {
		return c
	}
	owner := &info.Holders[0]
	rank, _ := strconv.Atoi(owner.Metadata["rank"])
	return shardOwner{Shard: shard, Rank: rank, Term: owner.Token, Host: owner.Lease.Host, PID: owner.Lease.PID}
}

// watched is the JSON of one line of inspect --watch, and of ls --watch, which names no coalescer.
type watched struct {
	Time time.Time `json:"time"` // when it was seen, by the clock of this host
	inspected
}

// state describes the state of a name of any kind in a few words.
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

// facts writes the other known facts, one on each line.
func facts(w io.Writer, info inspected) {
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
	if info.Retention > 0 {
		fmt.Fprintf(w, "stays for:\t%v\n", info.Retention)
	}
	if v := info.Bytes(); v != nil {
		fmt.Fprintf(w, "value:\t%s\n", printable(string(v)))
	}
	if c := info.Coalescer; c.Term > 0 {
		fmt.Fprintf(w, "coalescer:\t%s pid %d, of rank %d\n", orDash(c.Host), c.PID, c.Rank)
	}
}

// allParties writes a table of the holders, and one of the waiters of each queue.
func allParties(w io.Writer, info fabric.Info, now time.Time) {
	what, of := share(info.Kind)
	between := ""
	table := func(who, columns string, parties []fabric.Party, number func(fabric.Party) uint64) {
		if len(parties) == 0 {
			return
		}
		valued := slices.ContainsFunc(parties, func(p fabric.Party) bool { return p.Bytes() != nil })
		fmt.Fprintf(w, "%s%s\t%s\t%s\tHOST\tPID\tLABEL\tLEASE\tTTL\tOWNER\tMETADATA", between, who, what, columns)
		between = "\n"
		if valued {
			fmt.Fprint(w, "\tVALUE")
		}
		fmt.Fprintln(w)
		for _, p := range parties {
			lease := p.Lease.State
			if lease == "stale" {
				lease = "looks dead, renewed " + age(p.Lease.Renewed, now) + " ago"
			}
			if p.Revoked {
				lease += ",revoked"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%v\t%s\t%s", printable(p.ID), orDash(of(p)), number(p), age(p.Since, now), orDash(p.Lease.Host),
				numberOrDash(uint64(p.Lease.PID)), orDash(p.Lease.Label), lease+kept(p), p.Lease.TTL, printable(p.Owner), metadata(p.Metadata))
			if v := p.Bytes(); v != nil {
				fmt.Fprintf(w, "\t%s", printable(string(v)))
			}
			fmt.Fprintln(w)
		}
	}
	queued := func(p fabric.Party) uint64 { return p.Queued }
	table("HOLDER", "TOKEN\tSINCE", info.Holders, func(p fabric.Party) uint64 { return p.Token })
	table("WAITER", "QUEUED\tWAITED", info.Waiters, queued)
	for _, c := range info.Conditions {
		table("WAITER FOR "+printable(c.Name), "QUEUED\tWAITED", c.Waiters, queued)
	}
}

// share returns the column that shows the part that a party has or wants.
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
			mode += "->" + string(p.Converting) // held in the first mode, waiting for the second one
		}
		if p.Signalled != "" {
			mode += " after " + printable(p.Signalled)
		}
		return mode
	}
}

// kept returns whether a lock that its process may keep is used.
func kept(p fabric.Party) string {
	if p.Kept == "" {
		return ""
	}
	return ",kept " + p.Kept
}

func metadata(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, printable(k)+"="+printable(m[k]))
	}
	return orDash(strings.Join(out, " "))
}

type deadlocksCmd struct {
	Watch bool          `help:"Show it again after each change, until interrupted."`
	Every time.Duration `default:"1s" from:"10ms" give:"10ms or more" help:"With --watch: interval between two readings."`
}

func (c *deadlocksCmd) Run(ctx context.Context, cl *cli, s *streams) error {
	if !c.Watch {
		return show(ctx, cl, s, func(ctx context.Context, m *fabric.Manager) (fabric.Waits, error) { return m.Waits(ctx) }, drawWaits)
	}
	return cl.whileRead(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		for last := ""; ; pause.For(ctx, c.Every) {
			w, err := m.Waits(ctx)
			if now := fmt.Sprint(w); err == nil && now != last {
				last = now
				err = s.again(cl.Output, w, func(out io.Writer) { drawWaits(out, w) })
			}
			if err != nil {
				return err
			}
		}
	})
}

func drawWaits(out io.Writer, w fabric.Waits) {
	if len(w.Units) == 0 {
		fmt.Fprintln(out, "nobody who holds something waits for long")
		return
	}
	fmt.Fprintln(out, "OWNER\tPROCESS\tWAITS FOR\tHOLDS")
	for _, u := range w.Units {
		var waits []string
		for _, uw := range u.Waits {
			waits = append(waits, fmt.Sprintf("%s (%s)", printable(uw.Key), uw.Mode))
		}
		fmt.Fprintf(out, "%s\t%s:%d\t%s\t%s\n", orDash(printable(u.Owner)), u.Host, u.PID, strings.Join(waits, " "), strings.Join(u.Holds, " "))
	}
	for _, c := range w.Deadlocks {
		e := fabric.DeadlockError{Key: c[0].Waits, Cycle: c}
		fmt.Fprintln(out, e.Error())
	}
}
