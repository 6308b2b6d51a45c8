package record

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// permits is an operation of a semaphore of 3.
func permits(verb Verb, id string, n int) Op {
	return Op{Kind: KindSemaphore, Verb: verb, ID: id, Lease: LeaseOf(id), TTL: ttl, N: n, Limit: 3}
}

func reduce(holder string, left int) Op {
	return Op{Kind: KindSemaphore, Verb: OpReduce, ID: LeaseOf(holder) + ".99", Lease: LeaseOf(holder), Holder: holder, N: left}
}

func resize(n int, base, life uint64) Op {
	return Op{Kind: KindSemaphore, Verb: OpResize, N: n, Limit: 3, Base: base, Life: life}
}

// gone is a release of an entry of any kind.
func gone(id string) Op { return Op{Verb: OpRelease, ID: id} }

// verdict applies one operation and returns the result.
func verdict(rec *Record, rev uint64, op Op) (*Record, Result) {
	next, results, _ := Apply(rec, rev, []Op{op}, Limits{})
	return next, results[0]
}

func wantVerdict(t *testing.T, rec *Record, rev uint64, op Op, want Verdict, have int) {
	t.Helper()
	before := rec.resolved(rev)
	next, res := verdict(rec, rev, op)
	if res.Verdict != want || res.Have != have {
		t.Errorf("%s %s: %s, have %d; want %s, %d", op.Verb, op.ID, res.Verdict, res.Have, want, have)
	}
	if want != Applied && !before.Idle() && !reflect.DeepEqual(next, before) {
		t.Errorf("%s %s was refused and changed the record:\n%s\n%s", op.Verb, op.ID, before.Append(nil), next.Append(nil))
	}
}

func TestP11_NothingIsGrantedAboveTheSize(t *testing.T) {
	rec, rev := after(t, Limits{}, permits(OpAcquire, "a.1", 2), permits(OpAcquire, "b.1", 1), permits(OpAcquire, "c.1", 1))
	expect(t, rec, "a.1 b.1", "c.1")
	rec, _ = verdict(rec, rev, resize(1, 1, 0))
	rec, _ = verdict(rec, rev+1, gone("b.1"))
	expect(t, rec, "a.1", "c.1") // 2 are out, and the size is 1
	rec, _ = verdict(rec, rev+2, reduce("a.1", 1))
	expect(t, rec, "a.1", "c.1")
	rec, _ = verdict(rec, rev+3, gone("a.1"))
	expect(t, rec, "c.1", "")
}

func TestP11_PartialReleaseThatComesLateGivesNothingBack(t *testing.T) {
	rec, rev := after(t, Limits{}, permits(OpAcquire, "a.1", 3), permits(OpAcquire, "b.1", 1), permits(OpAcquire, "c.1", 1))
	rec, _ = verdict(rec, rev, reduce("a.1", 1))
	expect(t, rec, "a.1 b.1 c.1", "")
	rec, _ = verdict(rec, rev+1, reduce("a.1", 2)) // was sent before the other
	if got := rec.Holders[0].Permits; got != 1 || rec.Facts().Taken != 3 {
		t.Errorf("a.1 has %d permits, %d are out", got, rec.Facts().Taken)
	}
}

func TestP12_NobodyPassesTheHead(t *testing.T) {
	rec, rev := after(t, Limits{}, permits(OpAcquire, "a.1", 2), permits(OpAcquire, "b.1", 3), permits(OpAcquire, "c.1", 1), permits(OpAcquire, "d.1", 1))
	expect(t, rec, "a.1", "b.1 c.1 d.1") // one is free, and c.1 would fit
	wantVerdict(t, rec, rev, permits(OpTry, "e.1", 1), Held, 0)
	wantVerdict(t, rec, rev, permits(OpDrain, "e.1", 0), Held, 0)
	next, _ := verdict(rec, rev, gone("b.1"))
	expect(t, next, "a.1 c.1", "d.1") // in the write of the cancel
	next, _ = verdict(rec, rev, evict("b", "a"))
	expect(t, next, "c.1 d.1", "")
}

