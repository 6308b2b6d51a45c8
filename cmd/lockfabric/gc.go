package main

import (
	"context"
	"fmt"
	"io"

	"github.com/lockfabric/lockfabric/fabric"
)

type gcCmd struct {
	Prefix string `arg:"" optional:"" complete:"lock" help:"Only locks whose names begin with this."`
	DryRun bool   `help:"Change nothing, and tell what looks dead by the server's time stamps."`
}

func (*gcCmd) Help() string {
	return "Entries of dead processes are removed whenever somebody wants the lock, and every few minutes by the programs that use the library. " +
		"This does it now. A process that looks dead is observed for the TTL of its lease and a margin first; one that renews meanwhile keeps what it has."
}

func (g *gcCmd) Run(ctx context.Context, c *cli, s *streams) error {
	var opts []fabric.CollectOption
	if g.DryRun {
		opts = append(opts, fabric.DryRun())
	}
	var got fabric.Collected
	err := c.withoutLimit(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) { // see Help
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
