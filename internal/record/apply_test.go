package record

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

const ttl = 30 * time.Second

// request is an acquire or a try whose lease is the one its id names.
func request(kind Verb, id string, mode Mode) Op {
	return Op{Kind: KindLock, Verb: kind, ID: id, Lease: LeaseOf(id), Mode: mode, TTL: ttl}
}

func acquire(id string, mode Mode) Op { return request(OpAcquire, id, mode) }
func try(id string, mode Mode) Op     { return request(OpTry, id, mode) }
func release(id string) Op            { return Op{Kind: KindLock, Verb: OpRelease, ID: id} }

// after applies each op in a write of its own, at revisions 1, 2, 3, ….
func after(t *testing.T, lim Limits, ops ...Op) (rec *Record, rev uint64) {
	t.Helper()
	for _, op := range ops {
		next, results, _ := Apply(rec, rev, []Op{op}, lim)
		if results[0].Verdict != Applied {
			t.Fatalf("%s %s: %s", op.Verb, op.ID, results[0].Verdict)
		}
		rec = next
		rev++
	}
	return rec, rev
}

func ids(list []Entry) string {
	var out []string
	for _, e := range list {
		out = append(out, e.ID)
	}
	return strings.Join(out, " ")
}

func expect(t *testing.T, r *Record, holders, waiters string) {
	t.Helper()
	if h, w := ids(r.Holders), ids(r.Waiters); h != holders || w != waiters {
		t.Fatalf("held by [%s], waiting [%s]; want [%s] and [%s]", h, w, holders, waiters)
	}
}

// Rule 11: of the grants within a round, only those in the final record count.
func TestOneExclusiveGrantPerWrite(t *testing.T) {
	next, results, changed := Apply(nil, 0, []Op{acquire("a.1", X), release("a.1"), acquire("b.1", X)}, Limits{})
	expect(t, next, "b.1", "")
	if !changed || next.Holders[0].Token != 0 {
		t.Errorf("changed %v, %+v", changed, next.Holders)
	}
	for i, r := range results {
		if r.Verdict != Applied {
			t.Errorf("op %d: %s", i, r.Verdict)
		}
	}
	// The same with b waiting behind a: promoted by the release, in the same write.
	next, _, _ = Apply(nil, 0, []Op{acquire("a.1", X), acquire("b.1", X), acquire("c.1", X), release("a.1")}, Limits{})
	expect(t, next, "b.1", "c.1")
}

func TestNetEffectOfNothingIsNoChange(t *testing.T) {
	base, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", S))
	for _, ops := range [][]Op{nil, {acquire("c.1", X), release("c.1")}, {try("c.1", S)}, {acquire("a.1", X), acquire("b.1", S)}, {release("z.9")},
		{{Verb: OpEvict, Leases: []string{"z"}}}, {{Verb: OpRevoke, ID: "b.1"}}, {{Verb: OpRemove, ID: "b.1"}}, {{Verb: OpEvict}}} {
		next, _, changed := Apply(base, rev, ops, Limits{})
		want := base.Clone()
		want.Resolve(rev)
		if changed || !reflect.DeepEqual(next, want) {
			t.Errorf("%v: changed %v, %s", ops, changed, next.Append(nil))
		}
	}
	// Releasing and acquiring again under the same id is a new grant, with a new token.
	next, _, changed := Apply(base, rev, []Op{release("b.1"), acquire("b.1", S)}, Limits{})
	if !changed || next.Waiters[0].Token != Ticket(0, 1) {
		t.Errorf("changed %v, %s", changed, next.Append(nil))
	}
	next, _, changed = Apply(nil, 0, []Op{acquire("c.1", X), release("c.1")}, Limits{})
	if changed || next == nil || !reflect.DeepEqual(next, new(Record)) {
		t.Errorf("changed %v, %+v", changed, next)
	}
}