func TestP13_LateResizeIsRefused(t *testing.T) {
	rec, rev := after(t, Limits{}, permits(OpAcquire, "a.1", 1))
	late := resize(7, rec.resolved(rev).Facts().Sized, 0)
	if late.Base != 1 {
		t.Fatalf("the size was set at %d", late.Base)
	}
	rec, _ = verdict(rec, rev, resize(5, 1, 0))
	wantVerdict(t, rec, rev+1, late, Stale, 0)
	wantVerdict(t, rec, rev+1, resize(5, 1, 0), Applied, 0) // again
	if rec.Facts().Size != 5 {
		t.Errorf("size %d", rec.Facts().Size)
	}
	// The next life of the name: a marker at 12, a new semaphore over it, and the same base by chance.
	next, _ := verdict(nil, 12, permits(OpAcquire, "a.2", 1))
	next.Resolve(1)
	wantVerdict(t, next, 13, late, OtherLife, 0)
	wantVerdict(t, nil, 12, late, OtherLife, 0)
	// Two operations that both found no record: the first has changed the base of the second.
	made, results, _ := Apply(nil, 12, []Op{resize(5, 0, 12), resize(7, 0, 12)}, Limits{})
	if made.Facts().Size != 5 || results[1].Verdict != Stale {
		t.Errorf("%+v, %+v", made.Facts(), results)
	}
	// A record that is deleted and made again in one write has another life, too.
	made, results, _ = Apply(rec, rev+1, []Op{gone("a.1"), {Kind: KindSemaphore, Verb: OpDelete}, permits(OpAcquire, "b.1", 3), resize(9, 0, 0)}, Limits{})
	if f := made.Facts(); f.Size != 3 || results[3].Verdict != OtherLife || made.Life != rev+1 {
		t.Errorf("%+v, %+v, life %d", f, results, made.Life)
	}
}

// P16: an operation based on a semaphore that was used up, or made again, since changes neither size nor life of the next.
func TestP16_SemaphoreOfAnotherLife(t *testing.T) {
	next, _ := verdict(nil, 12, permits(OpAcquire, "a.2", 1))
	next.Resolve(13)
	for _, late := range []Op{resize(7, 13, 0), resize(7, 13, 13), {Kind: KindSemaphore, Verb: OpDelete}, {Kind: KindSemaphore, Verb: OpDelete, Life: 13}} {
		wantVerdict(t, next, 13, late, OtherLife, 0)
		wantVerdict(t, nil, 12, late, OtherLife, 0)
	}
	wantVerdict(t, next, 13, resize(7, 13, 12), Applied, 0)
	wantVerdict(t, next, 13, Op{Kind: KindSemaphore, Verb: OpDelete, Life: 12}, InUse, 0)
}

func TestSemaphoreRefusals(t *testing.T) {
	rec, rev := after(t, Limits{}, permits(OpAcquire, "a.1", 3), permits(OpAcquire, "b.1", 3), permits(OpAcquire, "c.1", 1))
	other := permits(OpAcquire, "d.1", 1)
	other.Limit = 4
	wantVerdict(t, rec, rev, other, SizeMismatch, 3)
	wantVerdict(t, rec, rev, permits(OpAcquire, "d.1", 4), TooLarge, 3)
	wantVerdict(t, nil, 9, permits(OpAcquire, "d.1", 4), TooLarge, 3)
	wantVerdict(t, rec, rev, Op{Kind: KindSemaphore, Verb: OpDelete}, InUse, 0)
	for _, bad := range []Op{permits(OpAcquire, "d.1", 0), permits(OpAcquire, "d.1", maxCount+1), permits(OpAcquire, "d", 1), reduce("a.1", 0), resize(0, 1, 0), {Kind: KindSemaphore, Verb: OpConvert}} {
		wantVerdict(t, rec, rev, bad, BadOp, 0)
	}

	// A waiter that asks for more than the new size is passed by all, and stays refused.
	rec, _ = verdict(rec, rev, resize(2, 1, 0))
	if st := rec.Standing(&Op{Kind: KindSemaphore, Verb: OpAcquire, ID: "b.1"}); st.Standing != Refused || st.Why != TooLarge {
		t.Errorf("%+v", st)
	}
	rec, _ = verdict(rec, rev+1, gone("a.1"))
	expect(t, rec, "c.1", "b.1")
	tried, res := verdict(rec, rev+2, permits(OpTry, "e.1", 1))
	if res.Verdict != Applied || ids(tried.Holders) != "c.1 e.1" {
		t.Errorf("a try behind one that was refused: %s", res.Verdict)
	}
	if _, next := rec.Ahead(func(id string) bool { return id == "b.1" }); next {
		t.Error("who was refused is next")
	}
	rec, _ = verdict(rec, rev+2, resize(3, rev+1, 0))
	wantVerdict(t, rec, rev+3, other, Applied, 0) // after a resize no caller has to agree with the first size
	expect(t, rec, "c.1", "b.1")

	// All that is free, as one.
	rec, _ = verdict(rec, rev+3, permits(OpDrain, "f.1", 0))
	if h, _ := rec.Holder("f.1"); h.Permits != 2 {
		t.Errorf("drained %+v", h)
	}
	wantVerdict(t, rec, rev+4, permits(OpDrain, "g.1", 0), Held, 0)
}

