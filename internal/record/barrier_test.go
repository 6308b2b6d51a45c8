package record

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

// site is a key of a bucket, on which each operation is a write of its own.
type site struct {
	t    *testing.T
	rec  *Record
	rev  uint64
	lim  Limits
	life uint64 // of the record that the clients have read
}

func newSite(t *testing.T) *site { return &site{t: t, rev: 100, life: 100} }

// apply applies operations in one write, and returns the verdict of the last one.
func (s *site) apply(ops ...Op) Verdict {
	s.t.Helper()
	next, results, changed := Apply(s.rec, s.rev, ops, s.lim)
	if changed {
		s.rev++
		next.Resolve(s.rev)
		if s.rec = next; next.Idle() {
			s.rec = nil
		}
	}
	if s.rec != nil {
		stored := s.rec.Append(nil)
		back, err := Decode(stored)
		if err != nil || string(back.Append(nil)) != string(stored) {
			s.t.Fatalf("%s came back as %s, %v", stored, back.Append(nil), err)
		}
		s.rec = back
	}
	return results[len(results)-1].Verdict
}

func (s *site) must(ops ...Op) {
	s.t.Helper()
	if v := s.apply(ops...); v != Applied {
		s.t.Fatalf("%s %s: %s", ops[len(ops)-1].Verb, ops[len(ops)-1].ID, v)
	}
}

// stands checks the states of operations.
func (s *site) stands(want Standing, why Verdict, ops ...Op) {
	s.t.Helper()
	for i := range ops {
		if st := s.rec.Standing(&ops[i]); st.Standing != want || st.Why != why {
			s.t.Errorf("%s %s stands as %d %s, want %d %s: %s", ops[i].Verb, ops[i].ID, st.Standing, st.Why, want, why, s.rec.Append(nil))
		}
	}
}

func (s *site) arrive(id string, parties int, gen uint64) Op {
	return Op{Kind: KindBarrier, Verb: OpArrive, ID: id, Lease: LeaseOf(id), TTL: ttl, Limit: parties, Gen: gen, Life: s.life}
}

func (s *site) toAct(id string, parties int, gen uint64) Op {
	op := s.arrive(id, parties, gen)
	op.Verb = OpArriveToAct
	return op
}

func (s *site) trip(id string, fail bool) Op {
	h, _ := s.rec.Holder(id)
	return Op{Kind: KindBarrier, Verb: OpTrip, ID: LeaseOf(id) + ".999", Lease: LeaseOf(id), Holder: id, Token: h.Token, Fail: fail}
}

func (s *site) reset(id string, parties int, gen uint64) Op {
	return Op{Kind: KindBarrier, Verb: OpReset, ID: id, Lease: LeaseOf(id), Limit: parties, Gen: gen, Life: s.life}
}

func undoOf(t *testing.T, op Op) Op {
	t.Helper()
	undo, ok := op.Undo()
	if !ok {
		t.Fatal(op.Verb, "has no undo")
	}
	return undo
}

// P4: the last party lost its answer, and all parties arrive again at once: the retry is of
// the generation that it named.
func TestP4_RetryOfArriveCountsInNoLaterGeneration(t *testing.T) {
	s := newSite(t)
	a, b := s.arrive("a.1", 3, 0), s.arrive("b.1", 3, 0)
	last := s.arrive("c.1", 3, 1)
	s.must(a)
	s.must(b)
	s.must(last)
	a2 := s.arrive("a.2", 3, 2)
	s.must(a2)
	s.must(last) // again
	s.must(last)
	s.stands(Granted, 0, a, b, last)
	s.stands(Waiting, 0, a2)
	if f := s.rec.Facts(); f.Arrived != 1 || f.Gen != 2 {
		t.Errorf("%+v", f)
	}
	// A first arrival for a generation that has ended counts nowhere.
	if v := s.apply(s.arrive("d.1", 3, 1)); v != Stale || s.rec.Facts().Arrived != 1 {
		t.Errorf("%s, %+v", v, s.rec.Facts())
	}
}

// P5 and P6 are tested with all schedules, in barrierschedule_test.go.

// P6: three clients on a barrier of two; one asks four generations later, and each learns the outcome of its own.
func TestP6_OutcomeIsOfTheGeneration(t *testing.T) {
	s := newSite(t)
	var broken, tripped []Op
	for gen := uint64(1); gen <= 8; gen += 2 {
		a, b := s.arrive(ID("a", gen), 2, gen), s.arrive(ID("b", gen), 2, gen)
		s.must(a)
		s.must(b)
		tripped = append(tripped, a, b)
		c := s.arrive(ID("c", gen+1), 2, gen+1)
		s.must(c)
		s.must(undoOf(t, c))
		broken = append(broken, c)
	}
	s.stands(Granted, 0, tripped...)
	s.stands(Refused, Broken, broken...)
	s.stands(Gone, 0, s.arrive("d.1", 2, 3)) // it never arrived
	for i, e := range s.rec.Facts().Ended {
		if e.Gen != uint64(i+1) || e.Broken != (i%2 == 1) || e.Broken && (e.Why != WhyCancelled || e.Who != e.IDs[0]) {
			t.Errorf("%+v", e)
		}
	}
}