// Rule 13.1: queued under one lease, promoted, retried under another: the entry stays with the first.
func TestIDOfAnotherLeaseIsRefused(t *testing.T) {
	base, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X))
	for _, id := range []string{"a.1", "b.1", "c.1"} {
		for _, kind := range []Verb{OpAcquire, OpTry, OpRelease} {
			op := request(kind, id, X)
			op.Lease = "other"
			next, results, changed := Apply(base, rev, []Op{op}, Limits{})
			if results[0].Verdict != LeaseMismatch || changed {
				t.Errorf("%s %s: %s", kind, id, results[0].Verdict)
			}
			expect(t, next, "a.1", "b.1")
		}
	}
	// Evicting the lease that the retry came from touches nothing.
	next, _, changed := Apply(base, rev, []Op{{Verb: OpEvict, Leases: []string{"other"}}}, Limits{})
	expect(t, next, "a.1", "b.1")
	if changed {
		t.Error("changed")
	}
	// A request has to say under which lease it is made; a release may.
	for kind, want := range map[Verb]Verdict{OpAcquire: LeaseMismatch, OpTry: LeaseMismatch, OpRelease: Applied} {
		op := request(kind, "c.1", X)
		op.Lease = ""
		if _, results, _ := Apply(base, rev, []Op{op}, Limits{}); results[0].Verdict != want {
			t.Errorf("%s without a lease: %s", kind, results[0].Verdict)
		}
	}
}

func TestBadOps(t *testing.T) {
	base, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X))
	with := func(change func(*Op)) Op {
		op := acquire("c.1", S)
		change(&op)
		return op
	}
	for why, op := range map[string]Op{
		"zero":               {},
		"unknown kind":       with(func(op *Op) { op.Verb = 99 }),
		"no id":              with(func(op *Op) { op.ID = "" }),
		"bad id":             with(func(op *Op) { op.ID = "c.x" }),
		"no id, no lease":    with(func(op *Op) { op.ID, op.Lease = "", "" }),
		"no mode":            with(func(op *Op) { op.Mode = None }),
		"unknown mode":       with(func(op *Op) { op.Mode = X + 1 }),
		"no TTL":             with(func(op *Op) { op.TTL = 0 }),
		"negative TTL":       with(func(op *Op) { op.TTL = -1 }),
		"endless TTL":        with(func(op *Op) { op.TTL = math.MaxInt64 }),
		"owner is no UTF-8":  with(func(op *Op) { op.Owner = "\xff" }),
		"meta key no UTF-8":  with(func(op *Op) { op.Meta = map[string]string{"\xff": ""} }),
		"meta text no UTF-8": with(func(op *Op) { op.Meta = map[string]string{"": "\xff"} }),
		"bad try":            with(func(op *Op) { op.Verb, op.Mode = OpTry, None }),
		"release nothing":    {Kind: KindLock, Verb: OpRelease},
		"release a bad id":   {Kind: KindLock, Verb: OpRelease, ID: "a"},
		"revoke a bad id":    {Verb: OpRevoke, ID: "a"},
		"remove a bad id":    {Verb: OpRemove, ID: "a"},
		"evict no lease":     {Verb: OpEvict, Leases: []string{"a", ""}},
	} {
		next, results, changed := Apply(base, rev, []Op{op}, Limits{})
		if results[0].Verdict != BadOp || changed {
			t.Errorf("%s: %s, changed %v", why, results[0].Verdict, changed)
		}
		expect(t, next, "a.1", "b.1")
	}
}