// Fields of an operation for other kinds are not stored.
func TestEntriesHaveTheFieldsOfTheirKind(t *testing.T) {
	for _, op := range []Op{permits(OpAcquire, "a.1", 1), begin("a.1", 0), latchOp(OpAwait, "a.1", 0, 0)} {
		op.Gen, op.Mode = 7, X
		op.Value = Value{Set: true, Data: "x"}
		if op.Kind != KindSemaphore {
			op.N = 3
		}
		rec, res := verdict(nil, 0, op)
		if back, err := Decode(rec.Append(nil)); res.Verdict != Applied || err != nil || !reflect.DeepEqual(back, rec) {
			t.Errorf("%s of %s: %s, %v: %s", op.Verb, op.Kind, res.Verdict, err, rec.Append(nil))
		}
	}
}

// An operation without effect does not affect later ones of the same write.
func TestRefusedFirstUserLeavesNoRecord(t *testing.T) {
	other := permits(OpAcquire, "b.1", 5)
	other.Limit = 5
	rec, results, _ := Apply(nil, 0, []Op{permits(OpAcquire, "a.1", 4), other}, Limits{})
	if results[0].Verdict != TooLarge || results[1].Verdict != Applied || rec.Facts().Size != 5 {
		t.Errorf("%+v: %s", results, rec.Append(nil))
	}
}

// semaphoreOracle does the same as the rules in the simplest way.
type semaphoreOracle struct {
	size, initial int
	resized       bool
	sized         uint64
	holds, waits  []semaphoreEntry
}

type semaphoreEntry struct {
	id      string
	n       int
	refused bool
}

func (o *semaphoreOracle) free() int {
	n := o.size
	for _, e := range o.holds {
		n -= e.n
	}
	return n
}

func (o *semaphoreOracle) grant() {
	for i := 0; i < len(o.waits); i++ {
		switch e := o.waits[i]; {
		case e.refused:
		case e.n > o.free():
			return
		default:
			o.holds = append(o.holds, e)
			o.waits = slices.Delete(o.waits, i, i+1)
			i--
		}
	}
}

func (o *semaphoreOracle) drop(gone func(e semaphoreEntry) bool) {
	o.holds = slices.DeleteFunc(o.holds, gone)
	o.waits = slices.DeleteFunc(o.waits, gone)
}

func (o *semaphoreOracle) apply(op Op) Verdict {
	switch op.Verb {
	case OpDelete:
		if len(o.holds)+len(o.waits) > 0 {
			return InUse
		}
		o.size = o.initial
		return Applied
	case OpRelease:
		o.drop(func(e semaphoreEntry) bool { return e.id == op.ID })
	case OpEvict:
		o.drop(func(e semaphoreEntry) bool { return slices.Contains(op.Leases, LeaseOf(e.id)) })
	case OpReduce:
		for i := range o.holds {
			if o.holds[i].id == op.Holder {
				o.holds[i].n = min(o.holds[i].n, op.N)
			}
		}
	case OpResize:
		if o.sized != op.Base {
			if o.size != op.N {
				return Stale
			}
			break
		}
		o.size, o.resized, o.sized = op.N, true, 0
		for i := range o.waits {
			o.waits[i].refused = o.waits[i].refused || o.waits[i].n > op.N
		}
	case OpAcquire, OpTry:
		for _, e := range slices.Concat(o.holds, o.waits) {
			if e.id == op.ID {
				return Applied
			}
		}
		was := *o
		was.holds, was.waits = slices.Clone(o.holds), slices.Clone(o.waits)
		if !o.resized && op.Limit != o.initial {
			return SizeMismatch
		} else if op.N > o.size {
			return TooLarge
		}
		o.waits = append(o.waits, semaphoreEntry{id: op.ID, n: op.N})
		o.grant()
		if op.Verb == OpTry && len(o.waits) > 0 && o.waits[len(o.waits)-1].id == op.ID {
			*o = was
			return Held
		}
	}
	o.grant()
	return Applied
}

