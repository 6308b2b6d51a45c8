package record

import (
	"fmt"
	"strings"
	"testing"
)

func (s *site) enter(id string, parties int, gen uint64) Op {
	op := s.arrive(id, parties, gen)
	op.Kind, op.Verb = KindGate, OpEnter
	return op
}

func (s *site) leave(id string, seq uint64) Op {
	h, _ := s.rec.Holder(id)
	return Op{Kind: KindGate, Verb: OpLeave, ID: ID(LeaseOf(id), seq), Lease: LeaseOf(id), Holder: id, Token: h.Token}
}

// opened returns a gate of two that is open for a and b.
func opened(t *testing.T) (s *site, a, b Op) {
	s = newSite(t)
	a, b = s.enter("a.1", 2, 0), s.enter("b.1", 2, 0)
	s.must(a)
	s.stands(Waiting, 0, a)
	s.must(b)
	s.stands(Granted, 0, a, b)
	if f := s.rec.Facts(); !f.Open || f.Parties != 2 || f.Arrived != 2 || f.Gen != 2 || s.rec.Holders[0].Token != Ticket(s.rev, 0) {
		t.Fatalf("%+v", f)
	}
	return s, a, b
}

func TestGateOpensAndIsCleared(t *testing.T) {
	s, a, b := opened(t)
	late := s.enter("c.1", 2, 2)
	s.must(late)
	s.stands(Waiting, 0, late)
	leaveA := s.leave("a.1", 2)
	s.must(leaveA)
	s.must(leaveA) // again
	s.stands(Waiting, 0, leaveA, late)
	s.stands(Granted, 0, a, b)
	leaveB := s.leave("b.1", 7)
	s.must(leaveB)
	s.stands(Granted, 0, leaveA, leaveB)
	s.stands(Gone, 0, a, b)
	s.stands(Waiting, 0, late)
	if f := s.rec.Facts(); f.Open || f.Arrived != 1 || f.Gen != 3 || len(s.rec.Waiters) != 0 {
		t.Errorf("%+v", f)
	}
	s.must(s.enter("a.9", 2, 3))
	s.stands(Granted, 0, late)
	s.must(s.leave("c.1", 2))
	s.must(s.leave("a.9", 10))
	if s.rec != nil {
		t.Errorf("%s", s.rec.Append(nil))
	}
	s.stands(Granted, 0, leaveA) // there is no record
	if v := s.apply(leaveA); v != Applied || s.rec != nil {
		t.Error(v)
	}
}

// P8 and P25: the place of a party that dies while entering is free for another; a member that dies has left.
func TestGateLosesMembers(t *testing.T) {
	s := newSite(t)
	a, b := s.enter("a.1", 2, 0), s.enter("b.1", 2, 0)
	s.must(a)
	s.must(evict("a"))
	s.stands(Gone, 0, a)
	if s.rec != nil {
		t.Fatalf("%s", s.rec.Append(nil))
	}
	s.life = s.rev
	b.Life = s.life
	s.must(b)
	c := s.enter("c.1", 2, 1)
	s.must(c)
	s.stands(Granted, 0, b, c)

	s, _, _ = opened(t)
	for _, id := range []string{"c.1", "d.1", "e.1"} {
		s.must(s.enter(id, 2, 2))
	}
	s.must(evict("e"))
	leave := s.leave("a.1", 2)
	s.must(leave)
	s.stands(Waiting, 0, leave)
	s.must(evict("b"))
	s.stands(Granted, 0, leave, s.enter("c.1", 2, 2), s.enter("d.1", 2, 2)) // cleared, filled and opened at once
	if f := s.rec.Facts(); !f.Open || f.Arrived != 2 || f.Gen != 6 {
		t.Errorf("%+v", f)
	}
	s.must(Op{Verb: OpRelease, ID: "c.1"}) // leaves without waiting
	s.must(Op{Verb: OpRemove, ID: "d.1"})
	if s.rec != nil {
		t.Errorf("%s", s.rec.Append(nil))
	}
}