// An entry is stored as JSON can hold it.
func TestEntryIsNormalised(t *testing.T) {
	op := acquire("a.1", X)
	op.TTL = time.Second + 1
	op.Since = time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.FixedZone("west", -3600))
	op.Meta = map[string]string{"k": "v"}
	next, _, _ := Apply(nil, 0, []Op{op}, Limits{})
	want := Entry{ID: "a.1", Mode: X, TTL: time.Second + time.Millisecond, Since: time.Date(2026, 1, 2, 4, 4, 5, 678000000, time.UTC), Meta: map[string]string{"k": "v"}}
	if !reflect.DeepEqual(next.Holders[0], want) {
		t.Errorf("%+v", next.Holders[0])
	}
	op.Since, op.Meta = time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC), map[string]string{}
	next, _, _ = Apply(nil, 0, []Op{op}, Limits{})
	if e := next.Holders[0]; !e.Since.IsZero() || e.Meta != nil {
		t.Errorf("%+v", e)
	}
}

func TestBlockers(t *testing.T) {
	lim := Limits{MaxHolders: 2}
	base, rev := after(t, lim, acquire("a.1", IS), acquire("b.1", S), acquire("c.1", S))
	for _, c := range []struct {
		op      Op
		blocker string
	}{
		{try("d.1", X), "a.1"},  // the first holder that excludes it
		{try("d.1", IX), "b.1"}, // not the first holder
		{try("d.1", IS), "c.1"}, // no holder excludes it, but somebody waits
		{try("c.1", S), "c.1"},  // waits itself, by another operation: a try doesn't queue
	} {
		next, results, changed := Apply(base, rev, []Op{c.op}, lim)
		if results[0].Verdict != Held || results[0].Blocker.ID != c.blocker || changed {
			t.Errorf("try %s: %s by %s, changed %v", c.op.Mode, results[0].Verdict, results[0].Blocker.ID, changed)
		}
		if results[0].Blocker.Token == 0 {
			t.Errorf("try %s: the blocker's token is not resolved", c.op.Mode)
		}
		expect(t, next, "a.1 b.1", "c.1")
	}
	base, rev = after(t, lim, acquire("a.1", IS), acquire("b.1", S))
	if _, results, _ := Apply(base, rev, []Op{try("d.1", S)}, lim); results[0].Verdict != Held || results[0].Blocker.ID != "a.1" {
		t.Errorf("too many holders: %+v", results[0])
	}
}

func TestAlreadyHeld(t *testing.T) {
	by := func(op Op, owner string) Op {
		op.Owner = owner
		return op
	}
	base, rev := after(t, Limits{}, by(acquire("a.1", S), "alice"), by(acquire("b.1", X), "bob"), acquire("c.1", S))
	for _, c := range []struct {
		op      Op
		verdict Verdict
		blocker string
	}{
		{by(acquire("a.2", S), "alice"), AlreadyHeld, "a.1"},
		{by(try("z.2", S), "alice"), AlreadyHeld, "a.1"}, // from wherever the owner asks
		{by(acquire("z.2", S), "bob"), AlreadyHeld, "b.1"},
		{by(try("z.2", S), "bob"), AlreadyHeld, "b.1"},
		{by(acquire("a.1", S), "alice"), Applied, ""},
		{by(try("a.1", S), "alice"), Applied, ""},
		{by(acquire("b.1", X), "bob"), Applied, ""},
		{by(try("b.1", X), "bob"), Held, "a.1"},
		{acquire("c.2", S), Applied, ""},                              // no explicit owner: each acquire is its own
		{by(acquire("d.1", S), "c.1"), Applied, ""},                   // an id is no explicit owner
		{by(acquire("d.1", S), "Alice"), Applied, ""},                 // another name
		{by(try("d.1", X), "Alice"), Held, "a.1"},                     // refused for the holder, not the owner
		{by(acquire("d.1", None), "alice"), BadOp, ""},                // nonsense comes first
		{by(acquire("d.x", S), "alice"), BadOp, ""},                   //
		{by(acquire("a.1", X), "mallory"), Applied, ""},               // the id decides; the entry stays as it is
		{Op{Kind: KindLock, Verb: OpRelease, ID: "a.2"}, Applied, ""}, // absent
		{Op{Verb: OpRevoke, ID: "b.1"}, Applied, ""},                  // waits: nothing to revoke
		{Op{Verb: OpRemove, ID: "b.1", UpTo: 0}, Applied, ""},         // waits: nothing to remove
	} {
		next, results, _ := Apply(base, rev, []Op{c.op}, Limits{})
		if results[0].Verdict != c.verdict || results[0].Blocker.ID != c.blocker {
			t.Errorf("%s %s %s by %q: %s by %q", c.op.Verb, c.op.ID, c.op.Mode, c.op.Owner, results[0].Verdict, results[0].Blocker.ID)
		}
		if e, ok := next.Holder("a.1"); !ok || e.Mode != S || e.Owner != "alice" || e.Revoked {
			t.Errorf("%s %s: a.1 is now %+v", c.op.Verb, c.op.ID, e)
		}
	}
}