// A hammer of acquires, partial and whole releases, resizes, crashes, lost writes and late duplicates of
// all of them, held against the oracle after every step.
func TestSemaphoreSchedules(t *testing.T) {
	t.Parallel()
	const steps = 100_000
	rng := rand.New(rand.NewPCG(11, 12))
	var (
		stored []byte
		rev    uint64 = 100
		life          = rev
		model  *semaphoreOracle
		sent   []Op
		met    = map[string]int{}
	)
	for step := range steps {
		var base *Record
		if stored != nil {
			var err error
			if base, err = Decode(stored); err != nil {
				t.Fatalf("step %d: %v: %s", step, err, stored)
			}
		}
		op := anySemaphoreOp(rng, base, rev, life)
		if len(sent) > 0 && rng.IntN(5) == 0 {
			op = sent[rng.IntN(len(sent))] // late, once more
		}
		sent = append(sent[max(0, len(sent)-40):], op)

		m := &semaphoreOracle{size: op.Limit, initial: op.Limit}
		if model != nil {
			m = &semaphoreOracle{model.size, model.initial, model.resized, model.sized, slices.Clone(model.holds), slices.Clone(model.waits)}
		}
		want := OtherLife
		if op.Verb != OpResize && op.Verb != OpDelete || op.Life == life {
			want = m.apply(op)
		} else if model == nil {
			m.size = m.initial
		}
		next, results, changed := Apply(base, rev, []Op{op}, Limits{})
		if results[0].Verdict != want {
			t.Fatalf("step %d: %s %s: %s, want %s: %s", step, op.Verb, op.ID, results[0].Verdict, want, stored)
		}
		met[op.Verb.String()+" "+want.String()]++
		checkSemaphore(t, next, m)
		if step%4 == 0 && !next.Idle() {
			checkStored(t, next)
		}
		if _, again, more := Apply(next, rev+1, []Op{op}, Limits{}); want == Applied && (again[0].Verdict != Applied || more) && !next.Idle() {
			t.Fatalf("step %d: %s %s again: %s, changed %v", step, op.Verb, op.ID, again[0].Verdict, more)
		}
		if !changed || rng.IntN(6) == 0 {
			continue // lost, or nothing to write
		}
		rev++
		if model, stored = m, next.Append(nil); m.sized == 0 {
			m.sized = rev
		}
		if next.Idle() {
			model, stored, life = nil, nil, rev
			met["idle"]++
		}
	}
	for _, event := range []string{"acquire applied", "acquire too large", "acquire size mismatch", "try held", "try applied", "release applied", "evict applied",
		"reduce applied", "resize applied", "resize stale", "resize other life", "delete applied", "delete in use", "idle"} {
		if met[event] == 0 {
			t.Errorf("no step met %q", event)
		}
	}
}

func anySemaphoreOp(rng *rand.Rand, base *Record, rev, life uint64) Op {
	lease := string(rune('a' + rng.IntN(6)))
	op := permits(OpAcquire, ID(lease, uint64(rng.IntN(4))), 1+rng.IntN(4))
	switch op.Limit = 4; rng.IntN(18) {
	case 0, 1:
		op.Verb = OpTry
	case 2:
		op.Limit = 5
	case 3, 4, 5, 6:
		op = Op{Kind: KindSemaphore, Verb: OpRelease, ID: op.ID, Limit: 4}
	case 7:
		op = Op{Kind: KindSemaphore, Verb: OpEvict, Leases: []string{lease, "f"}, Limit: 4}
	case 8, 9:
		op = reduce(op.ID, 1+rng.IntN(2))
		op.Limit = 4
	case 10, 11:
		op = resize(1+rng.IntN(6), 0, life)
		if rng.IntN(2) == 0 {
			op.N = 4
		}
		if op.Limit = 4; base != nil {
			op.Base = base.resolved(rev).Facts().Sized
		}
	case 12:
		op = Op{Kind: KindSemaphore, Verb: OpDelete, Limit: 4, Life: life}
	case 13, 14:
		op = evict("a", "b", "c", "d", "e", "f")
		op.Kind, op.Limit = KindSemaphore, 4
	}
	return op
}

func checkSemaphore(t *testing.T, r *Record, m *semaphoreOracle) {
	t.Helper()
	if r.Idle() {
		if len(m.holds)+len(m.waits) > 0 || m.size != m.initial {
			t.Fatalf("idle, and the oracle has %+v", m)
		}
		return
	}
	entries := func(list []Entry) (out []semaphoreEntry) {
		for _, e := range list {
			out = append(out, semaphoreEntry{e.ID, e.Permits, e.Refused})
		}
		return out
	}
	s := r.semaphore()
	if !slices.Equal(entries(r.Holders), m.holds) || !slices.Equal(entries(r.Waiters), m.waits) || s.size != m.size || s.initial != m.initial || s.sized != m.sized {
		t.Fatalf("%s\nthe oracle has %+v", r.Append(nil), m)
	}
	for _, h := range r.Holders {
		if h.Token == 0 && r.Facts().Taken > s.size {
			t.Fatalf("granted above the size: %s", r.Append(nil))
		}
	}
}

// checkStored: a record comes back from its stored form, and is within its bound.
func checkStored(t *testing.T, r *Record) {
	t.Helper()
	stored := r.Append(nil)
	if back, err := Decode(stored); err != nil || !reflect.DeepEqual(back, r) {
		t.Fatalf("%v: %s\n%+v\n%+v", err, stored, back, r)
	}
	if bound := sizeBound(r); len(stored) > bound {
		t.Fatalf("%d bytes, bound %d: %s", len(stored), bound, stored)
	}
}
