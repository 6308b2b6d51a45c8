package main

import (
	"cmp"
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
)

type lsCmd struct {
	Prefix string `arg:"" optional:"" complete:"name" help:"Only names that start with this."`
	Long   bool   `help:"Show a line for each holder and waiter, with host, process and metadata."`
	Watch  bool   `help:"Then show the names that change, until interrupted."`
}

// Run lists the locks in use. The JSON is an array of fabric.Info. Without --long, its leases have only id and TTL.
func (l *lsCmd) Run(ctx context.Context, c *cli, s *streams) error {
	header := "KEY\tKIND\tSTATE\tHOLDERS\tWAITERS\tTOKEN\tAGE\tOWNER\n"
	if l.Long {
		header = "KEY\tKIND\tSTATE\tROLE\tMODE\tTOKEN\tAGE\tHOST\tPID\tLABEL\tLEASE\tOWNER\tMETADATA\n"
	}
	if l.Watch {
		return l.watch(ctx, c, s, "TIME\t"+header)
	}
	return show(ctx, c, s, func(ctx context.Context, m *fabric.Manager) ([]fabric.Info, error) {
		list, err := m.List(ctx, l.Prefix)
		infos := append([]fabric.Info{}, list...)
		if err == nil && (c.Output == "text" || l.Long) {
			err = m.Identify(ctx, infos)
		}
		return infos, err
	}, func(w io.Writer, infos []fabric.Info) {
		fmt.Fprint(w, header)
		l.rows(w, "", infos, time.Now())
	})
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
				orDash(p.Lease.Host), numberOrDash(uint64(p.Lease.PID)), orDash(p.Lease.Label), p.Lease.State+kept(p), printable(p.Owner), metadata(p.Metadata))
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

// watch prints the header once, and then the names that have changed.
func (l *lsCmd) watch(ctx context.Context, c *cli, s *streams, header string) error {
	return follow(ctx, c, s, (*fabric.Manager).WatchAll, l.Prefix, func(ctx context.Context, m *fabric.Manager, changed []fabric.Info) error {
		slices.SortFunc(changed, byKey)
		_ = m.Identify(ctx, changed) // a process that can't be looked up now is shown without details
		now := time.Now()
		if c.Output == "json" {
			for _, i := range changed {
				if err := s.encode(watched{now, inspected{Info: i}}, ""); err != nil {
					return err
				}
			}
			return nil
		}
		before := header
		header = ""
		return s.print(c.Output, nil, func(w io.Writer) {
			fmt.Fprint(w, before)
			l.rows(w, now.Format(time.TimeOnly)+"\t", changed, now)
		})
	})
}

func byKey(a, b fabric.Info) int { return cmp.Compare(a.Key, b.Key) }

// inUse contains the names in use, as reported by WatchAll.
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

type treeCmd struct {
	Prefix string `arg:"" optional:"" complete:"name" help:"Only names that start with this."`
	Watch  bool   `help:"Show it again after each change, until interrupted."`
}

// node is one name of a tree.
type node struct {
	fabric.Info
	Depth       int      `json:"depth"`       // 0 is a root
	Unannounced []string `json:"unannounced"` // ids of holders without an intent on each level above
}

// Run shows the tree. The JSON is an array of nodes, parents before their children.
func (c *treeCmd) Run(ctx context.Context, cl *cli, s *streams) error {
	if c.Watch {
		return c.watch(ctx, cl, s)
	}
	return show(ctx, cl, s, func(ctx context.Context, m *fabric.Manager) ([]node, error) {
		infos, err := m.List(ctx, c.root())
		if err != nil {
			return nil, err
		}
		nodes := c.nodes(infos)
		return nodes, identify(ctx, m, nodes)
	}, func(w io.Writer, nodes []node) { drawTree(w, nodes, time.Now()) })
}

// root returns the highest level above the requested names, where their intents begin.
func (c *treeCmd) root() string {
	root, _, _ := strings.Cut(c.Prefix, "/")
	return root
}

func identify(ctx context.Context, m *fabric.Manager, nodes []node) error {
	infos := make([]fabric.Info, len(nodes))
	for i := range nodes {
		infos[i] = nodes[i].Info
	}
	return m.Identify(ctx, infos) // infos and nodes share the parties
}