// A retry of "every holder" must not hit holders that were granted in between.
func TestUpToMakesRevokeAndRemoveIdempotent(t *testing.T) {
	base, rev := after(t, Limits{}, acquire("a.1", S), acquire("b.1", S), acquire("c.1", X))
	remove := Op{Verb: OpRemove, UpTo: Ticket(rev, 0)}
	next, _, _ := Apply(base, rev, []Op{remove}, Limits{})
	expect(t, next, "c.1", "")
	again, _, changed := Apply(next, rev+1, []Op{remove, {Verb: OpRevoke, UpTo: Ticket(rev, 0)}}, Limits{})
	expect(t, again, "c.1", "")
	if changed || again.Holders[0].Revoked {
		t.Errorf("%+v", again)
	}
	inOneWrite, _, _ := Apply(base, rev, []Op{remove, remove, {Verb: OpRevoke, UpTo: Ticket(rev, 0)}}, Limits{})
	expect(t, inOneWrite, "c.1", "")
	if inOneWrite.Holders[0].Revoked {
		t.Errorf("%+v", inOneWrite)
	}
	older, _, _ := Apply(base, rev, []Op{{Verb: OpRemove, UpTo: Ticket(1, 0)}}, Limits{})
	expect(t, older, "b.1", "c.1")
	everybody, _, _ := Apply(next, rev+1, []Op{{Verb: OpRemove}}, Limits{})
	expect(t, everybody, "", "")
}

// Rule 14: a record at all its limits can still be revoked, released, evicted and drained.
func TestFullRecordDrains(t *testing.T) {
	t.Parallel()
	fill := func(lim Limits, mode func(i int) Mode) *Record {
		var ops []Op
		for i := range 4096 {
			op := acquire(ID(fmt.Sprint("lease", i%7), uint64(i)), mode(i))
			op.Owner = fmt.Sprint("owner \"", i, "\"")
			op.Meta = map[string]string{"host": strings.Repeat("h", i%50)}
			ops = append(ops, op)
		}
		rec, results, _ := Apply(nil, 0, ops, lim)
		if results[4095].Verdict != QueueFull {
			t.Fatalf("%+v: the last of 4096 is %s", lim, results[4095].Verdict)
		}
		return rec
	}
	readers := func(int) Mode { return S }
	mixed := func(i int) Mode { return []Mode{S, S, X}[i%3] }
	small := Limits{MaxHolders: 64, MaxWaiters: 64, MaxBytes: 8 << 10}
	for _, c := range []struct {
		lim  Limits
		mode func(int) Mode
	}{{DefaultLimits(), readers}, {DefaultLimits(), mixed}, {small, readers}, {small, mixed}} {
		rec := fill(c.lim, c.mode)
		full, rev := rec.Clone(), uint64(math.MaxUint64-10000)
		n := len(full.Holders) + len(full.Waiters)
		for left := n; left > 0; {
			rev++
			rec, _, _ = Apply(rec, rev, []Op{{Verb: OpRevoke}}, c.lim)
			if size := len(rec.Append(nil)); size > c.lim.MaxBytes {
				t.Fatalf("%+v: %d bytes with %d of %d entries left", c.lim, size, left, n)
			}
			var ops []Op // some releases, so that promotions come in between
			for _, e := range rec.Holders[:min(len(rec.Holders), 1+n/64)] {
				ops = append(ops, acquire(e.ID, e.Mode), release(e.ID))
			}
			if len(ops) == 0 {
				t.Fatalf("%+v: nobody holds and %d wait", c.lim, left)
			}
			rev++
			next, results, _ := Apply(rec, rev, ops, c.lim)
			for i, r := range results {
				if r.Verdict != Applied {
					t.Fatalf("%+v: %s of %s: %s", c.lim, ops[i].Verb, ops[i].ID, r.Verdict)
				}
			}
			rec, left = next, left-len(ops)/2
			if got := len(rec.Holders) + len(rec.Waiters); got != left {
				t.Fatalf("%+v: %d entries left, want %d", c.lim, got, left)
			}
		}
		leases := []string{"lease0", "lease1", "lease2", "lease3", "lease4", "lease5", "lease6"}
		empty, results, changed := Apply(full, rev, []Op{{Verb: OpEvict, Leases: leases}}, c.lim)
		if !empty.Idle() || results[0].Verdict != Applied || !changed {
			t.Errorf("%+v: evicting everybody left %s", c.lim, empty.Append(nil))
		}
	}
}