// P26: the gate doesn't open with a party that gave up, however late its enter comes; on an absent key,
// too, where a new marker shuts it out.
func TestP26_CancelShutsALateEnterOut(t *testing.T) {
	s := newSite(t)
	a, b := s.enter("a.1", 2, 0), s.enter("b.1", 2, 1)
	s.must(a)
	s.must(undoOf(t, b))
	s.stands(Gone, 0, b)
	if v := s.apply(b); v != Stale {
		t.Errorf("%s: %s", v, s.rec.Append(nil))
	}
	s.stands(Waiting, 0, a)
	s.must(undoOf(t, a)) // its entry goes, and the record with it
	if v := s.apply(a); v != OtherLife || s.rec != nil {
		t.Error(v)
	}

	s = newSite(t)
	before := s.rev
	s.must(undoOf(t, a))
	if s.rev == before || s.rec != nil {
		t.Fatal("nothing was written")
	}
	s.must(undoOf(t, a)) // again
	if v := s.apply(a); v != OtherLife || s.rec != nil {
		t.Error(v)
	}
	s.stands(Gone, 0, a)
}

// A cancel that commits after the gate opened is success: the others have counted on it.
func TestGateCancelAfterItOpened(t *testing.T) {
	s, a, b := opened(t)
	s.must(undoOf(t, a))
	s.stands(Granted, 0, a, b)
	c := s.enter("c.1", 2, 2)
	s.must(c)
	s.must(undoOf(t, c)) // it waits for the next time
	s.stands(Gone, 0, c)
	if v := s.apply(c); v != Stale {
		t.Error(v)
	}
	s.stands(Granted, 0, a, b)
}

// P16: an enter based on a gate that was used up, or made again, since enters nowhere.
func TestP16_GateOfAnotherLife(t *testing.T) {
	s, _, _ := opened(t)
	late := s.enter("late.1", 2, 2)
	s.must(s.leave("a.1", 2))
	s.must(s.leave("b.1", 2))
	if v := s.apply(late); v != OtherLife || s.rec != nil {
		t.Error(v)
	}
	s.life = s.rev
	s.must(s.enter("c.1", 3, 0)) // with another number of parties: the gate was unused
	if v := s.apply(late); v != OtherLife {
		t.Error(v)
	}
	if v := s.apply(s.enter("d.1", 2, 1)); v != SizeMismatch {
		t.Error(v)
	}
}

func TestGateRefuses(t *testing.T) {
	s, _, _ := opened(t)
	wrong := s.leave("a.1", 2)
	wrong.Token++
	if v := s.apply(wrong); v != NotHolder {
		t.Error(v)
	}
	s = newSite(t)
	s.must(s.enter("a.1", 2, 0))
	if v := s.apply(s.leave("a.1", 2)); v != NotHolder { // it isn't in
		t.Error(v)
	}
	if v := s.apply(s.enter("b.1", 2, 7)); v != Stale {
		t.Error(v)
	}
	s.lim.MaxHolders = 2
	if v := s.apply(s.enter("c.1", 3, 1)); v != SizeMismatch {
		t.Error(v)
	}
	s = newSite(t)
	s.lim.MaxHolders = 2
	if v := s.apply(s.enter("c.1", 3, 0)); v != QueueFull || s.rec != nil {
		t.Error(v)
	}
}

// P22, of a gate: members don't observe leases, and a member that has left waits under the id of its leave.
func TestP22_WhoLooksAtAGate(t *testing.T) {
	s := newSite(t)
	for i := range 5 {
		s.must(s.enter(fmt.Sprintf("m%d.1", i), 5, 1))
	}
	look := func(who string, wantNext bool) (leases []string) {
		t.Helper()
		seq, next := s.rec.Ahead(func(id string) bool { return id == who })
		for lease := range seq {
			leases = append(leases, lease)
		}
		if next != wantNext {
			t.Errorf("%s is next: %v", who, next)
		}
		return leases
	}
	s.must(s.leave("m3.1", 9))
	s.must(s.enter("w.1", 5, 2))
	if got := strings.Join(look("m3.9", true), " "); got != "m0 m1 m2 m3 m4 w" {
		t.Errorf("who has left looks after %s", got)
	}
	if got := strings.Join(look("w.1", false), " "); got != "m0 m1 m2 m3 m4 w" {
		t.Errorf("who waits outside looks after %s", got)
	}
	if got := look("m0.1", false); got != nil {
		t.Errorf("who is inside looks after %s", got)
	}
}

// An enter that a write refuses for good stays refused if another party enters in the same write.
func TestP26_CancelBesideAnotherEnter(t *testing.T) {
	s := newSite(t)
	a, b := s.enter("a.1", 2, 0), s.enter("b.1", 2, 0)
	if v := s.apply(undoOf(t, a), b); v != Stale {
		t.Errorf("%s: %s", v, s.rec.Append(nil))
	}
	if v := s.apply(a); v != OtherLife || s.rec != nil {
		t.Errorf("%s: %s", v, s.rec.Append(nil))
	}
}
