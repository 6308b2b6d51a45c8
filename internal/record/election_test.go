package record

import (
	"strings"
	"testing"
)

func TestP26_ACancelledWaitComesBack(t *testing.T) {
	t.Run("in the condition", func(t *testing.T) {
		b := &board{t: t}
		b.must(acquire("a.1", X))
		wait := b.wait("a.1", 2, "full")
		cancel, ok := wait.Undo()
		if !ok || !wait.WaitsAfterUndo() || !wait.Waits() || !cancel.MustComplete() {
			t.Fatalf("%+v, %v", cancel, ok)
		}
		b.must(wait, acquire("s.1", X), cancel, cancel)
		b.is("s.1 | a.2")
		b.must(b.unlock("s.1"), wait, cancel)
		b.is("a.2 | ")
		b.must(b.unlock("a.2"))
		b.is("absent")
	})
	t.Run("signalled already", func(t *testing.T) {
		b := waiting(t, Limits{}, "full", "a", "b")
		b.must(b.signal("s.1", 2, "full"))
		b.must(Op{Kind: KindLock, Verb: OpCancelWait, Holder: "a.1", ID: "a.2", Lease: "a", Token: Ticket(1, 0)})
		b.is("s.1 | a.2* | full: b.2")
	})
	t.Run("never written", func(t *testing.T) {
		b := waiting(t, Limits{}, "full", "a")
		b.must(b.signal("s.1", 2, "full"))
		late := b.wait("s.1", 3, "full")
		token := late.Token
		cancel, _ := late.Undo()
		b.must(cancel)
		b.is("s.3 | a.2*")
		if s, _ := b.rec.Holder("s.3"); s.Token != token || s.LastSignal != 0 {
			t.Errorf("%+v", s)
		}
		b.must(late) // it finds that it was done, and changes nothing
		b.is("s.3 | a.2*")
		b.must(b.unlock("s.3"))
		if v := b.do(late); v != "not the holder" {
			t.Error(v)
		}
		b.is("a.2* | ")
	})
	t.Run("of a hold that is gone", func(t *testing.T) {
		b := waiting(t, Limits{}, "full", "a")
		wait := b.wait("s.1", 2, "full")
		cancel, _ := wait.Undo()
		b.must(evict("s"))
		b.must(cancel)
		b.is(" |  | full: a.2")
		if st := b.rec.Standing(&wait); st.Standing != Gone {
			t.Errorf("%+v", st)
		}
		b.must(acquire("s.1", X), cancel) // which comes late, with another token
		b.is("s.1 |  | full: a.2")
	})
}

func TestP13_AnEarlierProclamationChangesNothing(t *testing.T) {
	b := &board{t: t}
	campaign := acquire("a.1", X)
	campaign.Value = Value{Set: true, Data: "a"}
	b.must(campaign)
	proclaim := func(seq uint64, value string) Op {
		op := b.ofHold(OpProclaim, "a.1", seq, "")
		op.Value = Value{Set: true, Data: value}
		return op
	}
	early, late := proclaim(2, "two"), proclaim(3, "three")
	b.must(late)
	if v := b.do(early); v != "applied" || b.rec.Facts().Value.Data != "three" {
		t.Errorf("%s: %+v", v, b.rec.Facts())
	}
	b.must(proclaim(4, ""))
	if f := b.rec.Facts(); !f.Value.Set || f.Value.Data != "" {
		t.Errorf("an empty value is a value: %+v", f)
	}
}

func TestP19_WhoHoldsNoMoreProclaimsNothing(t *testing.T) {
	b := &board{t: t}
	b.must(acquire("a.1", X), acquire("b.1", X))
	late := b.ofHold(OpProclaim, "a.1", 2, "")
	late.Value = Value{Set: true, Data: "I lead"}
	b.must(evict("a"))
	if v := b.do(late); v != "not the holder" {
		t.Error(v)
	}
	b.must(release("b.1"), acquire("a.1", X)) // a late acquire of the old id
	if v := b.do(late); v != "not the holder" || b.rec.Facts().Value.Set {
		t.Errorf("%s: %+v", v, b.rec.Facts())
	}
}

func TestP20_TermsRise(t *testing.T) {
	b := &board{t: t}
	term := uint64(0)
	for i := range 10 {
		a, other := ID("a", uint64(i+1)), ID("b", uint64(i+1))
		for _, id := range []string{a, other} {
			op := acquire(id, X)
			op.Value = Value{Set: true, Data: id}
			b.must(op)
		}
		for _, want := range []string{a, other} {
			leader := b.rec.Holders[0]
			if leader.ID != want || leader.Token <= term || b.rec.Facts().Value.Data != want {
				t.Fatalf("%+v after term %d", leader, term)
			}
			term = leader.Token
			b.must(evict(leader.Lease()))
		}
	}
}

func TestBadOperationsOfConditionsAndElections(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a")
	good := b.wait("s.1", 2, "full")
	good.Value.Set = true
	for why, change := range map[string]func(*Op){
		"no token":  func(op *Op) { op.Token = 0 },
		"bad id":    func(op *Op) { op.ID = "s" },
		"no holder": func(op *Op) { op.Holder = "" },
		"no condition, or no value": func(op *Op) {
			op.Queue, op.Value.Set = "", false
		},
		"a condition that is no text, or no value": func(op *Op) { op.Queue, op.Value.Set = "\xff", false },
		"a long name, or no value":                 func(op *Op) { op.Queue, op.Value.Set = strings.Repeat("x", maxQueueName+1), false },
	} {
		for _, verb := range []Verb{OpWait, OpSignal, OpProclaim} {
			op := good
			op.Verb = verb
			if change(&op); b.do(op) != "bad operation" {
				t.Errorf("%s with %s", verb, why)
			}
		}
	}
	good.Lease = "x"
	if v := b.do(good); v != "lease mismatch" {
		t.Error(v)
	}
	campaign := acquire("c.1", X)
	campaign.Value = Value{Set: true, Data: strings.Repeat("x", maxCampaign+1)}
	if v := b.do(campaign); v != "too large" {
		t.Error(v)
	}
	proclaim := b.ofHold(OpProclaim, "s.1", 2, "")
	proclaim.Value = Value{Set: true, Data: strings.Repeat("x", maxValue)}
	b.must(proclaim)
	proclaim.ID, proclaim.Value.Data = "s.3", proclaim.Value.Data+"x"
	if v := b.do(proclaim); v != "too large" {
		t.Error(v)
	}
	proclaim.Value.Data = ""
	b.must(proclaim)
	b.lim.MaxBytes = 4 << 10
	proclaim.ID = "s.4"
	proclaim.Value.Data = strings.Repeat("\x00", 1<<10) // six bytes each, in JSON
	if v := b.do(proclaim); v != "queue full" {
		t.Error(v)
	}
}