// nodes makes a tree of the names in use.
func (c *treeCmd) nodes(infos []fabric.Info) []node {
	byKey := map[string]fabric.Info{}
	keys := map[string]bool{}
	for _, i := range infos {
		byKey[i.Key] = i
		if strings.HasPrefix(i.Key, c.Prefix) {
			for _, above := range levels(i.Key) {
				keys[above] = true
			}
		}
	}
	nodes := []node{}
	for key := range keys {
		info, ok := byKey[key]
		if !ok {
			info = fabric.Info{Key: key, Holders: []fabric.Party{}, Waiters: []fabric.Party{}}
		}
		n := node{Info: info, Depth: strings.Count(key, "/"), Unannounced: []string{}}
		for _, p := range info.Holders {
			if info.Kind == fabric.KindLock && !announced(byKey, key, p) {
				n.Unannounced = append(n.Unannounced, p.ID)
			}
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b node) int {
		return slices.Compare(strings.Split(a.Key, "/"), strings.Split(b.Key, "/"))
	})
	return nodes
}

// levels returns the name and its ancestors, from the root down.
func levels(name string) []string {
	var all []string
	for i, c := range name {
		if c == '/' && i > 0 {
			all = append(all, name[:i])
		}
	}
	return append(all, name)
}

// announced reports whether each level above is held under the same lease, with an intent for this mode.
func announced(byKey map[string]fabric.Info, key string, p fabric.Party) bool {
	enough := func(h fabric.Party) bool {
		reads := p.Mode == fabric.Shared || p.Mode == fabric.IntentShared
		return h.Lease.ID == p.Lease.ID && (reads || h.Mode != fabric.IntentShared && h.Mode != fabric.Shared && h.Mode != fabric.Update)
	}
	all := levels(key)
	return !slices.ContainsFunc(all[:len(all)-1], func(above string) bool { return !slices.ContainsFunc(byKey[above].Holders, enough) })
}

func drawTree(w io.Writer, nodes []node, now time.Time) {
	fmt.Fprintln(w, "NAME\tKIND\tROLE\tMODE\tAGE\tOWNER\tNOTE")
	for _, n := range nodes {
		name := n.Key
		if i := strings.LastIndexByte(name, '/'); i > 0 {
			name = name[i+1:]
		}
		line := strings.Repeat("  ", n.Depth) + printable(name)
		row := func(role string, p fabric.Party, note string) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", line, orDash(n.Kind), role, orDash(string(p.Mode)), age(p.Since, now), holder(p), note)
			line = strings.Repeat("  ", n.Depth) + "."
		}
		for _, p := range n.Holders {
			note := ""
			if p.Metadata["intent"] == "shared" {
				note = "shared intent"
			} else if slices.Contains(n.Unannounced, p.ID) {
				note = "no intent above"
			}
			row("holds", p, note)
		}
		for _, p := range n.Waiters {
			row("waits", p, "")
		}
		if len(n.Holders)+len(n.Waiters) == 0 {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t\n", line, orDash(n.Kind))
		}
	}
}

// shownTree is one state of --watch.
type shownTree struct {
	Time  time.Time `json:"time"` // when it was seen, by the clock of this host
	Nodes []node    `json:"nodes"`
}

// treeEvery is how long changes of a tree are collected.
const treeEvery = time.Second

func (c *treeCmd) watch(ctx context.Context, cl *cli, s *streams) error {
	names := inUse{}
	return follow(ctx, cl, s, (*fabric.Manager).WatchAll, c.root(), func(ctx context.Context, m *fabric.Manager, changed []fabric.Info) error {
		names.take(changed)
		now, nodes := time.Now(), c.nodes(slices.Collect(maps.Values(names)))
		_ = identify(ctx, m, nodes) // a process that can't be looked up now is shown without details
		err := s.again(cl.Output, shownTree{now, nodes}, func(w io.Writer) {
			fmt.Fprintln(w, now.Format(time.TimeOnly))
			drawTree(w, nodes, now)
		})
		pause.For(ctx, treeEvery)
		return err
	})
}
