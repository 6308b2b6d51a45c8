package deadlock

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Bounds of one look.
const (
	MaxReads  = 64 // documents and records together
	maxLevels = 32
)

// Source is where a look reads its data from.
type Source interface {
	// Own returns the document that this process has published for one of its leases, nil if there is
	// none. ok is false for a lease of another process.
	Own(lease string) (d *Doc, ok bool)
	// Cached returns the newest state of a record that this process knows, without a request. It may be old.
	Cached(key string) (rec *record.Record, rev uint64, ok bool)
	// Doc reads the document of another process's lease, nil if there is none.
	Doc(ctx context.Context, lease string) (*Doc, error)
	// Record reads a record from the leader, nil if there is none.
	Record(ctx context.Context, key string) (*record.Record, uint64, error)
}

type node struct{ key, id string }

// edge leads from a wait, over an entry in its way, to another wait that has to end first.
type edge struct {
	from  node
	mode  record.Mode // of the wait from
	entry record.Entry
	unit  *Unit // the owner of the entry; nil: the entry itself waits
	to    node
}

// same reports whether two looks have found the same edge.
func (e *edge) same(o *edge) bool {
	return e.from == o.from && e.to == o.to && e.mode == o.mode && e.entry.ID == o.entry.ID &&
		e.entry.Mode == o.entry.Mode && e.entry.Convert.ID == o.entry.Convert.ID
}

type versioned struct {
	rec *record.Record
	rev uint64
}

// graph is the result of one look.
type graph struct {
	src       Source
	unbounded bool // no bound of the reads
	docs      map[string]*Doc
	recs      map[string]versioned
	edges     map[node][]edge
	units     map[node][]*Unit // the units that wait there, as far as documents were read

	reads     int
	exhausted bool // something was left out because of the bounds of reads or levels
}

func newGraph(src Source) *graph {
	return &graph{src: src, docs: map[string]*Doc{}, recs: map[string]versioned{}, edges: map[node][]edge{}, units: map[node][]*Unit{}}
}

// look follows the edges from the given waits of this process, breadth first. With cached it uses the records in which
// these waits are as this process knows them.
func look(ctx context.Context, src Source, starts []node, cached bool) *graph {
	g := newGraph(src)
	if cached {
		for _, n := range starts {
			if rec, rev, ok := src.Cached(n.key); ok {
				g.recs[n.key] = versioned{rec, rev}
			}
		}
	}
	g.expand(ctx, starts)
	return g
}

// expand adds everything that can be reached from the given waits.
func (g *graph) expand(ctx context.Context, starts []node) {
	known := map[node]bool{}
	level := starts
	for _, n := range starts {
		known[n] = true
	}
	for range maxLevels {
		g.readRecords(ctx, level)
		g.readDocs(ctx, level)
		var next []node
		for _, n := range level {
			g.edges[n] = g.edgesOf(n, false)
			for _, e := range g.edges[n] {
				if !known[e.to] {
					known[e.to] = true
					next = append(next, e.to)
				}
			}
		}
		if level = next; len(level) == 0 {
			return
		}
	}
	g.exhausted = true
}

func (g *graph) readRecords(ctx context.Context, level []node) {
	var missing []string
	for _, n := range level {
		if _, ok := g.recs[n.key]; !ok && !slices.Contains(missing, n.key) {
			missing = append(missing, n.key)
		}
	}
	readAll(g, shuffled(missing), func(key string) (v versioned, err error) {
		v.rec, v.rev, err = g.src.Record(ctx, key)
		return v, err
	}, func(key string, v versioned) { g.recs[key] = v })
}

// readDocs reads the documents for the entries in the way: first those of the holders, of
// which there are few, then those of the waiters ahead.
func (g *graph) readDocs(ctx context.Context, level []node) {
	var holders, waiters []string
	for _, n := range level {
		w, blockers := g.blockers(n)
		rec := g.recs[n.key].rec
		for i := range blockers {
			e := &blockers[i]
			if onlyNeedsGrant(e, w.Mode, rec) {
				continue
			}
			if _, holds := rec.Holder(e.ID); holds {
				holders = append(holders, e.Lease())
			} else {
				waiters = append(waiters, e.Lease())
			}
		}
	}
	g.readDocsOf(ctx, append(shuffled(holders), shuffled(waiters)...))
}

// readWaiting reads the documents of the units that wait at the nodes. A look does not read all of them: an entry that
// only has to be granted needs no document for an edge.
func (g *graph) readWaiting(ctx context.Context, nodes []node) {
	var leases []string
	for _, n := range nodes {
		leases = append(leases, record.LeaseOf(n.id))
	}
	g.readDocsOf(ctx, leases)
}

