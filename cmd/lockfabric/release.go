package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/primitives"
)

type releaseCmd struct {
	Key    string `arg:"" complete:"name" help:"Name of the lock or other name, or with --prefix the start of the names."`
	Force  bool   `help:"Take the lock from holders that have not released it. Required, because the lock belongs to another program."`
	Now    bool   `help:"Don't wait for the holders: the next waiter gets the lock at once, although the holders may still be working. Only fencing tokens stop their late writes."`
	Holder string `placeholder:"ID" complete:"-" help:"Take it only from the holder with this id; 'inspect' shows ids."`
	Prefix bool   `help:"Take all locks whose names start with NAME. They are shown first, and taken after a confirmation."`
	Yes    bool   `short:"y" help:"Don't ask for a confirmation with --prefix."`
}

// released is the JSON of release.
type released struct {
	Key      string `json:"key"`
	Released int    `json:"released"` // number of holders, or of parties of a barrier or waiters of a latch
	Now      bool   `json:"now"`
	Removed  bool   `json:"removed,omitempty"` // a barrier or a latch was removed
	barrier  bool
}

func (r *releaseCmd) Run(ctx context.Context, c *cli, s *streams) error {
	switch {
	case !r.Force:
		return usageError("release %q: a lock is released by its holder, end that one; to take the lock away from it add --force", r.Key)
	case r.Prefix && r.Holder != "":
		return usageError("release --prefix: a holder has one lock: leave out --holder, or give the name")
	case r.Prefix && !r.Yes && !term.IsTerminal(int(os.Stdin.Fd())):
		return usageError("release --prefix: nobody can be asked whether all of them are meant: look with 'lockfabric ls', and add --yes")
	case r.Prefix:
		return r.takeAll(ctx, c, s)
	}
	if err := checkName(r.Key); err != nil {
		return err
	}
	return show(ctx, c, s,
		func(ctx context.Context, m *fabric.Manager) (released, error) { return r.take(ctx, m, r.Key) },
		func(w io.Writer, done released) { done.write(w) })
}

func (r *releaseCmd) take(ctx context.Context, m *fabric.Manager, key string) (released, error) {
	var opts []fabric.ForceOption
	if r.Now {
		opts = append(opts, fabric.ForceNow())
	}
	if r.Holder != "" {
		opts = append(opts, fabric.ForceHolder(r.Holder))
	}
	done := released{Key: key, Now: r.Now}
	info, err := m.Read(ctx, key)
	if err != nil {
		return done, err
	}
	if entering(info) {
		return done, fmt.Errorf("%q: %w: who waits to go in would come again: end its process, which 'lockfabric inspect' shows; 'lockfabric gc' removes a dead one", key, fabric.ErrHeld)
	}
	if len(info.Holders) > 0 || r.Holder != "" {
		if done.Released, err = m.ForceRelease(ctx, key, opts...); err != nil {
			return done, err
		}
	}
	switch {
	case r.Holder != "":
	case info.Kind == fabric.KindLatch:
		done.Released = len(info.Waiters)
		_, err = m.Post(ctx, key, fabric.Post{Kind: info.Kind, Verb: "delete", Life: info.Life, All: true})
		done.Removed = err == nil
	case info.Kind == fabric.KindBarrier && info.Arrived > 0: // the waiters see in the record how it ended
		done.Released, done.barrier = done.Released+info.Arrived, true
		err = primitives.NewBarrier(m, key, info.Parties).Reset(ctx)
	case info.Kind == fabric.KindBarrier && len(info.Holders) == 0:
		err = primitives.NewBarrier(m, key, info.Parties).Delete(ctx)
		done.Removed = err == nil
	}
	return done, withHolderName(err, m, key)
}

// entering reports whether parties of a double barrier wait to enter.
func entering(i fabric.Info) bool { return i.Kind == fabric.KindGate && !i.Open && len(i.Holders) > 0 }

func (d released) write(w io.Writer) {
	switch {
	case d.Removed:
		fmt.Fprintf(w, "%s: removed, %d waited for it\n", printable(d.Key), d.Released)
	case d.barrier:
		fmt.Fprintf(w, "%s: broken for %d who waited; once more removes it\n", printable(d.Key), d.Released)
	case d.Released == 0:
		fmt.Fprintf(w, "%s: nobody to take it from\n", printable(d.Key))
	case d.Now:
		fmt.Fprintf(w, "%s: taken from %d holder(s) at once; until they notice, only fencing tokens keep their writes out\n", printable(d.Key), d.Released)
	default:
		fmt.Fprintf(w, "%s: %d holder(s) told to let go\n", printable(d.Key), d.Released)
	}
}

// takeAll takes the locks whose names start with the prefix. It prints what was taken before an error.
func (r *releaseCmd) takeAll(ctx context.Context, c *cli, s *streams) error {
	all := []released{}
	err := c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		infos, err := pause.Within(ctx, c.Timeout, func(ctx context.Context) ([]fabric.Info, error) { return m.List(ctx, r.Key) })
		if err != nil {
			return err
		}
		var keys []string
		for _, i := range infos {
			if len(i.Holders) > 0 && !entering(i) || len(i.Waiters) > 0 && (i.Kind == fabric.KindBarrier || i.Kind == fabric.KindLatch) {
				keys = append(keys, i.Key)
			}
		}
		if len(keys) == 0 || !r.Yes && !confirm(s.err, keys) {
			return nil
		}
		for _, key := range keys {
			one, err := pause.Within(ctx, c.Timeout, func(ctx context.Context) (released, error) { return r.take(ctx, m, key) })
			if err != nil {
				return err
			}
			all = append(all, one)
		}
		return nil
	})
	if err != nil && len(all) == 0 {
		return err
	}
	return cmp.Or(err, s.print(c.Output, all, func(w io.Writer) {
		for _, one := range all {
			one.write(w)
		}
		if len(all) == 0 {
			fmt.Fprintln(w, "nothing was taken")
		}
	}))
}

func confirm(w io.Writer, keys []string) bool {
	for _, key := range keys {
		fmt.Fprintf(w, "  %s\n", printable(key))
	}
	fmt.Fprintf(w, "Take %d lock(s) from their holders? [y/N] ", len(keys))
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "y") || strings.EqualFold(strings.TrimSpace(answer), "yes")
}

type gcCmd struct {
	Prefix string `arg:"" optional:"" complete:"name" help:"Only locks whose names start with this."`
	DryRun bool   `help:"Change nothing, and show what looks dead by the server's time stamps."`
}

func (g *gcCmd) Run(ctx context.Context, c *cli, s *streams) error {
	var opts []fabric.CollectOption
	if g.DryRun {
		opts = append(opts, fabric.DryRun())
	}
	var got fabric.Collected
	err := c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) { // see its help
		defer c.showLater(ctx, s, since("gc %s: what looks dead is observed for its TTL and margin"))()
		got, err = m.Collect(ctx, g.Prefix, opts...)
		return err
	})
	if err != nil {
		return err
	}
	return s.print(c.Output, got, func(w io.Writer) {
		verb := "removed"
		if g.DryRun {
			verb = "would be removed"
		}
		fmt.Fprintf(w, "%d of %d processes dead; %d entries of %d locks %s\n", got.Dead, got.Leases, got.Entries, got.Freed, verb)
	})
}
