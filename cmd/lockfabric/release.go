package main

import (
	"context"
	"fmt"
	"io"

	"github.com/lockfabric/lockfabric/fabric"
)

type releaseCmd struct {
	Key    string `arg:"" complete:"lock" help:"Name of the lock."`
	Force  bool   `help:"Take the lock from holders that have not released it. Required: there is no other way to release another program's lock."`
	Now    bool   `help:"Don't wait for the holders: the next one gets the lock at once, while they may still be at work. Only fencing tokens keep their late writes out."`
	Holder string `placeholder:"ID" complete:"-" help:"Take it only from the holder with this id; 'inspect' shows ids."`
}

// Help explains the two ways.
func (*releaseCmd) Help() string {
	return "Each holder is told, ends its command and lets go; the next one is granted then, or when the holder turns out to be dead. " +
		"With --now the next one is granted at once and the holders learn of it within a second: safety rests on fencing tokens alone."
}

// released is the JSON of release.
type released struct {
	Key      string `json:"key"`
	Released int    `json:"released"` // how many holders it was taken from; 0 = nobody held it
	Now      bool   `json:"now"`
}

// Run takes the lock away.
func (r *releaseCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if !r.Force {
		return usageError("release %q: a lock is released by its holder, end that one; to take the lock away from it add --force", r.Key)
	}
	if err := checkName(r.Key); err != nil {
		return err
	}
	var opts []fabric.ForceOption
	if r.Now {
		opts = append(opts, fabric.ForceNow())
	}
	if r.Holder != "" {
		opts = append(opts, fabric.ForceHolder(r.Holder))
	}
	var n int
	err := c.with(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) {
		n, err = m.ForceRelease(ctx, r.Key, opts...)
		return err
	})
	if err != nil {
		return err
	}
	return s.print(c.Output, released{Key: r.Key, Released: n, Now: r.Now}, func(w io.Writer) {
		switch {
		case n == 0:
			fmt.Fprintf(w, "%s: nobody to take it from\n", printable(r.Key))
		case r.Now:
			fmt.Fprintf(w, "%s: taken from %d holder(s) at once; until they notice, only fencing tokens keep their writes out\n", printable(r.Key), n)
		default:
			fmt.Fprintf(w, "%s: %d holder(s) told to let go\n", printable(r.Key), n)
		}
	})
}
