package record

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// latchOp is an operation of a latch of 3.
func latchOp(verb Verb, id string, n int, base uint64) Op {
	return Op{Kind: KindLatch, Verb: verb, ID: id, Lease: LeaseOf(id), TTL: ttl, N: n, Limit: 3, Base: base}
}

func count(id string, base uint64) Op { return latchOp(OpCount, id, 1, base) }

func wantCount(t *testing.T, r *Record, n int) {
	t.Helper()
	if f := r.Facts(); f.Count != n || f.Open != (n == 0) {
		t.Errorf("%+v, want a count of %d", f, n)
	}
}

func TestP14_EachCountsOnceInAnyOrder(t *testing.T) {
	// Over another road the second one comes first: "the highest so far" would drop the first.
	rec, rev := after(t, Limits{}, latchOp(OpAdd, "z.1", 7, 0), count("a.2", 0), count("a.1", 0), count("a.2", 0), count("a.1", 0), count("a.4", 0))
	wantCount(t, rec, 7)
	again := latchOp(OpAdd, "z.1", 7, 0)
	rec, _ = verdict(rec, rev, again)
	wantCount(t, rec, 7)
	if want := `{"v":3,"kind":"latch","count":7,"initial":3,"marks":{"a":[30000,"1-2,4"],"z":[30000,"1"]}}`; string(rec.Append(nil)) != want {
		t.Errorf("%s, want %s", rec.Append(nil), want)
	}
}

func TestP14_DeadLeaseCountsNoSecondTime(t *testing.T) {
	rec, rev := after(t, Limits{}, count("a.1", 0), count("b.1", 1))
	wantCount(t, rec, 1)
	rec, _ = verdict(rec, rev, evict("a"))
	rev++
	wantCount(t, rec, 1) // its count stays
	if rec.HasLease("a") || !rec.HasLease("b") || rec.Facts().Fenced != rev {
		t.Errorf("%s at %d", rec.Append(nil), rev)
	}
	wantVerdict(t, rec, rev, count("a.1", 0), Stale, 0)     // the answer was lost, and it is sent again
	wantVerdict(t, rec, rev, count("a.1", rev-1), Stale, 0) // read just before its marks went
	wantVerdict(t, rec, rev, count("b.1", 1), Applied, 0)   // its mark is still there
	wantVerdict(t, rec, rev, count("c.1", 0), Stale, 0)     // it can't be told from a.1
	next, res := verdict(rec, rev, count("c.2", rev))
	if res.Verdict != Applied {
		t.Error(res.Verdict)
	}
	wantCount(t, next, 0)
	// In the very write that removes the marks.
	next, results, _ := Apply(rec, rev, []Op{evict("b"), count("b.1", rev)}, Limits{})
	wantCount(t, next, 1)
	if results[1].Verdict != Stale {
		t.Error(results[1].Verdict)
	}
}

func TestP16_LatchOfAnotherLife(t *testing.T) {
	rec, _ := after(t, Limits{}, count("a.1", 0))
	rec, _ = verdict(rec, 1, Op{Kind: KindLatch, Verb: OpDelete})
	if !rec.Idle() {
		t.Fatalf("deleted: %s", rec.Append(nil))
	}
	made := count("b.1", 0)
	made.Life = 2
	anew, _ := verdict(nil, 2, made)
	for _, late := range []Op{count("a.1", 0), latchOp(OpAdd, "a.2", 1, 1), latchOp(OpAwait, "a.3", 0, 0), latchOp(OpUncount, "a.1", 0, 0), {Kind: KindLatch, Verb: OpDelete}} {
		wantVerdict(t, anew, 3, late, OtherLife, 0)
		wantVerdict(t, nil, 2, late, OtherLife, 0)
		if st := anew.Standing(&late); late.Verb != OpDelete && (st.Standing != Refused || st.Why != OtherLife) {
			t.Errorf("%s: %+v", late.Verb, st)
		}
	}
	// Two first users at once, the answer of one lost.
	both, _ := verdict(nil, 0, count("a.1", 0))
	both, _ = verdict(both, 1, count("b.1", 0))
	both, _ = verdict(both, 2, count("a.1", 0))
	wantCount(t, both, 1)
}

