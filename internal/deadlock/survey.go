package deadlock

import "context"

// Survey finds the circles among all documents of a fabric, by lease, of which each is told once. It proves
// nothing: what it tells may be over already.
func Survey(ctx context.Context, src Source, docs map[string]*Doc) (cycles []Cycle) {
	g := newGraph(src)
	g.whole = true
	var starts []node
	for lease, d := range docs {
		g.learn(lease, d)
		for _, u := range d.Units {
			for _, w := range u.Waits {
				starts = append(starts, node{w.Key, w.ID})
			}
		}
	}
	g.follow(ctx, starts)
	for _, group := range g.circles() {
		if v, ok := g.victim(group); ok {
			cycles = append(cycles, g.cycle(g.through(node{v.wait.Key, v.wait.ID})))
		}
	}
	return cycles
}
