package record

import (
	"fmt"
	"strings"
	"testing"
)

func convert(holder string, seq uint64, mode Mode) Op {
	lease := LeaseOf(holder)
	return Op{Kind: KindLock, Verb: OpConvert, ID: ID(lease, seq), Lease: lease, Holder: holder, Mode: mode}
}

// coverTable says which modes each mode covers, written out.
var coverTable = map[Mode]string{IS: "IS", IX: "IS IX", S: "IS S", SIX: "IS IX S SIX U", U: "IS S U", X: "IS IX S SIX U X"}

func covered(a, b Mode) bool { return strings.Contains(" "+coverTable[a]+" ", " "+b.String()+" ") }

func TestCoversAndMeet(t *testing.T) {
	for a := IS; a <= X; a++ {
		for b := IS; b <= X; b++ {
			if a.Covers(b) != covered(a, b) || a.Covers(b) != oracleCovers(a, b) {
				t.Errorf("%s.Covers(%s) = %v", a, b, a.Covers(b))
			}
			meet := Meet(a, b)
			if !covered(a, meet) || !covered(b, meet) || meet != Meet(b, a) {
				t.Errorf("Meet(%s, %s) = %s", a, b, meet)
			}
			for m := IS; m <= X; m++ {
				if covered(a, m) && covered(b, m) && !covered(meet, m) {
					t.Errorf("Meet(%s, %s) = %s, which does not cover %s", a, b, meet, m)
				}
			}
		}
		if a.Covers(None) || None.Covers(a) || a.Covers(X+1) || Meet(a, None) != None || Meet(X+1, a) != None {
			t.Errorf("%s and what is no mode", a)
		}
	}
}

// Every conversion beside every other holder, with the result of its undo: 6 x 6 x 7.
func TestEveryConversion(t *testing.T) {
	for from := IS; from <= X; from++ {
		for to := IS; to <= X; to++ {
			for other := None; other <= X; other++ {
				base, rev := after(t, Limits{}, acquire("a.1", from))
				if other != None {
					if !oracleCompatible(from, other) {
						continue
					}
					base, _, _ = Apply(base, rev, []Op{acquire("b.1", other)}, Limits{})
					rev++
				}
				why := fmt.Sprintf("%s to %s beside %s", from, to, other)
				next, results, changed := Apply(base, rev, []Op{convert("a.1", 2, to)}, Limits{})
				h := next.Holders[0]
				fits := other == None || oracleCompatible(other, to)
				switch {
				case results[0].Verdict != Applied || !changed:
					t.Errorf("%s: %s, changed %v", why, results[0].Verdict, changed)
				case fits && (h.Mode != to || h.Converted != "a.2" || h.Convert != Conversion{}):
					t.Errorf("%s: %+v", why, h)
				case !fits && (h.Mode != from || h.Converted != "" || h.Convert != Conversion{ID: "a.2", Mode: to} || h.Token != Ticket(1, 0)):
					t.Errorf("%s: %+v", why, h)
				case fits && (h.Token == Ticket(1, 0)) != covered(from, to):
					t.Errorf("%s: token %d", why, h.Token)
				}
				op := convert("a.1", 2, to)
				op.From = from
				undo, ok := op.Undo()
				if ok == covered(from, to) {
					t.Errorf("%s: undo %v", why, ok)
				}
				if !ok {
					continue
				}
				for _, late := range []bool{false, true} {
					at, from := next, from
					if late { // the other leaves first: granted, then taken back
						at, _, _ = Apply(next, rev+1, []Op{release("b.1")}, Limits{})
						from = to
					} else if fits {
						continue
					}
					undone, _, _ := Apply(at, rev+2, []Op{undo}, Limits{})
					if h := undone.Holders[0]; h.Mode != Meet(op.From, to) || h.Convert.ID != "" || !from.Covers(h.Mode) {
						t.Errorf("%s, undone, late %v: %+v", why, late, h)
					}
				}
			}
		}
	}
}

func TestUndo(t *testing.T) {
	for _, kind := range []Verb{OpAcquire, OpTry} {
		op := request(kind, "a.1", X)
		if undo, ok := op.Undo(); !ok || undo.Verb != OpRelease || undo.ID != "a.1" || undo.Lease != "a" {
			t.Errorf("%s: %+v, %v", kind, undo, ok)
		}
	}
	for _, kind := range []Verb{OpRelease, OpEvict, OpRevoke, OpRemove, OpUnconvert, OpStopWaiting} {
		if undo, ok := (&Op{Kind: KindLock, Verb: kind, ID: "a.1", Lease: "a"}).Undo(); ok {
			t.Errorf("%s: %+v", kind, undo)
		}
	}
}

func TestBadConversions(t *testing.T) {
	base, rev := after(t, Limits{}, acquire("a.1", S), acquire("b.1", X))
	for why, c := range map[string]struct {
		change func(*Op)
		want   Verdict
	}{
		"no mode":              {func(op *Op) { op.Mode = None }, BadOp},
		"unknown mode":         {func(op *Op) { op.Mode = X + 1 }, BadOp},
		"no id":                {func(op *Op) { op.ID = "" }, BadOp},
		"bad id":               {func(op *Op) { op.ID = "a.x" }, BadOp},
		"no holder":            {func(op *Op) { op.Holder = "" }, BadOp},
		"bad holder":           {func(op *Op) { op.Holder = "a" }, BadOp},
		"no lease":             {func(op *Op) { op.Lease = "" }, LeaseMismatch},
		"another lease":        {func(op *Op) { op.Lease = "b" }, LeaseMismatch},
		"id of another lease":  {func(op *Op) { op.ID = "b.2" }, LeaseMismatch},
		"hold of another":      {func(op *Op) { op.Holder = "b.1" }, LeaseMismatch},
		"a waiter of the same": {func(op *Op) { op.ID, op.Lease, op.Holder = "b.2", "b", "b.1" }, Applied},
		"nobody":               {func(op *Op) { op.Holder = "a.7" }, Applied},
	} {
		for _, kind := range []Verb{OpConvert, OpUnconvert} {
			op := convert("a.1", 2, X)
			op.Verb = kind
			c.change(&op)
			if _, results, changed := Apply(base, rev, []Op{op}, Limits{}); results[0].Verdict != c.want || changed {
				t.Errorf("%s, %s: %s, changed %v", kind, why, results[0].Verdict, changed)
			}
		}
	}
}
