package record

import (
	"bytes"
	"math"
	"slices"
	"strconv"
)

// The stored body of a barrier. Ids are in the order in which they arrived, each as <lease>.<sequence>, where
// <lease> is an index in the field leases. Successive sequences under one lease are <lease>.<first>-<last>:
//
//	"parties":2,"gen":9,"leases":["La","Lb"],"acting":{"gen":8,"ids":"0.7 1.3"},
//	"ended":[{"gen":7,"ids":"0.5-6"},{"gen":6,"broken":"died","by":"Lb","ids":"1.1 0.4"}]

const (
	hasParties = hasBody << iota
	hasBodyGen
	hasLeases
	hasActing
	hasEnded
)

// The fields of a generation.
const (
	hasGenNumber = 1 << iota
	hasBroken
	hasBy
	hasIDs
)

// mostIDs bounds the ids in a record that is read. It is more than one write can store.
const mostIDs = 16 * MaxParties

func (barrierRules) decodeField(d *decoder, key []byte) (known bool, err error) {
	b := d.rec.barrier()
	switch string(key) {
	case "parties":
		return true, field(d, &d.seen, hasParties, &b.parties, d.count)
	case "gen":
		return true, field(d, &d.seen, hasBodyGen, &b.gen, d.number)
	case "leases":
		return true, d.readOnce(&d.seen, hasLeases, func() error {
			return d.array(func() error {
				lease, err := d.string()
				if err == nil && !validLease(lease) {
					return d.fail("a lease is not valid")
				}
				d.leases = append(d.leases, lease)
				return err
			})
		})
	case "acting":
		return true, d.readOnce(&d.seen, hasActing, func() error {
			b.acting = new(generation)
			return d.generation(b.acting)
		})
	case "ended":
		return true, d.readOnce(&d.seen, hasEnded, func() error {
			return d.array(func() error {
				b.ended = append(b.ended, generation{})
				return d.generation(&b.ended[len(b.ended)-1])
			})
		})
	}
	return false, nil
}

// generation reads a generation. Until validate, ids[0] has its ids in the stored form.
func (d *decoder) generation(g *generation) error {
	var seen uint
	err := d.object(func(key []byte) error {
		switch string(key) {
		case "gen":
			return field(d, &seen, hasGenNumber, &g.gen, d.number)
		case "broken":
			return field(d, &seen, hasBroken, &g.why, d.string)
		case "by":
			return field(d, &seen, hasBy, &g.who, d.string)
		case "ids":
			g.ids = make([]string, 1)
			return field(d, &seen, hasIDs, &g.ids[0], d.string)
		}
		return d.failAt(d.keyAt, "unknown field")
	})
	switch {
	case err != nil:
		return err
	case seen&hasGenNumber == 0, (seen&hasBroken != 0) != (g.why != ""), seen&hasBroken == 0 && seen&(hasBy|hasIDs) != hasIDs:
		return d.fail("a generation needs gen, and ids or broken")
	}
	return nil
}

// validate also parses the ids of the generations.
func (barrierRules) validate(d *decoder) error {
	const required = hasParties | hasBodyGen
	if d.seen&required != required {
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
	for part := range bytes.SplitSeq([]byte(stored), []byte(" ")) {
		place, seqs, ok := bytes.Cut(part, []byte("."))
		first, last, span := bytes.Cut(seqs, []byte("-"))
		if !span {
			last = first
		}
		if !ok || !validSequence(string(place)) || !validSequence(string(first)) || !validSequence(string(last)) {
			return false
		}
		at, _ := strconv.ParseUint(string(place), 10, 64)
		from, _ := strconv.ParseUint(string(first), 10, 64)
		to, _ := strconv.ParseUint(string(last), 10, 64)
		if at >= uint64(len(d.leases)) || from > to || to-from >= MaxParties || len(g.ids) > mostIDs {
			return false
		}
		used[at] = true
		for n := range to - from + 1 {
			g.ids = append(g.ids, ID(d.leases[at], from+n))
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

func (b *barrier) append(dst []byte) []byte {
	dst = appendNumber(dst, "parties", b.parties)
	dst = appendNumber(dst, "gen", b.gen)
	places := map[string]int{}
	var leases []string
	for g := range b.generations() {
		for _, id := range g.ids {
			lease := LeaseOf(id)
			if _, ok := places[lease]; !ok {
				places[lease] = len(leases)
				leases = append(leases, lease)
			}
		}
	}
	dst = appendList(dst, `,"leases":[`, len(leases), "]", func(dst []byte, i int) []byte { return appendString(dst, leases[i]) })
	if b.acting != nil {
		dst = b.acting.append(append(dst, `,"acting":`...), places)
	}
	return appendList(dst, `,"ended":[`, len(b.ended), "]", func(dst []byte, i int) []byte { return b.ended[i].append(dst, places) })
}

func (g *generation) append(dst []byte, places map[string]int) []byte {
	dst = strconv.AppendUint(append(dst, `{"gen":`...), g.gen, 10)
	dst = appendText(appendText(dst, "broken", g.why), "by", g.who)
	if len(g.ids) > 0 {
		dst = append(dst, `,"ids":"`...)
		dst = append(appendIDs(dst, g.ids, places), '"')
	}
	return append(dst, '}')
}

func appendIDs(dst []byte, ids []string, places map[string]int) []byte {
	for i := 0; i < len(ids); {
		lease, first := LeaseOf(ids[i]), sequenceOf(ids[i])
		last := first
		if i > 0 {
			dst = append(dst, ' ')
		}
		for i++; i < len(ids) && last-first < MaxParties-1 && last < math.MaxUint64 && sequenceOf(ids[i]) == last+1 && LeaseOf(ids[i]) == lease; i++ {
			last++
		}
		dst = strconv.AppendInt(dst, int64(places[lease]), 10)
		dst = strconv.AppendUint(append(dst, '.'), first, 10)
		if last > first {
			dst = strconv.AppendUint(append(dst, '-'), last, 10)
		}
	}
	return dst
}

// bound is the largest size of the body: each entry can also become an id in it, and a few generations can
// end before older ones have to be forgotten.
func (b *barrier) bound(m *machine) int {
	const number = len("18446744073709551615")
	const one = len(`{"gen":,"broken":"cancelled","by":"","ids":""},`) + number + maxLeaseLen + 1 + number
	m.scratch = b.append(m.scratch[:0])
	n := len(m.scratch) + number + len(`,"leases":[],"acting":,"ended":[]`) + 4*one
	for e := range m.entries() {
		n += idBound(e.ID)
	}
	return n
}

// idBound is the room that an id can take in a generation.
func idBound(id string) int { return len(id) + len(`"",`) + len("16384. ") }
