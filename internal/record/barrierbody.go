package record

import (
	"math"
	"slices"
	"strings"
)

// The stored body of a barrier. Ids are in the order in which they arrived, each as <lease>.<sequence>, where
// <lease> is an index in the field leases. Successive sequences under one lease are <lease>.<first>-<last>:
//
//	"parties":2,"gen":9,"leases":["La","Lb"],"acting":{"gen":8,"ids":"0.7 1.3"},
//	"ended":[{"gen":7,"ids":"0.5-6"},{"gen":6,"broken":"died","by":"Lb","ids":"1.1 0.4"}]

// mostIDs bounds the ids in a record that is read. It is more than one write can store.
const mostIDs = 16 * MaxParties

func (b *barrier) fields(f *fields) {
	f.count(`,"parties":`, &b.parties)
	f.need()
	f.number(`,"gen":`, &b.gen)
	f.need()
	places, leases := map[string]int{}, []string(nil)
	if f.d != nil {
		leases = f.d.leases
	} else {
		leases = b.leases(places)
	}
	list(f, `,"leases":`, &leases, appendString, (*decoder).lease)
	if f.d != nil {
		f.d.leases = leases
	}
	write := func(dst []byte, g *generation) []byte { return g.append(dst, places) }
	field(f, `,"acting":`, &b.acting, b.acting != nil, write, (*decoder).generation)
	list(f, `,"ended":`, &b.ended, func(dst []byte, g generation) []byte { return write(dst, &g) }, func(d *decoder) (generation, error) {
		g, err := d.generation()
		return *g, err
	})
}

// fields are those of a stored generation. places are those of the leases.
func (g *generation) fields(f *fields, places map[string]int) {
	f.number(`,"gen":`, &g.gen)
	f.need()
	f.name(`,"broken":`, &g.why)
	f.name(`,"by":`, &g.who)
	field(f, `,"ids":`, &g.ids, len(g.ids) > 0, func(dst []byte, ids []string) []byte {
		return append(appendIDs(append(dst, '"'), ids, places), '"')
	}, (*decoder).storedIDs)
}

func (g *generation) append(dst []byte, places map[string]int) []byte {
	f := fields{out: dst}
	g.fields(&f, places)
	return f.close(len(dst))
}

func (d *decoder) generation() (*generation, error) {
	g := new(generation)
	f := fields{d: d}
	for f.pass() {
		g.fields(&f, nil)
	}
	if f.err == nil && (f.missing() || g.why == "" && (g.who != "" || g.ids == nil)) {
		return g, d.fail("a generation needs gen, and ids or broken")
	}
	return g, f.err
}

// leases returns the leases of all ids, and notes their places.
func (b *barrier) leases(places map[string]int) (leases []string) {
	for g := range b.generations() {
		for _, id := range g.ids {
			lease := LeaseOf(id)
			if _, ok := places[lease]; !ok {
				places[lease] = len(leases)
				leases = append(leases, lease)
			}
		}
	}
	return leases
}

func (d *decoder) lease() (lease string, err error) {
	if lease, err = d.string(); err == nil && !validLease(lease) {
		err = d.fail("a lease is not valid")
	}
	return lease, err
}

// storedIDs reads the ids of a generation as one text. They are parsed when all leases are known.
func (d *decoder) storedIDs() ([]string, error) {
	text, err := d.string()
	return []string{text}, err
}

// validate also parses the ids of the generations.
func (barrierRules) validate(d *decoder) error {
	if d.missing {
		return d.fail("a barrier needs parties and gen")
	}
	b := d.rec.barrier()
	if b.parties > MaxParties {
		return d.fail("a barrier has at most 1024 parties")
	}
	total := 0
	gens := map[uint64]bool{b.gen: true}
	used := make([]bool, len(d.leases))
	for g := range b.generations() {
		if len(g.ids) > 0 {
			stored := g.ids[0]
			g.ids = nil
			if !d.ids(g, stored, used) {
				return d.fail("ids of a generation are not <lease>.<sequence> or <lease>.<first>-<last>")
			}
		}
		if total += len(g.ids); gens[g.gen] || g.gen > b.gen || total > mostIDs {
			return d.fail("a generation stands twice, or is still to come, or there are too many ids")
		}
		gens[g.gen] = true
	}
	if slices.Contains(used, false) {
		return d.fail("a lease without an id")
	}
	return b.check(d)
}

