package deadlock

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Version is the version of a document that this package writes.
const Version = 1

// Bounds of a document.
const (
	MaxDoc   = 64 << 10 // bytes
	MaxHolds = 256      // of one unit; beyond that All
)

// Doc lists the units of work of one lease that hold something and wait for long. Its key in the
// bucket of waits is the lease's id.
type Doc struct {
	Version int    `json:"v"`
	Units   []Unit `json:"units"`         // that hold or wait under the lease, the longest wait first
	Cut     bool   `json:"cut,omitempty"` // there are more than fit
}

// Unit is a unit of work.
type Unit struct {
	Unit   string   `json:"unit"`
	Owner  string   `json:"owner,omitempty"`
	Deaths int      `json:"deaths,omitempty"` // how often it was a victim
	Waits  []Wait   `json:"waits"`
	Holds  []string `json:"holds,omitempty"` // ids of entries, under this lease and others
	All    bool     `json:"all,omitempty"`   // it holds too many to list: all entries of the lease count as its own
}

// Wait is an acquire or a conversion that waits.
type Wait struct {
	Key    string      `json:"key"` // encoded
	ID     string      `json:"id"`
	Mode   record.Mode `json:"mode"`
	Queued uint64      `json:"queued,omitempty"` // the revision at which it queued
	Back   bool        `json:"back,omitempty"`   // its process holds it back, and queues it later
}

// DecodeDoc reads a stored document. It returns an error for an unreadable document or a newer version.
func DecodeDoc(value []byte) (*Doc, error) {
	var d Doc
	if err := json.Unmarshal(value, &d); err != nil {
		return nil, err
	}
	if d.Version != Version {
		return nil, fmt.Errorf("version %d", d.Version)
	}
	return &d, nil
}

// encode returns the document of the units, as many as fit, and its stored form.
func encode(units []Unit) (*Doc, []byte) {
	d := &Doc{Version: Version, Units: units}
	for {
		value, err := json.Marshal(d)
		if err != nil {
			return nil, nil // an invalid mode
		}
		if len(value) <= MaxDoc {
			return d, value
		}
		d.Units, d.Cut = d.Units[:len(d.Units)*3/4], true
	}
}

func (u *Unit) waits(id string) bool {
	return slices.ContainsFunc(u.Waits, func(w Wait) bool { return w.ID == id })
}

// unitsOf returns the units that the entry belongs to.
func (d *Doc) unitsOf(e *record.Entry) (units []*Unit) {
	if d == nil {
		return nil
	}
	for i := range d.Units {
		u := &d.Units[i]
		if u.All || slices.Contains(u.Holds, e.ID) || u.waits(e.ID) || e.Convert.ID != "" && u.waits(e.Convert.ID) {
			units = append(units, u)
		}
	}
	return units
}

// compareVictims orders units: the victim comes first. It is the unit with the fewest deaths, and of these the one with
// the youngest wait. The order depends on committed data alone and no two units are equal, so all pick the same.
func compareVictims(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.unit.Deaths, b.unit.Deaths), cmp.Compare(b.queued(), a.queued()), cmp.Compare(b.unit.Unit, a.unit.Unit))
}

// candidate is a unit with its wait in a circle.
type candidate struct {
	unit *Unit
	wait Wait
}

// queued is the age of the wait; a wait that is not in the record yet is the youngest.
func (c candidate) queued() uint64 {
	if c.wait.Queued == 0 {
		return 1<<64 - 1
	}
	return c.wait.Queued
}

// Cycle is a circle of waits: each step waits for an entry of the next step, and the last for an entry of the first,
// which is the victim.
type Cycle []Step

// Step is one wait in a circle.
type Step struct {
	Key   string       // encoded, of the record where it waits
	ID    string       // of the wait
	Mode  record.Mode  // of the wait
	Since time.Time    // of the wait's request, by its own clock; zero = not known
	Entry record.Entry // that it waits for
	Ahead bool         // that entry is a waiter before it
	Lease string       // of the wait
	Unit  *Unit        // of the wait; nil if it is not known
}

// circles returns the groups of waits that all wait for each other, directly or over others of the group, by
// Tarjan's algorithm.
func (g *graph) circles() (groups [][]node) {
	index, low := map[node]int{}, map[node]int{}
	var stack []node
	var visit func(n node)
	visit = func(n node) {
		index[n] = len(index) + 1
		low[n] = index[n]
		stack = append(stack, n)
		self := false
		for _, e := range g.edges[n] {
			self = self || e.to == n
			if index[e.to] == 0 {
				visit(e.to)
			}
			low[n] = min(low[n], low[e.to])
		}
		if low[n] != index[n] {
			return
		}
		i := slices.Index(stack, n)
		group := slices.Clone(stack[i:])
		stack = stack[:i]
		for _, m := range group {
			low[m] = math.MaxInt // its group is complete
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

// victim returns the unit of a group that is to be aborted, with its wait there.
func (g *graph) victim(group []node) (best candidate, ok bool) {
	for _, n := range group {
		for _, u := range g.units[n] {
			for _, w := range u.Waits {
				if c := (candidate{u, w}); w.ID == n.id && (!ok || compareVictims(c, best) < 0) {
					best, ok = c, true
				}
			}
		}
	}
	return best, ok
}

// circleThrough returns a shortest circle through the wait.
func (g *graph) circleThrough(start node) []edge {
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

// lookAgain checks by fresh reads whether every edge of a path still exists.
func lookAgain(ctx context.Context, src Source, path []edge) (*graph, []edge, bool) {
	g := newGraph(src)
	g.unbounded = true
	nodes := make([]node, len(path))
	for i, e := range path {
		nodes[i] = e.from
	}
	g.readWaiting(ctx, nodes) // also shows whether they are held back
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

// Judge does the further I/O of a conviction.
type Judge interface {
	Source
	// Alive reports whether the lease exists and has no tombstone.
	Alive(ctx context.Context, lease string) bool
	// Prove reports whether the record is still at this revision, by a conditional write.
	Prove(ctx context.Context, key string, rev uint64) (at bool, err error)
	// Settle returns how long to wait between two looks.
	Settle() time.Duration
}

const (
	looksForProof  = 3 // in one probe
	enoughUnproven = 3 // probes without proof whose looks agree are enough for a conviction
)

// confirm looks again at a circle that was found, and proves it. agrees is whether the circle still exists; proved is whether
// its records have not changed meanwhile.
func confirm(ctx context.Context, j Judge, path []edge) (c Cycle, agrees, proved bool) {
	for range looksForProof {
		if !pause.For(ctx, j.Settle()) {
			return nil, false, false
		}
		g, now, ok := lookAgain(ctx, j, path)
		if !ok {
			return nil, false, false
		}
		for _, e := range now {
			if !j.Alive(ctx, record.LeaseOf(e.from.id)) || !j.Alive(ctx, e.entry.Lease()) {
				return nil, false, false
			}
		}
		c, agrees = g.cycle(now), true
		if g.proved(ctx, j) {
			return c, true, true
		}
	}
	return c, agrees, false
}

// proved reports whether no record has changed since it was read.
func (g *graph) proved(ctx context.Context, j Judge) bool {
	for key, v := range g.recs {
		if at, err := j.Prove(ctx, key, v.rev); err != nil || !at {
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
