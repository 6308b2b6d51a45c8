package record

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// barrierOracle keeps every generation, and only the parties of each.
type barrierOracle struct {
	parties int
	all     []*oracleGen // the last one forms
	acting  *oracleGen
}

type oracleGen struct {
	came     []string        // all parties, in order of arrival
	there    []string        // the parties that are still there
	actors   map[string]bool // parties with an action
	over     bool
	why      string
	complete bool // all parties came
}

func newBarrierOracle(parties int) *barrierOracle {
	return &barrierOracle{parties: parties, all: []*oracleGen{{actors: map[string]bool{}}}}
}

func (o *barrierOracle) clone() *barrierOracle {
	c := newBarrierOracle(o.parties)
	c.all = nil
	for _, g := range o.all {
		k := *g
		k.came, k.there, k.actors = slices.Clone(g.came), slices.Clone(g.there), maps.Clone(g.actors)
		c.all = append(c.all, &k)
		if g == o.acting {
			c.acting = &k
		}
	}
	return c
}

func (o *barrierOracle) forms() *oracleGen { return o.all[len(o.all)-1] }

func (o *barrierOracle) next() { o.all = append(o.all, &oracleGen{actors: map[string]bool{}}) }

func (o *barrierOracle) breakForms(why string) {
	o.forms().over, o.forms().why = true, why
	o.next()
}

func (o *barrierOracle) end(why string) {
	o.acting.over, o.acting.why = true, why
	o.acting = nil
}

// goOn completes generations that can be completed.
func (o *barrierOracle) goOn() {
	for g := o.forms(); o.acting == nil && len(g.there) == o.parties; g = o.forms() {
		g.came, g.complete = slices.Clone(g.there), true
		if o.next(); g.actors[g.there[o.parties-1]] {
			o.acting = g
		} else {
			g.over = true
		}
	}
}

func (o *barrierOracle) apply(op Op) Verdict {
	gen := int(op.Gen)
	switch op.Verb {
	case OpArrive, OpArriveToAct:
		g := o.forms()
		switch {
		case gen <= len(o.all) && slices.Contains(o.all[gen-1].came, op.ID) && (o.all[gen-1].over || o.all[gen-1].complete || slices.Contains(o.all[gen-1].there, op.ID)):
			return Applied
		case gen != len(o.all), o.acting != nil && len(g.there) == o.parties:
			return Stale
		}
		g.came, g.there = append(g.came, op.ID), append(g.there, op.ID)
		g.actors[op.ID] = op.Verb == OpArriveToAct
	case OpCancel:
		if gen == len(o.all) {
			o.breakForms(WhyCancelled)
		}
	case OpReset:
		if gen != len(o.all) {
			return Stale
		}
		if len(o.forms().there) > 0 {
			o.breakForms(WhyReset)
		}
	case OpTrip:
		if o.acting != nil && o.acting.came[o.parties-1] == op.Holder {
			if o.end(""); op.Fail {
				o.all[gen-1].why = WhyFailed
			}
			break
		}
		for _, g := range o.all {
			if g.over && g.complete && g.came[o.parties-1] == op.Holder {
				if g.why != "" && !op.Fail {
					return Broken
				}
				return Applied
			}
		}
		return NotHolder
	case OpEvict:
		dead := func(id string) bool { return slices.Contains(op.Leases, LeaseOf(id)) }
		ran := o.acting != nil
		if ran && dead(o.acting.came[o.parties-1]) {
			o.end(WhyDied)
		}
		g := o.forms()
		left := slices.DeleteFunc(slices.Clone(g.there), dead)
		if !ran && len(left) < len(g.there) {
			o.breakForms(WhyDied)
		} else {
			g.came, g.there = slices.Clone(left), left // they came early, and leave nothing behind
		}
	}
	o.goOn()
	return Applied
}

// stands returns the state of an id that named a generation.
func (o *barrierOracle) stands(id string, gen int) (Standing, Verdict) {
	if gen > len(o.all) || !slices.Contains(o.all[gen-1].came, id) {
		return Gone, 0
	}
	switch g := o.all[gen-1]; {
	case g.over && g.why != "":
		return Refused, Broken
	case g.over, g == o.acting && g.came[o.parties-1] == id:
		return Granted, 0
	}
	return Waiting, 0
}

