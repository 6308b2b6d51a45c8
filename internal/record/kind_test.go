package record

import (
	"reflect"
	"testing"
)

// other is a second kind, of records that need a newer schema.
const other Kind = "other"

type otherRules struct{ lockRules }

func (otherRules) schema(*Record) uint64 { return 7 }

// storedForm is the stored form of r, of an idle record as another hand may have left it.
func storedForm(r *Record) []byte {
	if r.Idle() {
		r = New(KindLock)
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
	// A name that nobody uses is free for any kind, also within one write.
	next, results, changed = Apply(held, 3, []Op{release("a.1"), foreign}, Limits{})
	if !changed || results[1].Verdict != Applied || next.Kind != other || len(next.Holders) != 1 {
		t.Errorf("%+v, %v, %v", next, results, changed)
	}
	// What this version doesn't know is never taken to be idle.
	if unknown := New("unknown"); unknown.Idle() {
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

// A record states the lowest schema that its content needs: a newer kind makes only its own records
// unreadable to an older client.
func TestRecordStatesTheSchemaItNeeds(t *testing.T) {
	if stored := string(New(KindLock).Append(nil)); stored != `{"v":1,"kind":"lock"}` {
		t.Error(stored)
	}
	withOther(t)
	if stored := string(New(other).Append(nil)); stored != `{"v":7,"kind":"other"}` {
		t.Error(stored)
	}
}