// readDocsOf reads the documents that are not known.
func (g *graph) readDocsOf(ctx context.Context, leases []string) {
	var missing []string
	listed := map[string]bool{}
	for _, lease := range leases {
		if _, known := g.docs[lease]; known || listed[lease] {
			continue
		}
		if d, own := g.src.Own(lease); own {
			g.addDoc(lease, d)
		} else {
			missing, listed[lease] = append(missing, lease), true
		}
	}
	readAll(g, missing, func(lease string) (*Doc, error) { return g.src.Doc(ctx, lease) }, g.addDoc)
}

func (g *graph) addDoc(lease string, d *Doc) {
	g.docs[lease] = d
	if d == nil {
		return
	}
	for i := range d.Units {
		u := &d.Units[i]
		for _, w := range u.Waits {
			n := node{w.Key, w.ID}
			if !slices.ContainsFunc(g.units[n], func(o *Unit) bool { return o.Unit == u.Unit }) {
				g.units[n] = append(g.units[n], u)
			}
		}
	}
}

// takeReads cuts a list of reads to a half of the rest, or to a few: one large group must not use up the reads for
// later ones.
func (g *graph) takeReads(list []string) []string {
	left := MaxReads - g.reads
	if n := max(left/2, min(left, 4)); len(list) > n && !g.unbounded {
		list, g.exhausted = list[:n], true
	}
	g.reads += len(list)
	return list
}

// blockers returns the wait of the node and the entries in its way. A wait that its process holds back comes after
// all present waiters.
func (g *graph) blockers(n node) (record.Wait, []record.Entry) {
	rec := g.recs[n.key].rec
	if w, ok := rec.Waiting(n.id); ok {
		return w, rec.Blockers(n.id)
	}
	for _, u := range g.units[n] {
		for _, w := range u.Waits {
			if w.ID == n.id && w.Back && rec != nil {
				return record.Wait{ID: w.ID, Mode: w.Mode}, rec.BlockersOfNext(w.Mode)
			}
		}
	}
	return record.Wait{}, nil
}

// onlyNeedsGrant reports whether the entry is out of the way once its own wait is granted.
func onlyNeedsGrant(e *record.Entry, mode record.Mode, rec *record.Record) bool {
	_, waits := rec.Waiting(e.ID)
	return waits && record.Compatible(e.FinalMode(), mode)
}

// edgesOf returns the edges from a wait. Some waiters are in the way by themselves: without a document, or
// only until they are granted. Of these the last one of each mode is enough, since it waits for everything that
// the earlier ones wait for; with every, all are returned.
func (g *graph) edgesOf(n node, every bool) (edges []edge) {
	w, blockers := g.blockers(n)
	rec := g.recs[n.key].rec
	alone := map[record.Mode]int{} // index in edges
	for _, e := range blockers {
		ew, waits := rec.Waiting(e.ID)
		if waits {
			self := edge{from: n, mode: w.Mode, entry: e, to: node{n.key, ew.ID}}
			if i, ok := alone[ew.Mode]; ok && !every && ew.ID == e.ID {
				edges[i] = self
			} else {
				if ew.ID == e.ID { // no conversion
					alone[ew.Mode] = len(edges)
				}
				edges = append(edges, self)
			}
			if record.Compatible(e.FinalMode(), w.Mode) {
				continue
			}
		}
		for _, u := range g.docs[e.Lease()].unitsOf(&e) {
			for _, uw := range u.Waits {
				if to := (node{uw.Key, uw.ID}); to.id != ew.ID || !waits {
					edges = append(edges, edge{from: n, mode: w.Mode, entry: e, unit: u, to: to})
				}
			}
		}
	}
	return edges
}

func shuffled(list []string) []string {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// readAll reads a part of a list in parallel, and then adds what was read.
func readAll[V any](g *graph, list []string, read func(string) (V, error), add func(string, V)) {
	list = g.takeReads(list)
	values, errs := make([]V, len(list)), make([]error, len(list))
	var wg sync.WaitGroup
	for i, item := range list {
		wg.Go(func() { values[i], errs[i] = read(item) })
	}
	wg.Wait()
	for i, item := range list {
		if errs[i] == nil {
			add(item, values[i])
		}
	}
}

// Survey finds the circles among all documents of a fabric, by lease, and returns each of them once. It proves
// nothing: a circle may have ended already.
func Survey(ctx context.Context, src Source, docs map[string]*Doc) (cycles []Cycle) {
	g := newGraph(src)
	g.unbounded = true
	for lease, d := range docs {
		g.addDoc(lease, d)
	}
	g.expand(ctx, slices.Collect(maps.Keys(g.units)))
	for _, group := range g.circles() {
		if v, ok := g.victim(group); ok {
			cycles = append(cycles, g.cycle(g.circleThrough(node{v.wait.Key, v.wait.ID})))
		}
	}
	return cycles
}