// P6, P15: outcomes are kept for up to 1,024 ids; an outcome that was dropped is never "not arrived".
func TestP6_ForgottenIsNotDenied(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var first Op
	for gen := uint64(1); gen <= 600; gen++ {
		a, b := s.arrive(ID("a", gen), 2, gen), s.arrive(ID("b", gen), 2, gen)
		if gen == 1 {
			first = a
		}
		s.must(a)
		s.must(b)
		if gen == 512 {
			s.stands(Granted, 0, first)
		}
	}
	s.stands(Refused, Forgotten, first)
	if v := s.apply(first); v != Forgotten {
		t.Error(v)
	}
	if n := len(s.rec.Facts().Ended); n != 512 {
		t.Errorf("%d generations are kept", n)
	}
	if n := len(s.rec.Append(nil)); n > 20<<10 {
		t.Errorf("%d bytes", n)
	}
	// At least the generations that this write ended are kept: 1,024 at once, twice.
	s = newSite(t)
	var ops []Op
	for i := range MaxParties {
		ops = append(ops, s.arrive(fmt.Sprintf("l%d.1", i), MaxParties, 1))
	}
	late := s.arrive("late.1", MaxParties, 2)
	s.must(append(slices.Clone(ops), late, undoOf(t, late))...)
	s.stands(Granted, 0, ops...)
	s.stands(Refused, Broken, late)
}

// P7: a cancel that commits after the trip is success; before it, it breaks.
func TestP7_CancelAndTrip(t *testing.T) {
	s := newSite(t)
	a, b := s.arrive("a.1", 2, 1), s.arrive("b.1", 2, 1)
	s.must(a)
	s.must(b)
	s.must(undoOf(t, a))
	s.stands(Granted, 0, a, b, undoOf(t, a))
	if f := s.rec.Facts(); f.Gen != 2 || len(f.Ended) != 1 || f.Ended[0].Broken {
		t.Errorf("%+v", f)
	}

	s = newSite(t)
	s.must(a)
	s.must(undoOf(t, a))
	if v := s.apply(b); v != Stale {
		t.Error(v)
	}
	s.stands(Refused, Broken, a)
	b.Gen, b.ID = 2, "b.2"
	s.must(b)
	s.stands(Waiting, 0, b)

	// In one write, too.
	s = newSite(t)
	b = s.arrive("b.1", 2, 1)
	s.must(a, b, undoOf(t, a))
	s.stands(Granted, 0, a, b)
}

// P8: two dead parties, in one write or one after the other, break their generation and no other.
func TestP8_EvictionBreaksOnce(t *testing.T) {
	s := newSite(t)
	var ops []Op
	for _, id := range []string{"a.1", "b.1", "c.1", "d.1"} {
		ops = append(ops, s.arrive(id, 5, 1))
		s.must(ops[len(ops)-1])
	}
	s.must(evict("b", "d"))
	s.stands(Refused, Broken, ops...)
	again := s.arrive("a.2", 5, 2)
	s.must(again)
	s.must(evict("b", "d"))
	s.must(evict("b"))
	s.stands(Waiting, 0, again)
	if f := s.rec.Facts(); len(f.Ended) != 1 || f.Ended[0].Why != WhyDied || f.Ended[0].Who != "b" || len(f.Ended[0].IDs) != 4 || f.Gen != 2 {
		t.Errorf("%+v", f)
	}
	// A generation that has passed stays.
	s = newSite(t)
	s.must(s.arrive("a.1", 1, 1))
	s.must(evict("a"))
	if f := s.rec.Facts(); f.Gen != 2 || f.Ended[0].Broken {
		t.Errorf("%+v", f)
	}
}

// P13: a late reset breaks no other generation.
func TestP13_LateResetIsRefused(t *testing.T) {
	s := newSite(t)
	if s.must(s.reset("x.1", 2, 0)); s.rec != nil {
		t.Errorf("a reset of nothing left %s", s.rec.Append(nil))
	}
	a := s.arrive("a.1", 2, 1)
	s.must(a)
	s.must(s.reset("x.2", 2, 1))
	s.stands(Refused, Broken, a)
	b := s.arrive("b.1", 2, 2)
	s.must(b)
	s.must(s.reset("x.2", 2, 1)) // its retry breaks no other generation
	if v := s.apply(s.reset("x.3", 2, 1)); v != Stale {
		t.Error(v)
	}
	if v := s.apply(s.reset("x.3", 3, 2)); v != SizeMismatch {
		t.Error(v)
	}
	s.stands(Waiting, 0, b)
}