func TestP26_CountThatWasGivenUpNeverCounts(t *testing.T) {
	rec, rev := after(t, Limits{}, count("a.1", 0))
	late := count("b.1", 1)
	undo, _ := late.Undo()
	if !late.Proven() {
		t.Fatal("whoever gives a count up has to know what became of it")
	}
	rec, _ = verdict(rec, rev, undo)
	if st := rec.Standing(&late); st.Standing != Gone {
		t.Errorf("%+v", st)
	}
	wantVerdict(t, rec, rev+1, late, Stale, 0)
	if _, _, changed := Apply(rec, rev+1, []Op{undo}, Limits{}); changed {
		t.Error("the second time it is shut out already")
	}
	// A count that was done stays, and its cancel succeeds.
	done := count("a.1", 0)
	undo, _ = done.Undo()
	if _, _, changed := Apply(rec, rev+1, []Op{undo}, Limits{}); changed || rec.Standing(&done).Standing != Granted {
		t.Errorf("changed %v, %+v", changed, rec.Standing(&done))
	}
	// Nor is it known of a lease whose marks went.
	rec, _ = verdict(rec, rev+1, evict("a"))
	wantVerdict(t, rec, rev+2, undo, Forgotten, 0)
	// On an absent key it leaves nothing: the marker that is written there begins another life.
	undo, _ = late.Undo()
	if none, results, write := Apply(nil, 0, []Op{undo}, Limits{}); results[0].Verdict != Applied || !none.Idle() || !write {
		t.Errorf("%v, written %v: %s", results, write, none.Append(nil))
	}
	// Once it is open, an add that was done can't be told from one that never came.
	added := latchOp(OpAdd, "a.9", 2, rev)
	open, _ := verdict(rec, rev+2, latchOp(OpCount, "c.1", 9, rev+2))
	if st := open.Standing(&added); st.Standing != Refused || st.Why != Forgotten {
		t.Errorf("%+v", st)
	}
}

func TestLatchOpensOnce(t *testing.T) {
	wait := latchOp(OpAwait, "w.1", 0, 0)
	rec, rev := after(t, Limits{}, wait, latchOp(OpCount, "a.1", 2, 0), latchOp(OpAdd, "a.2", 1, 1))
	expect(t, rec, "", "w.1")
	wantCount(t, rec, 2)
	wantVerdict(t, rec, rev, Op{Kind: KindLatch, Verb: OpDelete}, InUse, 0)
	wantVerdict(t, rec, rev, latchOp(OpAdd, "a.3", maxCount, 3), TooLarge, maxCount-2)
	other := count("a.3", 3)
	other.Limit = 4
	wantVerdict(t, rec, rev, other, SizeMismatch, 3)

	rec, _ = verdict(rec, rev, latchOp(OpCount, "b.1", 5, rev))
	rev++
	expect(t, rec, "", "")
	wantCount(t, rec, 0)
	if want := `{"v":3,"kind":"latch","open":true,"initial":3}`; string(rec.Append(nil)) != want || rec.Idle() {
		t.Errorf("%s, want %s", rec.Append(nil), want)
	}
	if st := rec.Standing(&wait); st.Standing != Granted || st.Entry != nil {
		t.Errorf("%+v", st)
	}
	for _, op := range []Op{latchOp(OpAwait, "w.2", 0, 0), count("c.1", 0), count("b.1", 0)} {
		if _, results, changed := Apply(rec, rev, []Op{op}, Limits{}); changed || results[0].Verdict != Applied {
			t.Errorf("%s: %v, %v", op.Verb, results, changed)
		}
	}
	wantVerdict(t, rec, rev, latchOp(OpAdd, "c.1", 1, rev), Finished, 0)
	if closed, _ := verdict(nil, 0, count("a.1", 0)); rec.Outlived(24*time.Hour-1) || !rec.Outlived(24*time.Hour) || closed.Outlived(1<<62) {
		t.Error("a latch is swept a day after it opened, and not before")
	}
	if _, res := verdict(rec, rev, Op{Kind: KindLatch, Verb: OpDelete}); res.Verdict != Applied {
		t.Error(res.Verdict)
	}
}

