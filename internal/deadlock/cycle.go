package deadlock

import (
	"context"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Cycle is a circle of waits: each step waits for an entry of the next one, and the last for one of the first,
// who is the victim.
type Cycle []Step

// Step is one wait in a circle.
type Step struct {
	Key   string       // encoded, of the record where it waits
	ID    string       // of the wait
	Mode  record.Mode  // that it waits for
	Since time.Time    // when it asked, by its own clock; zero = not known
	Entry record.Entry // in its way
	Ahead bool         // that entry waits, too, before it
	Lease string       // that the wait stands under
	Unit  *Unit        // that waits; nil for a wait that nothing else is known of
}

// circles finds the groups of waits that all wait for each other, directly or over others of the group, by
// Tarjan's algorithm.
func (g *graph) circles() (groups [][]node) {
	index, low := map[node]int{}, map[node]int{}
	on := map[node]bool{}
	var stack []node
	var visit func(n node)
	visit = func(n node) {
		index[n] = len(index) + 1
		low[n] = index[n]
		stack, on[n] = append(stack, n), true
		self := false
		for _, e := range g.edges[n] {
			self = self || e.to == n
			if index[e.to] == 0 {
				visit(e.to)
				low[n] = min(low[n], low[e.to])
			} else if on[e.to] {
				low[n] = min(low[n], index[e.to])
			}
		}
		if low[n] != index[n] {
			return
		}
		i := slices.Index(stack, n)
		group := slices.Clone(stack[i:])
		stack = stack[:i]
		for _, m := range group {
			on[m] = false
		}
		if len(group) > 1 || self {
			groups = append(groups, group)
		}
	}
	for n := range g.edges {
		if index[n] == 0 {
			visit(n)
		}
	}
	return groups
}

// victim picks the unit of a group that is to give up, with its wait there.
func (g *graph) victim(group []node) (best candidate, ok bool) {
	for _, n := range group {
		for _, u := range g.units[n] {
			for _, w := range u.Waits {
				if c := (candidate{u, w}); w.ID == n.id && (!ok || sooner(c, best) < 0) {
					best, ok = c, true
				}
			}
		}
	}
	return best, ok
}

// through returns a shortest circle through the wait.
func (g *graph) through(start node) []edge {
	came := map[node]edge{}
	level := []node{start}
	for len(level) > 0 {
		var next []node
		for _, n := range level {
			for _, e := range g.edges[n] {
				if e.to == start {
					path := []edge{e}
					for at := n; at != start; at = came[at].from {
						path = append(path, came[at])
					}
					slices.Reverse(path)
					return path
				}
				if _, ok := came[e.to]; !ok {
					came[e.to] = e
					next = append(next, e.to)
				}
			}
		}
		level = next
	}
	return nil
}

// again looks a second time, by fresh reads, whether every edge of a path still stands.
func again(ctx context.Context, src Source, path []edge) (*graph, []edge, bool) {
	g := newGraph(src)
	g.whole = true
	nodes := make([]node, len(path))
	for i, e := range path {
		nodes[i] = e.from
	}
	g.readWaiting(ctx, nodes) // also says whether they are held back
	g.readRecords(ctx, nodes)
	g.readDocs(ctx, nodes)
	now := make([]edge, len(path))
	for i := range path {
		g.edges[path[i].from] = g.edgesOf(path[i].from, true)
		k := slices.IndexFunc(g.edges[path[i].from], func(e edge) bool { return e.same(&path[i]) })
		if k < 0 {
			return g, nil, false
		}
		now[i] = g.edges[path[i].from][k]
	}
	return g, now, true
}

// Judge is what a conviction needs beside reads.
type Judge interface {
	Source
	// Alive reports whether the lease is neither tombstoned nor missing.
	Alive(ctx context.Context, lease string) bool
	// Prove reports whether the record is still at this revision, by a conditional write.
	Prove(ctx context.Context, key string, rev uint64) (at bool, err error)
	// Settle is how long to wait between two looks.
	Settle() time.Duration
}

const (
	looksForProof = 3 // of one probe
	agreeing      = 3 // probes without proof after which looks that agree are enough
)

// confirm looks again at a circle that was found, and proves it. unproven is how many probes before this one
// saw the circle and could not prove it. proved is false, and agrees true, where the circle stands and its
// records were written meanwhile.
func confirm(ctx context.Context, j Judge, path []edge) (c Cycle, agrees, proved bool) {
	for range looksForProof {
		if !pause.For(ctx, j.Settle()) {
			return nil, false, false
		}
		g, now, ok := again(ctx, j, path)
		if !ok {
			return nil, false, false
		}
		for _, e := range now {
			if !j.Alive(ctx, record.LeaseOf(e.from.id)) || !j.Alive(ctx, e.entry.Lease()) {
				return nil, false, false
			}
		}
		c, agrees = g.cycle(now), true
		if g.proved(ctx, j, now) {
			return c, true, true
		}
	}
	return c, agrees, false
}

// proved reports whether no record of the path has changed since it was read.
func (g *graph) proved(ctx context.Context, j Judge, path []edge) bool {
	done := map[string]bool{}
	for _, e := range path {
		if done[e.from.key] {
			continue
		}
		done[e.from.key] = true
		if at, err := j.Prove(ctx, e.from.key, g.recs[e.from.key].rev); err != nil || !at {
			return false
		}
	}
	return true
}

func (g *graph) cycle(path []edge) Cycle {
	c := make(Cycle, len(path))
	for i, e := range path {
		w, _ := g.blockers(e.from)
		_, _, ahead := g.recs[e.from.key].rec.Waiter(e.entry.ID)
		c[i] = Step{Key: e.from.key, ID: e.from.id, Mode: e.mode, Since: w.Entry.Since, Entry: e.entry, Ahead: ahead, Lease: record.LeaseOf(e.from.id)}
		if units := g.units[e.from]; len(units) > 0 {
			c[i].Unit = units[0]
		}
		if i > 0 && path[i-1].unit != nil {
			c[i].Unit = path[i-1].unit
		}
	}
	return c
}