func TestBarrierPartiesDiffer(t *testing.T) {
	s := newSite(t)
	s.must(s.arrive("a.1", 2, 1))
	wrong := s.arrive("b.1", 3, 1)
	if _, results, _ := Apply(s.rec, s.rev, []Op{wrong}, s.lim); results[0].Verdict != SizeMismatch || results[0].Have != 2 {
		t.Errorf("%+v", results)
	}
	s.must(undoOf(t, wrong)) // breaks no generation
	if f := s.rec.Facts(); f.Gen != 1 || f.Arrived != 1 {
		t.Errorf("%+v", f)
	}
}

func TestBarrierDelete(t *testing.T) {
	s := newSite(t)
	del := Op{Kind: KindBarrier, Verb: OpDelete, Life: s.life}
	a := s.arrive("a.1", 2, 1)
	s.must(a)
	if v := s.apply(del); v != InUse {
		t.Error(v)
	}
	s.must(s.arrive("b.1", 2, 1))
	if s.must(del); s.rec != nil {
		t.Errorf("%s", s.rec.Append(nil))
	}
	if v := s.apply(del); v != OtherLife { // the marker is a newer life's
		t.Error(v)
	}
}

// P16: an arrival based on a record that was deleted, or made again, since counts nowhere.
func TestP16_BarrierOfAnotherLife(t *testing.T) {
	s := newSite(t)
	a := s.arrive("a.1", 1, 1)
	s.must(a)
	late := s.arrive("late.1", 2, 1)
	s.must(Op{Kind: KindBarrier, Verb: OpDelete, Life: s.life})
	for _, op := range []Op{late, s.reset("x.1", 2, 1), undoOf(t, late)} {
		if v := s.apply(op); v != OtherLife || s.rec != nil {
			t.Errorf("%s on an absent key: %s", op.Verb, v)
		}
	}
	old := s.life
	s.life = s.rev
	b := s.arrive("b.1", 2, 0)
	s.must(b)
	if v := s.apply(late); v != OtherLife {
		t.Error(v)
	}
	s.stands(Waiting, 0, b)
	s.life = old
	s.stands(Refused, OtherLife, a) // it tripped, but the record does not know that any more
	// Two first users at once both arrive.
	s = newSite(t)
	s.must(s.arrive("a.1", 2, 0))
	s.must(s.arrive("b.1", 2, 0))
	if f := s.rec.Facts(); f.Gen != 2 {
		t.Errorf("%+v", f)
	}
}

// P26: an arrive that is cancelled before it is there is shut out, on an absent key too.
func TestP26_CancelShutsALateArriveOut(t *testing.T) {
	for _, others := range []bool{false, true} {
		s := newSite(t)
		if others {
			s.must(s.arrive("o.1", 3, 1))
		}
		a := s.arrive("a.1", 3, 0)
		s.must(undoOf(t, a))
		s.stands(Gone, 0, a)
		if v := s.apply(a); v != Stale || s.rec.Facts().Arrived != 0 {
			t.Errorf("others %v: the late one is %s: %s", others, v, s.rec.Append(nil))
		}
	}
}

// A release, of an entry that its process knows nothing of, is a party that leaves.
func TestBarrierRelease(t *testing.T) {
	s := newSite(t)
	a, b := s.arrive("a.1", 3, 1), s.arrive("b.1", 3, 1)
	s.must(a)
	s.must(b)
	s.must(Op{Verb: OpRelease, ID: "a.1"})
	s.stands(Refused, Broken, a, b)
	s, a, b, c := acting(t)
	s.must(Op{Verb: OpRelease, ID: "c.1"})
	s.stands(Refused, Broken, a, b, c)
	s, a, b, _ = acting(t)
	s.must(Op{Verb: OpRemove})
	s.stands(Refused, Broken, a, b)
	if e := s.rec.Facts().Ended[0]; e.Why != WhyRemoved {
		t.Errorf("%+v", e)
	}
}

func TestBarrierOutlivesItsUse(t *testing.T) {
	s := newSite(t)
	s.must(s.arrive("a.1", 2, 1))
	if s.rec.Outlived(math.MaxInt64) {
		t.Error("somebody waits")
	}
	s.must(s.arrive("b.1", 2, 1))
	if s.rec.Outlived(time.Hour-1) || !s.rec.Outlived(time.Hour) {
		t.Error("an hour")
	}
	s.must(Op{Verb: OpSweep, Base: s.rev})
	if s.rec != nil {
		t.Errorf("%s", s.rec.Append(nil))
	}
}

// The parties have to find the outcome of their generation in the write that ended it.
func TestP6_NotDeletedInTheWriteThatEndsAGeneration(t *testing.T) {
	for _, op := range []Op{{Kind: KindBarrier, Verb: OpDelete, Life: 100}, {Verb: OpSweep}} {
		s := newSite(t)
		a, b := s.arrive("a.1", 2, 1), s.arrive("b.1", 2, 1)
		op.Base = s.rev
		if v := s.apply(a, b, op); v != Stale {
			t.Errorf("%s: %s", op.Verb, v)
		}
		s.stands(Granted, 0, a, b)
	}
}