// check checks entries and generations against each other.
func (b *barrier) check(d *decoder) error {
	acting := uint64(0)
	if b.acting != nil {
		if acting = b.acting.gen; b.acting.why != "" || len(b.acting.ids) != b.parties {
			return d.fail("the generation whose action runs is not complete")
		}
	}
	forming := 0
	for i := range d.rec.Waiters {
		switch d.rec.Waiters[i].Gen {
		case b.gen:
			forming++
		case acting:
			if forming == 0 {
				continue
			}
			fallthrough
		default:
			return d.fail("a waiter is of a generation that has ended, or stands behind a later one")
		}
	}
	switch holders := d.rec.Holders; {
	case len(holders) > 1, len(holders) == 1 && (holders[0].Gen != acting || !holders[0].Acts || holders[0].ID != b.acting.ids[b.parties-1]):
		return d.fail("who holds is not the last one of the generation whose action runs")
	case len(holders) == 0 && acting != 0, forming > b.parties, acting == 0 && forming == b.parties:
		return d.fail("a generation is complete and has not ended")
	}
	return nil
}

// ids parses what appendIDs has written, and notes which leases are used.
func (d *decoder) ids(g *generation, stored string, used []bool) bool {
	for part := range strings.SplitSeq(stored, " ") {
		place, seqs, _ := strings.Cut(part, ".")
		at := sequenceOf(place)
		sp, _, ok := parseSpan(seqs)
		if !ok || !validSequence(place) || at >= uint64(len(d.leases)) || sp.from > sp.to || sp.to-sp.from >= MaxParties || len(g.ids) > mostIDs {
			return false
		}
		used[at] = true
		for n := range sp.to - sp.from + 1 {
			g.ids = append(g.ids, ID(d.leases[at], sp.from+n))
		}
	}
	return true
}

// generations yields the complete and broken generations.
func (b *barrier) generations() func(func(*generation) bool) {
	return func(yield func(*generation) bool) {
		if b.acting != nil && !yield(b.acting) {
			return
		}
		for i := range b.ended {
			if !yield(&b.ended[i]) {
				return
			}
		}
	}
}

func (b *barrier) clone() Body {
	c := *b
	c.ended, c.added = slices.Clone(b.ended), 0
	return &c
}

func appendIDs(dst []byte, ids []string, places map[string]int) []byte {
	for i := 0; i < len(ids); {
		lease, first := LeaseOf(ids[i]), sequenceOf(ids[i])
		s := span{first, first}
		if i > 0 {
			dst = append(dst, ' ')
		}
		for i++; i < len(ids) && s.to-first < MaxParties-1 && s.to < math.MaxUint64 && sequenceOf(ids[i]) == s.to+1 && LeaseOf(ids[i]) == lease; i++ {
			s.to++
		}
		dst = s.append(append(appendUint(dst, places[lease]), '.'))
	}
	return dst
}

// bound is the largest size of the body: each entry can also become an id in it, and a few generations can
// end before older ones have to be forgotten.
func (b *barrier) bound(m *machine) int {
	const number = len("18446744073709551615")
	const one = len(`{"gen":,"broken":"cancelled","by":"","ids":""},`) + number + maxLeaseLen + 1 + number
	m.scratch = appendBody(m.scratch[:0], b)
	n := len(m.scratch) + number + len(`,"leases":[],"acting":,"ended":[]`) + 4*one
	for e := range m.entries() {
		n += idBound(e.ID)
	}
	return n
}

// idBound is the room that an id can take in a generation.
func idBound(id string) int { return len(id) + len(`"",`) + len("16384. ") }
