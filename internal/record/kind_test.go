package record

import (
	"reflect"
	"testing"
	"time"
)

// other is a second kind.
const other Kind = "other"

type otherRules struct{ lockRules }

// storedForm is the stored form of r, of an idle record as another hand may have left it.
func storedForm(r *Record) []byte {
	if r.Idle() {
		r = &Record{Kind: KindLock}
	}
	return r.Append(nil)
}

func withOther(t *testing.T) {
	t.Helper()
	kinds[other] = otherRules{}
	t.Cleanup(func() { delete(kinds, other) })
}

func TestWrongKindIsLeftAlone(t *testing.T) {
	withOther(t)
	held, _, _ := Apply(nil, 0, []Op{acquire("a.1", X)}, Limits{})
	held.Resolve(3)
	foreign := acquire("b.1", X)
	foreign.Kind = other
	next, results, changed := Apply(held, 3, []Op{foreign}, Limits{})
	if changed || results[0].Verdict != WrongKind || !reflect.DeepEqual(next, held) {
		t.Errorf("%+v, %v, %v", next, results, changed)
	}
	// An unused name is free for any kind, also within one write.
	next, results, changed = Apply(held, 3, []Op{release("a.1"), foreign}, Limits{})
	if !changed || results[1].Verdict != Applied || next.Kind != other || len(next.Holders) != 1 {
		t.Errorf("%+v, %v, %v", next, results, changed)
	}
	// A record of an unknown kind is never idle.
	if unknown := (&Record{Kind: "unknown"}); unknown.Idle() {
		t.Error("a record of an unknown kind looks idle")
	} else if _, results, changed = Apply(unknown, 3, []Op{foreign, {Verb: OpRevoke}}, Limits{}); changed || results[0].Verdict != WrongKind || results[1].Verdict != WrongKind {
		t.Errorf("%v, %v", results, changed)
	}
}

// The verbs that every kind has name none, and are carried out by the rules of the kind that is there.
func TestCommonVerbsNeedNoKind(t *testing.T) {
	withOther(t)
	op := acquire("a.1", X)
	op.Kind = other
	next := op
	next.ID = "a.2"
	held, _, _ := Apply(nil, 0, []Op{op, next}, Limits{})
	for _, op := range []Op{{Verb: OpRelease, ID: "a.1"}, {Verb: OpEvict, Leases: []string{"a"}}, {Verb: OpRemove, ID: "a.1"}, {Verb: OpRevoke, ID: "a.1"}} {
		if _, results, changed := Apply(held, 1, []Op{op}, Limits{}); !changed || results[0].Verdict != Applied {
			t.Errorf("%s: %v, %v", op.Verb, changed, results)
		}
		if rec, results, changed := Apply(nil, 0, []Op{op}, Limits{}); changed || results[0].Verdict != Applied || !rec.Idle() {
			t.Errorf("%s of nothing: %v, %v", op.Verb, changed, results)
		}
	}
	for _, op := range []Op{{Verb: OpAcquire, ID: "a.1", Lease: "a", Mode: X, TTL: ttl}, {Kind: "unknown", Verb: OpRelease, ID: "a.1"}} {
		if _, results, _ := Apply(held, 1, []Op{op}, Limits{}); results[0].Verdict != BadOp {
			t.Errorf("%s of kind %q: %s", op.Verb, op.Kind, results[0].Verdict)
		}
	}
}

// A record that became idle within a write is gone for later operations of that write, as it would be in the
// next one: a later operation makes a new one, with another life.
func TestIdleWithinOneWriteIsGone(t *testing.T) {
	take := func(id string, size int) Op {
		return Op{Kind: KindSemaphore, Verb: OpAcquire, ID: id, Lease: LeaseOf(id), TTL: ttl, N: 1, Limit: size}
	}
	first := take("a.1", 2)
	giveUp, _ := first.Undo()
	resize := Op{Kind: KindSemaphore, Verb: OpResize, N: 1, Limit: 2}

	next, results, _ := Apply(nil, 0, []Op{giveUp, resize}, Limits{})
	if f := next.Facts(); results[1].Verdict != Applied || f.Size != 1 || f.Initial != 2 {
		t.Errorf("resized behind what found nothing: %s: %s", results[1].Verdict, next.Append(nil))
	}
	next, results, _ = Apply(nil, 0, []Op{take("a.1", 2), giveUp, take("b.1", 3)}, Limits{})
	if results[2].Verdict != Applied || next.Facts().Size != 3 {
		t.Errorf("made with another size: %s: %s", results[2].Verdict, next.Append(nil))
	}

	sized, _, _ := Apply(nil, 0, []Op{resize}, Limits{})
	sized.Resolve(4)
	late := resize
	late.N, late.Base = 7, sized.Facts().Sized
	next, results, _ = Apply(sized, 4, []Op{{Kind: KindSemaphore, Verb: OpDelete}, take("b.1", 3), late}, Limits{})
	if f := next.Facts(); results[1].Verdict != Applied || results[2].Verdict != OtherLife || f.Size != 3 || next.Life != 4 {
		t.Errorf("deleted and made anew: %v: %s", results, next.Append(nil))
	}
}

// outlivedRules are of records that are kept for an hour after their last use.
type outlivedRules struct{ lockRules }

func (outlivedRules) idle(r *Record) bool                        { return len(r.Holders) > 1 }
func (outlivedRules) outlived(_ *Record, age time.Duration) bool { return age >= time.Hour }

// P15: a sweep deletes only the revision that was found to be old, and only without entries.
func TestP15_SweepTakesOnlyWhatItHasSeen(t *testing.T) {
	const kept Kind = "kept"
	kinds[kept] = outlivedRules{}
	t.Cleanup(func() { delete(kinds, kept) })
	old := &Record{Kind: kept}
	if old.Outlived(time.Hour-1) || !old.Outlived(time.Hour) || (*Record)(nil).Outlived(time.Hour) || (&Record{Kind: KindLock}).Outlived(1<<62) {
		t.Error("age")
	}
	sweep := Op{Verb: OpSweep, Base: 7}
	next, results, changed := Apply(old, 7, []Op{sweep}, Limits{})
	if results[0].Verdict != Applied || !changed || !next.Idle() {
		t.Errorf("%v, %v", results, changed)
	}
	if _, results, changed = Apply(nil, 9, []Op{sweep}, Limits{}); results[0].Verdict != Applied || changed {
		t.Errorf("again: %v, %v", results, changed)
	}
	if _, results, changed = Apply(old, 8, []Op{sweep}, Limits{}); results[0].Verdict != Stale || changed {
		t.Errorf("written since: %v, %v", results, changed)
	}
	arrived := acquire("a.1", X)
	arrived.Kind = kept
	next, results, _ = Apply(old, 7, []Op{arrived, sweep}, Limits{})
	if results[1].Verdict != Stale || len(next.Holders) != 1 || next.Outlived(time.Hour) {
		t.Errorf("beside an arrival: %v, %+v", results, next)
	}
	if _, results, changed = Apply(&Record{Kind: KindLock, Holders: next.Holders}, 7, []Op{sweep}, Limits{}); results[0].Verdict != Stale || changed {
		t.Errorf("of a kind that is never swept: %v, %v", results, changed)
	}
}