// A record that is full of marks refuses new ones, and opens all the same.
func TestLatchIsBounded(t *testing.T) {
	lim := Limits{MaxBytes: 2000, MaxWaiters: 2}
	var rec *Record
	full := 0
	for i := range 200 {
		op := count(fmt.Sprintf("lease%d.%d", i%120, i), uint64(i))
		op.Limit = 1000
		next, results, _ := Apply(rec, uint64(i), []Op{op}, lim)
		if results[0].Verdict == QueueFull {
			full++
		} else if rec = next; len(rec.Append(nil)) > lim.MaxBytes {
			t.Fatalf("%d bytes", len(rec.Append(nil)))
		}
	}
	if full == 0 {
		t.Fatal("never full")
	}
	last := latchOp(OpCount, "x.1", 1000, 200)
	last.Limit = 1000
	next, results, _ := Apply(rec, 200, []Op{last}, lim)
	if wantCount(t, next, 0); results[0].Verdict != Applied {
		t.Error(results[0].Verdict)
	}
	// P23: what a mark takes.
	one, _ := verdict(nil, 0, count("0123456789abcdefghijkl.1", 0))
	two, _ := verdict(one, 1, count("mnopqrstuv0123456789ab.1", 0))
	more, _ := verdict(two, 2, count("mnopqrstuv0123456789ab.123456", 0))
	if a, b, c := len(one.Append(nil)), len(two.Append(nil)), len(more.Append(nil)); b-a > 48 || c-b > 12 {
		t.Errorf("a lease takes %d bytes, another count of it %d", b-a, c-b)
	}
}

// latchWorld is a latch, clients whose messages are lost, late and doubled, and the true history.
type latchWorld struct {
	t      *testing.T
	rng    *rand.Rand
	stored []byte
	rev    uint64
	sent   []Op
	seq    uint64
	dead   map[string]bool
	done   map[string]bool // ids that have changed the count
	undone map[string]bool // ids whose undo is committed, and said that they had not
	met    map[string]int
}

func (w *latchWorld) lease() string { return string(rune('a' + w.rng.IntN(5))) }

func (w *latchWorld) next() (op Op) {
	if len(w.sent) > 0 && w.rng.IntN(3) == 0 {
		return w.sent[w.rng.IntN(len(w.sent))]
	}
	w.seq++
	lease := fmt.Sprint(w.lease(), w.seq/200) // the dead are followed by others
	switch op = count(ID(lease, w.seq), w.rev-min(w.rev, uint64(w.rng.IntN(3)))); w.rng.IntN(10) {
	case 0, 1, 2:
		op.Verb, op.N = OpAdd, 1+w.rng.IntN(4)
	case 3:
		op = evict(lease)
	case 4, 5:
		if len(w.sent) > 0 {
			if undo, ok := w.sent[w.rng.IntN(len(w.sent))].Undo(); ok {
				op = undo
			}
		}
	}
	op.Limit = 3
	if op.Verb != OpEvict {
		w.sent = append(w.sent[max(0, len(w.sent)-30):], op)
	}
	return op
}

// step is one write of some operations, checked one after the other.
func (w *latchWorld) step() {
	var base *Record
	if w.stored != nil {
		var err error
		if base, err = Decode(w.stored); err != nil {
			w.t.Fatal(err)
		}
	}
	ops := make([]Op, 1+w.rng.IntN(3))
	for i := range ops {
		ops[i] = w.next()
	}
	lost := w.rng.IntN(6) == 0
	was := 3
	if base != nil {
		was = base.Facts().Count
	}
	var rec *Record
	var changed bool
	for i, op := range ops {
		var results []Result
		rec, results, changed = Apply(base, w.rev, ops[:i+1], Limits{})
		is := was
		if !rec.Idle() {
			is = rec.Facts().Count
		}
		w.met[op.Verb.String()+" "+results[i].Verdict.String()]++
		if !lost {
			w.judge(op, results[i].Verdict, rec, was, is)
		}
		was = is
	}
	if !rec.Idle() {
		checkStored(w.t, rec)
	}
	if lost || !changed || rec.Idle() {
		return
	}
	w.rev++
	w.stored = rec.Append(nil)
	if open := rec.Facts().Open; open || rec.Facts().Count > 20 {
		if open {
			w.met["opened"]++
		}
		w.stored, w.rev, w.sent = nil, 0, nil // another latch
		clear(w.done)
		clear(w.undone)
		clear(w.dead)
	}
}

