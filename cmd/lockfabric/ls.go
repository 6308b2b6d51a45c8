package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type lsCmd struct {
	Prefix string `arg:"" optional:"" complete:"lock" help:"Only names that start so."`
}

// Run lists the locks in use. The JSON is an array of fabric.Info, [] when there
// are none; the leases in it carry id and TTL only, inspect looks them up.
func (l *lsCmd) Run(ctx context.Context, c *cli, s *streams) error {
	var infos []fabric.Info
	err := c.with(ctx, s, func(ctx context.Context, m *fabric.Manager) (err error) {
		if infos, err = m.List(ctx, l.Prefix); err != nil || c.Output != "text" {
			return err
		}
		return m.Identify(ctx, infos)
	})
	if err != nil {
		return err
	}
	if infos == nil {
		infos = []fabric.Info{}
	}
	return s.print(c.Output, infos, func(w io.Writer) {
		fmt.Fprintln(w, "KEY\tKIND\tSTATE\tHOLDERS\tWAITERS\tTOKEN\tAGE\tOWNER")
		now := time.Now()
		for _, i := range infos {
			token, held, owner := "-", "-", "-"
			if len(i.Holders) > 0 {
				h := i.Holders[0]
				token, held, owner = strconv.FormatUint(h.Token, 10), age(h.Since, now), holder(h)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n",
				printable(i.Key), printable(i.Kind), short(i), len(i.Holders), len(i.Waiters), token, held, owner)
		}
	})
}
