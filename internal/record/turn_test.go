package record

import (
	"slices"
	"strings"
	"testing"
)

func advance(id string, token uint64) Op {
	return Op{Kind: KindLock, Verb: OpAdvance, ID: id, Lease: LeaseOf(id), Token: token}
}

// The turn passes from a holder in X, or by a turn, to the next waiter in X.
func TestH2_WhoCanGetATurn(t *testing.T) {
	candidate := acquire("d.1", X)
	candidate.Value = Value{Set: true, Data: "north"}
	rec, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X), acquire("c.1", X), candidate, acquire("e.1", X), acquire("f.1", S), acquire("g.1", X))
	rec.Resolve(rev)
	token := map[string]uint64{"a.1": Ticket(1, 0)}
	for i, w := range rec.Waiters {
		token[w.ID] = Ticket(uint64(i+2), 1)
	}
	for from, to := range map[string]string{"a.1": "b.1", "b.1": "c.1", "c.1": "", "d.1": "e.1", "e.1": "", "f.1": "", "g.1": "", "z.1": ""} {
		next, ok := rec.Behind(from, token[from])
		if ok != (to != "") || ok && next.ID != to {
			t.Errorf("behind %s: %s, %v; want %q", from, next.ID, ok, to)
		}
		if _, ok := rec.Behind(from, token[from]+1); ok {
			t.Errorf("behind another entry %s", from)
		}
	}
	for why, ops := range map[string][]Op{
		"converts": {acquire("a.1", S), acquire("b.1", S), convert("a.1", 2, X)}, "was converted": {acquire("a.1", U), convert("a.1", 2, X)}, "is shared": {acquire("a.1", S)},
	} {
		rec, rev := after(t, Limits{}, append(ops, acquire("x.1", X), acquire("y.1", X))...)
		rec.Resolve(rev)
		for _, list := range [][]Entry{rec.Holders, rec.Waiters} {
			for _, e := range list {
				if next, ok := rec.Behind(e.ID, e.Token); ok {
					t.Errorf("%s: %s behind %s", why, next.ID, e.ID)
				}
			}
		}
	}
	if _, ok := (*Record)(nil).Behind("a.1", 1); ok {
		t.Error("behind nobody")
	}
}

// After an advance, a holder by a turn is a holder in the record, and its release leaves no entry before it.
func TestH9_AdvanceAndRelease(t *testing.T) {
	rec, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X), acquire("c.1", X), acquire("d.1", S))
	rec.Resolve(rev)
	for _, c := range []struct {
		op               Op
		holders, waiters string
	}{
		{advance("c.1", Ticket(3, 1)), "c.1", "d.1"},
		{advance("c.1", Ticket(3, 0)), "a.1", "b.1 c.1 d.1"}, // another entry of that id
		{advance("c.1", 0), "a.1", "b.1 c.1 d.1"},
		{advance("a.1", Ticket(1, 0)), "a.1", "b.1 c.1 d.1"}, // holds already
		{advance("z.1", Ticket(3, 1)), "a.1", "b.1 c.1 d.1"},
		{Op{Verb: OpRelease, ID: "c.1", Token: Ticket(3, 1)}, "d.1", ""},
		{Op{Verb: OpRelease, ID: "c.1", Token: Ticket(3, 0)}, "a.1", "b.1 d.1"},
		{release("c.1"), "a.1", "b.1 d.1"},
	} {
		next, results, _ := Apply(rec, rev, []Op{c.op, c.op}, Limits{})
		if expect(t, next, c.holders, c.waiters); results[0].Verdict != Applied {
			t.Errorf("%s: %s", c.op.Verb, results[0].Verdict)
		}
		checkStored(t, next)
	}
}

// A holder by a turn has used its signal: when it is removed, it passes none on.
func TestH9_SignalsOfEndedEntriesAreUsedUp(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b")
	b.must(b.signal("s.1", 2, "full"), acquire("c.1", X))
	c, _, _ := b.rec.Waiter("c.1")
	b.is("s.1 | a.2* c.1 | full: b.2")
	b.must(advance("c.1", c.Token))
	b.is("c.1 |  | full: b.2")
}