func (w *latchWorld) judge(op Op, v Verdict, rec *Record, was, is int) {
	switch {
	case op.Verb == OpEvict:
		w.dead[op.Leases[0]] = true
	case op.Verb == OpUncount && v == Applied && was > 0 && rec.Kind != "":
		original := op
		original.Verb = OpCount
		if rec.Standing(&original).Standing == Gone {
			w.undone[op.ID] = true
		}
		if w.undone[op.ID] == w.done[op.ID] {
			w.t.Fatalf("%s was done: %v, and its undo says it was not: %v: %s", op.ID, w.done[op.ID], w.undone[op.ID], rec.Append(nil))
		}
	case is != was:
		if w.done[op.ID] || w.undone[op.ID] {
			w.t.Fatalf("%s of %s: done before %v, undone %v: %s", op.Verb, op.ID, w.done[op.ID], w.undone[op.ID], rec.Append(nil))
		}
		w.done[op.ID] = true
	case v == Applied && was > 0 && op.Verb != OpUncount && !w.done[op.ID]:
		w.t.Fatalf("%s of %s applied and not done: %s", op.Verb, op.ID, rec.Append(nil))
	case v == Stale && w.done[op.ID] && !w.dead[op.Lease]:
		w.t.Fatalf("%s of %s refused after it was done, under a lease that lives: %s", op.Verb, op.ID, rec.Append(nil))
	}
}

// Counts, adds, cancels and deaths, delivered late, twice and in any order, some writes lost: each
// changes the count once or never, and what is said of it is true.
func TestLatchSchedules(t *testing.T) {
	t.Parallel()
	w := &latchWorld{t: t, rng: rand.New(rand.NewPCG(14, 26)), dead: map[string]bool{}, done: map[string]bool{}, undone: map[string]bool{}, met: map[string]int{}}
	for range 20_000 {
		w.step()
	}
	for _, event := range []string{"count applied", "count stale", "add applied", "add stale", "add finished", "evict applied", "uncount applied", "uncount forgotten", "opened"} {
		if w.met[event] == 0 {
			t.Errorf("no step met %q: %v", event, w.met)
		}
	}
}

func TestMarksOfAnyOrderAreTheSame(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var spans []span
		in := map[uint64]bool{}
		for range rng.IntN(30) {
			seq := rng.Uint64N(40)
			if rng.IntN(10) == 0 {
				seq = 1<<64 - 1 - rng.Uint64N(3)
			}
			if !in[seq] {
				in[seq], spans = true, withSequence(spans, seq)
			}
		}
		n := 0
		for i, s := range spans {
			for seq := s.from; ; seq++ {
				if n++; !in[seq] {
					t.Fatalf("%d is in %v", seq, spans)
				}
				if seq == s.to {
					break
				}
			}
			if i > 0 && spans[i-1].to+1 >= s.from {
				t.Fatalf("not merged: %v", spans)
			}
		}
		if n != len(in) {
			t.Fatalf("%d of %d in %v", n, len(in), spans)
		}
	}
}

func TestLatchYieldsLeasesOfMarks(t *testing.T) {
	rec, _ := after(t, Limits{}, count("a.1", 0), latchOp(OpAwait, "w.1", 0, 0))
	var leases []string
	for id, d := range rec.Leases() {
		if leases = append(leases, id); d != ttl {
			t.Errorf("%s: %v", id, d)
		}
	}
	if slices.Sort(leases); !slices.Equal(leases, []string{"a", "w"}) || rec.EntriesUnder("a", "w", "x") != 2 {
		t.Errorf("%v", leases)
	}
}

// A count that was given up before there is a latch stays refused even if another operation makes the latch in the same write.
func TestP26_CountGivenUpBesideTheFirst(t *testing.T) {
	late := count("b.1", 0)
	undo, _ := late.Undo()
	wait := latchOp(OpAwait, "a.1", 0, 0)
	rec, results, _ := Apply(nil, 0, []Op{undo, wait, count("c.1", 0)}, Limits{})
	if results[1].Verdict != Applied || results[2].Verdict != Stale || rec.Facts().Count != late.Limit {
		t.Fatalf("%s, %s: %s", results[1].Verdict, results[2].Verdict, rec.Append(nil))
	}
	rec.Resolve(1)
	wantVerdict(t, rec, 1, late, Stale, 0)
}