// A record that another process wrote under higher limits, or by hand, stays usable.
func TestLowerLimitsStillDrain(t *testing.T) {
	base, rev := after(t, Limits{}, acquire("a.1", S), acquire("b.1", S), acquire("c.1", X), acquire("d.1", S), acquire("e.1", X))
	lim := Limits{MaxHolders: 1, MaxWaiters: 1, MaxBytes: 10}
	if _, results, _ := Apply(base, rev, []Op{acquire("f.1", S)}, lim); results[0].Verdict != QueueFull {
		t.Errorf("acquire: %s", results[0].Verdict)
	}
	next, _, _ := Apply(base, rev, []Op{release("a.1"), release("b.1")}, lim)
	expect(t, next, "c.1", "d.1 e.1")

	stuck := &Record{Kind: KindLock, Waiters: []Entry{{ID: "a.1", Mode: X, TTL: ttl, Token: 1}, {ID: "b.1", Mode: X, TTL: ttl, Token: 2}}}
	for _, op := range []Op{acquire("b.1", X), release("z.1"), {Verb: OpEvict}} {
		next, _, changed := Apply(stuck, 3, []Op{op}, Limits{})
		expect(t, next, "a.1", "b.1")
		if !changed {
			t.Errorf("%s: not changed", op.Verb)
		}
	}
	next, results, _ := Apply(stuck, 3, []Op{try("c.1", X)}, Limits{})
	if results[0].Verdict != Held || results[0].Blocker.ID != "a.1" {
		t.Errorf("try: %+v", results[0])
	}
	expect(t, next, "", "a.1 b.1")
}

func TestDefaultLimits(t *testing.T) {
	if got := (Limits{MaxHolders: -1, MaxBytes: 5}).orDefaults(); got != (Limits{MaxHolders: 1024, MaxWaiters: 2047, MaxBytes: 5}) {
		t.Errorf("%+v", got)
	}
}

func TestNamesOfKindsAndVerdicts(t *testing.T) {
	for got, want := range map[string]string{
		OpAcquire.String(): "acquire", OpRemove.String(): "remove", Verb(0).String(): "Verb(0)", OpUnconvert.String(): "unconvert", Verb(200).String(): "Verb(200)",
		Applied.String(): "applied", BadOp.String(): "bad operation", Verdict(0).String(): "Verdict(0)", ConvertRevoked.String(): "hold is revoked", Verdict(200).String(): "Verdict(200)", WaitTooLong.String(): "wait too long",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