// H12: a revocation marks who may hold by a turn in place of the holder that is meant. It takes no turn then, and what
// the record grants it is not meant.
func TestH12_WhoIsRevoked(t *testing.T) {
	candidate := acquire("d.1", X)
	candidate.Value = Value{Set: true}
	rec, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X), acquire("c.1", X), candidate, acquire("e.1", X))
	rec.Resolve(rev)
	seen := rec.NewestHold()
	for _, c := range []struct {
		op     Op
		marked string
	}{
		{Op{UpTo: seen}, "*a.1 b.1 c.1"},
		{Op{}, "*a.1 b.1 c.1"},
		{Op{UpTo: seen - 1}, ""},
		{Op{ID: "a.1"}, "*a.1"},
		{Op{ID: "c.1"}, "c.1"},
		{Op{ID: "e.1"}, ""},
	} {
		c.op.Verb = OpRevoke
		next, _, _ := Apply(rec, rev, []Op{c.op, c.op}, Limits{})
		var marked []string
		for _, h := range next.Holders {
			if h.Revoked {
				marked = append(marked, "*"+h.ID)
			}
		}
		for _, w := range next.Waiters {
			if w.LetTurn {
				marked = append(marked, w.ID)
			}
			if w.Revoked || w.LetTurn && !rec.MayHold(w.ID) {
				t.Errorf("%+v: %+v", c.op, w)
			}
		}
		if got := strings.Join(marked, " "); got != c.marked {
			t.Errorf("%+v marks %q, want %q", c.op, got, c.marked)
		}
		checkStored(t, next)
	}
	for _, w := range rec.Waiters { // a removed one could accept a turn later
		if _, _, changed := Apply(rec, rev, []Op{{Verb: OpRemove, ID: w.ID}, {Verb: OpRemove, UpTo: seen - 1}}, Limits{}); changed {
			t.Errorf("%s is removed", w.ID)
		}
	}
	next, _, _ := Apply(rec, rev, []Op{{Verb: OpRevoke, UpTo: seen}, release("a.1")}, Limits{})
	next.Resolve(rev + 1)
	for turn, want := range map[uint64]bool{0: false, Ticket(2, 1): true} {
		if revoked, ok := next.Held("b.1", turn); !ok || revoked != want {
			t.Errorf("held by turn %d: revoked %v, %v", turn, revoked, ok)
		}
	}
	if next, ok := next.Behind("b.1", Ticket(2, 1)); ok {
		t.Errorf("a turn goes to %+v", next)
	}
	for _, other := range [][]Op{{acquire("a.1", S), acquire("b.1", X)}, {acquire("a.1", U), convert("a.1", 2, X), acquire("b.1", X)}} {
		rec, _ := after(t, Limits{}, other...)
		if rec.MayHold("b.1") {
			t.Errorf("may hold by a turn: %+v", rec)
		}
	}
}

// H7: nothing comes to stand between two entries of a queue, whatever is done, unless they have new tickets: else a turn
// of an older record could pass somebody.
func TestH7_NothingComesBetween(t *testing.T) {
	b := waiting(t, Limits{}, "full", "d", "e")
	b.must(acquire("b.1", X), acquire("c.1", X))
	rec, rev := b.rec, b.rev
	up := convert("s.1", 5, S)
	wait := b.wait("s.1", 6, "full")
	for what, ops := range map[string][]Op{
		"acquire": {acquire("a.1", X)}, "again": {acquire("c.1", X), acquire("b.1", X)}, "shared": {acquire("a.1", S), acquire("a.2", IS)},
		"signal": {b.signal("s.1", 3, "full")}, "broadcast": {b.broadcast("s.1", 4, "full")}, "wait": {wait}, "wait taken back": {wait, {Kind: KindLock, Verb: OpCancelWait, ID: wait.ID, Lease: "s", Holder: "s.1", Token: wait.Token}},
		"conversion": {up}, "and back": {up, acquire("a.1", S), convert("s.1", 7, X)}, "advance": {advance("b.1", rec.Waiters[0].Token)},
		"release": {release("b.1")}, "end": {release("s.1"), acquire("s.2", X)}, "revocation": {{Verb: OpRevoke}}, "removal": {{Verb: OpRemove}},
		"eviction": {{Verb: OpEvict, Leases: []string{"b", "d"}}}, "all": {b.broadcast("s.1", 4, "full"), acquire("a.1", X), release("s.1"), acquire("s.2", X), release("b.1")},
	} {
		next, _, _ := Apply(rec, rev, ops, Limits{})
		order := func(r *Record) (all []Entry) { return slices.Concat(r.Holders, r.Waiters) }
		was, is := order(rec), order(next)
		for i, from := range was {
			for _, to := range was[i+1:] {
				at := func(e Entry) int {
					return slices.IndexFunc(is, func(o Entry) bool { return o.ID == e.ID && o.Token == e.Token })
				}
				f, n := at(from), at(to)
				if f < 0 || n < 0 {
					continue
				}
				for _, between := range is[min(f, n)+1 : max(f, n)] {
					if !slices.ContainsFunc(was, func(e Entry) bool { return e.ID == between.ID }) {
						t.Errorf("%s: %s stands between %s and %s", what, between.ID, from.ID, to.ID)
					}
				}
				if f > n {
					t.Errorf("%s: %s stands behind %s", what, from.ID, to.ID)
				}
			}
		}
	}
}