// TestP5_BarrierSchedules holds barriers against the oracle in every committed record: all of a generation are told the
// same, whatever was retried, lost, late or applied together.
func TestP5_BarrierSchedules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parties := rapid.IntRange(1, 4).Draw(t, "parties")
		o := newBarrierOracle(parties)
		var rec *Record
		rev := uint64(10)
		used := map[string]int{} // ids, and the generation that they named
		var sent []Op
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			var ops []Op
			for range rapid.IntRange(1, 3).Draw(t, "ops") {
				op := anyBarrierOp(t, o, rec, parties, used, sent)
				ops, sent = append(ops, op), append(sent, op)
			}
			next, results, changed := Apply(rec, rev, ops, Limits{})
			model := o.clone()
			for i, op := range ops {
				if want := model.apply(op); results[i].Verdict != want {
					t.Fatalf("%s %s of %d: %s, the oracle says %s\n%s", op.Verb, op.ID, op.Gen, results[i].Verdict, want, rec.Append(nil))
				}
			}
			if !changed || rapid.IntRange(0, 4).Draw(t, "lost") == 0 {
				continue
			}
			rev++
			stored := next.Append(nil)
			back, err := Decode(stored)
			if err != nil || string(back.Append(nil)) != string(stored) {
				t.Fatalf("%v: %s", err, stored)
			}
			back.Resolve(rev)
			rec, o = back, model
			checkBarrier(t, o, rec, used)
		}
	})
}

func anyBarrierOp(t *rapid.T, o *barrierOracle, rec *Record, parties int, used map[string]int, sent []Op) Op {
	if len(sent) > 0 && rapid.IntRange(0, 3).Draw(t, "again") == 0 {
		op := rapid.SampledFrom(sent).Draw(t, "which")
		if op.Verb != OpReset { // whose retry is told from another's by what broke
			return op
		}
	}
	lease := rapid.SampledFrom([]string{"A", "B", "C", "D", "E"}).Draw(t, "lease")
	op := Op{Kind: KindBarrier, Lease: lease, ID: ID(lease, uint64(len(sent)+1)), TTL: ttl, Limit: parties, Gen: uint64(len(o.all)), Life: 10}
	if rapid.IntRange(0, 5).Draw(t, "late") == 0 {
		op.Gen = rapid.Uint64Range(1, op.Gen).Draw(t, "of")
	}
	switch op.Verb = rapid.SampledFrom([]Verb{OpArrive, OpArrive, OpArrive, OpArriveToAct, OpArriveToAct, OpCancel, OpReset, OpTrip, OpTrip, OpEvict}).Draw(t, "verb"); op.Verb {
	case OpArrive, OpArriveToAct:
		used[op.ID] = int(op.Gen)
	case OpCancel:
		if ids := slices.Sorted(maps.Keys(used)); len(ids) > 0 {
			id := rapid.SampledFrom(ids).Draw(t, "of")
			op.ID, op.Lease, op.Gen = id, LeaseOf(id), uint64(used[id])
		}
	case OpTrip:
		if rec == nil || len(rec.Holders) == 0 {
			op.Verb = OpReset
			break
		}
		h := rec.Holders[0]
		op.ID, op.Lease, op.Holder, op.Token, op.Gen = h.ID, h.Lease(), h.ID, h.Token, h.Gen
		op.Fail = rapid.Bool().Draw(t, "fail")
	case OpEvict:
		return Op{Verb: OpEvict, Leases: []string{lease, "F"}}
	}
	return op
}

func checkBarrier(t *rapid.T, o *barrierOracle, rec *Record, used map[string]int) {
	f := rec.Facts()
	if int(f.Gen) != len(o.all) || f.Arrived != len(o.forms().there) || f.Acting != (o.acting != nil) || len(rec.Holders) > 1 {
		t.Fatalf("%+v, the oracle says %d arrived of %d: %s", f, len(o.forms().there), len(o.all), rec.Append(nil))
	}
	for id, gen := range used {
		op := Op{Kind: KindBarrier, Verb: OpArrive, ID: id, Lease: LeaseOf(id), Limit: o.parties, Gen: uint64(gen), Life: 10}
		want, why := o.stands(id, gen)
		if st := rec.Standing(&op); st.Standing != want || st.Why != why {
			t.Fatalf("%s of %d stands as %d %s, the oracle says %d %s: %s", id, gen, st.Standing, st.Why, want, why, rec.Append(nil))
		}
	}
	for _, e := range f.Ended {
		if g := o.all[e.Gen-1]; e.Broken != (g.why != "") || e.Why != g.why || !e.Broken && !slices.Equal(e.IDs, g.came) {
			t.Fatalf("%+v, the oracle says %+v", e, g)
		}
	}
}
