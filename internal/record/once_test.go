package record

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func begin(id string, life uint64) Op {
	return Op{Kind: KindOnce, Verb: OpAcquire, ID: id, Lease: LeaseOf(id), TTL: ttl, Life: life}
}

func finish(holder string, token, life uint64, result string) Op {
	return Op{Kind: KindOnce, Verb: OpFinish, ID: LeaseOf(holder) + ".99", Lease: LeaseOf(holder), Holder: holder, Token: Ticket(token, 0), Life: life, Value: Value{Set: true, Data: result}}
}

func TestOnce(t *testing.T) {
	rec, rev := after(t, Limits{}, begin("a.1", 0), begin("b.1", 0), begin("c.1", 0))
	expect(t, rec, "a.1", "b.1 c.1")
	failed := finish("a.1", 1, 0, "")
	failed.Fail = true
	next, _ := verdict(rec, rev, failed)
	expect(t, next, "b.1", "c.1") // no result is stored, the next one runs
	next, _ = verdict(rec, rev, gone("a.1"))
	expect(t, next, "b.1", "c.1")
	if next, _ = verdict(rec, rev, evict("a")); next.Facts().Value.Set {
		t.Error("a result of nobody")
	}
	expect(t, next, "b.1", "c.1")

	rec, _ = verdict(rec, rev, finish("a.1", 1, 0, "42"))
	if want := `{"v":3,"kind":"once","value":"42","by":"a.1"}`; string(rec.Append(nil)) != want || rec.Idle() {
		t.Errorf("%s, want %s", rec.Append(nil), want)
	}
	waits := begin("b.1", 0)
	if st := rec.Standing(&waits); st.Standing != Refused || st.Why != Finished {
		t.Errorf("%+v", st)
	}
	wantVerdict(t, rec, rev+1, begin("d.1", 0), Finished, 0)
	wantVerdict(t, rec, rev+1, finish("a.1", 1, 0, "42"), Applied, 0)  // again: it is its own
	wantVerdict(t, rec, rev+1, finish("b.1", 1, 0, "7"), NotHolder, 0) // another's
	if f := rec.Facts(); f.Value != (Value{Set: true, Data: "42"}) || f.By != "a.1" {
		t.Errorf("%+v", f)
	}
	wantVerdict(t, next, rev, Op{Kind: KindOnce, Verb: OpDelete}, InUse, 0)
	forgotten, _ := verdict(rec, rev+1, Op{Kind: KindOnce, Verb: OpDelete})
	if !forgotten.Idle() {
		t.Errorf("%s", forgotten.Append(nil))
	}
	for _, bad := range []Op{finish("a", 1, 0, ""), {Kind: KindOnce, Verb: OpCount}, {Kind: KindOnce, Verb: OpFinish, ID: "a.9", Lease: "a", Holder: "b.1"}} {
		wantVerdict(t, rec, rev, bad, BadOp, 0)
	}
}

// P15: a result is swept after its retention, if it has one, and only at the revision that was read.
func TestP15_ResultsOutliveTheirUse(t *testing.T) {
	op := finish("a.1", 1, 0, "42")
	forever, _ := after(t, Limits{}, begin("a.1", 0), op)
	if forever.Outlived(math.MaxInt64) {
		t.Error("without a retention")
	}
	wantVerdict(t, forever, 2, Op{Verb: OpSweep, Base: 2}, Stale, 0)
	op.N = 60
	running, rev := after(t, Limits{}, begin("a.1", 0))
	if running.Outlived(math.MaxInt64) {
		t.Error("somebody runs")
	}
	rec, _ := verdict(running, rev, op)
	if want := `{"v":3,"kind":"once","value":"42","by":"a.1","retention_s":60}`; string(rec.Append(nil)) != want {
		t.Errorf("%s, want %s", rec.Append(nil), want)
	}
	if d := rec.Facts().Retention; d != time.Minute || rec.Outlived(time.Minute-1) || !rec.Outlived(time.Minute) {
		t.Errorf("stays for %v", d)
	}
	wantVerdict(t, rec, 2, Op{Verb: OpSweep, Base: 1}, Stale, 0)
	if swept, _ := verdict(rec, 2, Op{Verb: OpSweep, Base: 2}); !swept.Idle() {
		t.Errorf("%s", swept.Append(nil))
	}
	for _, op.N = range []int{-1, maxCount + 1} {
		wantVerdict(t, running, rev, op, BadOp, 0)
	}
	for _, bad := range []string{`"retention_s":60`, `"value":"42","by":"a.1","retention_s":0`, `"value":"42","by":"a.1","retention_s":60,"retention_s":60`} {
		if _, err := Decode([]byte(`{"v":3,"kind":"once",` + bad + `}`)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestP16_NothingIsStoredAfterForget(t *testing.T) {
	rec, _ := after(t, Limits{}, begin("a.1", 0), finish("a.1", 1, 0, "42"))
	late := finish("a.1", 1, 0, "42")
	failed, _ := late.Undo()
	rec, _ = verdict(rec, 2, Op{Kind: KindOnce, Verb: OpDelete})
	if !rec.Idle() {
		t.Fatal("not forgotten")
	}
	anew, _ := verdict(nil, 3, begin("b.1", 3))
	for _, op := range []Op{begin("a.2", 0), late, failed, {Kind: KindOnce, Verb: OpDelete}} {
		wantVerdict(t, nil, 3, op, OtherLife, 0)
		wantVerdict(t, anew, 4, op, OtherLife, 0)
	}
	if st := anew.Standing(&late); st.Standing != Refused || st.Why != OtherLife {
		t.Errorf("%+v", st)
	}
}

func TestP19_FinishOfOneWhoHoldsNoMore(t *testing.T) {
	rec, rev := after(t, Limits{}, begin("a.1", 0), begin("b.1", 0))
	wantVerdict(t, rec, rev, finish("b.1", 2, 0, "not yet"), NotHolder, 0)
	wantVerdict(t, rec, rev, finish("a.1", 2, 0, "another token"), NotHolder, 0)
	next, _ := verdict(rec, rev, evict("a"))
	wantVerdict(t, next, rev+1, finish("a.1", 1, 0, "late"), NotHolder, 0)
	next, _ = verdict(next, rev+1, finish("b.1", rev+1, 0, "b"))
	wantVerdict(t, next, rev+2, finish("a.1", 1, 0, "late"), NotHolder, 0)
	if next.Facts().Value.Data != "b" {
		t.Errorf("%s", next.Append(nil))
	}
}

func TestP26_FinishThatWasGivenUpNeverStores(t *testing.T) {
	rec, rev := after(t, Limits{}, begin("a.1", 0), begin("b.1", 0))
	late := finish("a.1", 1, 0, "42")
	undo, ok := late.Undo()
	if !late.Proven() || !ok || !undo.MustComplete() {
		t.Fatal("whoever gives a finish up has to know what became of it")
	}
	next, _ := verdict(rec, rev, undo)
	expect(t, next, "b.1", "")
	if st := next.Standing(&late); st.Standing != Gone {
		t.Errorf("%+v", st)
	}
	wantVerdict(t, next, rev+1, late, NotHolder, 0)
	done, _ := verdict(rec, rev, late)
	if _, results, changed := Apply(done, rev+1, []Op{undo}, Limits{}); changed || results[0].Verdict != Applied || done.Standing(&late).Standing != Granted {
		t.Errorf("%v, %v, %+v", changed, results, done.Standing(&late))
	}
}

func TestResultIsBounded(t *testing.T) {
	rec, rev := after(t, Limits{}, begin("a.1", 0))
	binary := strings.Repeat("\xff", maxResult)
	if next, res := verdict(rec, rev, finish("a.1", 1, 0, binary)); res.Verdict != Applied || next.Facts().Value.Data != binary {
		t.Error(res.Verdict)
	} else {
		checkStored(t, next)
	}
	wantVerdict(t, rec, rev, finish("a.1", 1, 0, binary+"x"), TooLarge, maxResult)
	for _, result := range []string{strings.Repeat("x", 1000), strings.Repeat("\x00", 200)} { // as it is stored
		next, results, _ := Apply(rec, rev, []Op{finish("a.1", 1, 0, result)}, Limits{MaxBytes: 4000})
		if expect(t, next, "a.1", ""); results[0].Verdict != TooLarge || results[0].Have != 1000 {
			t.Errorf("%+v", results)
		}
	}
	for _, result := range []Value{{}, {Set: true}, {Set: true, Data: "\x00\"ä"}} {
		op := finish("a.1", 1, 0, "")
		op.Value = result
		next, _ := verdict(rec, rev, op)
		if f := next.Facts(); !f.Value.Set || f.Value.Data != result.Data {
			t.Errorf("%+v of %+v", f, result)
		}
		checkStored(t, next)
	}
}

// Random runs with crashes, late and doubled operations: at most one runs, a result stays what it was
// for as long as the record lives, and came from the runner of that moment.
func TestOnceSchedules(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(19, 16))
	var (
		stored []byte
		rev    uint64
		life   uint64
		sent   []Op
		met    = map[string]int{}
	)
	for range 20_000 {
		var rec *Record
		if stored != nil {
			var err error
			if rec, err = Decode(stored); err != nil {
				t.Fatal(err)
			}
			rec.Resolve(rev)
		}
		lease := string(rune('a' + rng.IntN(4)))
		op := begin(ID(lease, uint64(rng.IntN(3))), life)
		switch rng.IntN(14) {
		case 0, 1, 2:
			if rec != nil && len(rec.Holders) > 0 {
				h := rec.Holders[0]
				op = finish(h.ID, RevisionOf(h.Token), life, h.ID)
				op.Fail = rng.IntN(3) > 0
			}
		case 3:
			op = gone(op.ID)
		case 4:
			op = evict(lease)
		case 5:
			op = Op{Kind: KindOnce, Verb: OpDelete, Life: life}
		case 6, 7, 8, 9:
			if len(sent) > 0 {
				op = sent[rng.IntN(len(sent))]
			}
		}
		sent = append(sent[max(0, len(sent)-20):], op)
		next, results, changed := Apply(rec, rev, []Op{op}, Limits{})
		met[op.Verb.String()+" "+results[0].Verdict.String()]++
		before, is := rec.Facts(), next.Facts()
		held := rec != nil && len(rec.Holders) > 0 && rec.Holders[0].ID == is.By
		switch {
		case before.By != "" && !next.Idle() && (is.Value != before.Value || is.By != before.By):
			t.Fatalf("a result changed: %+v, %+v", before, is)
		case before.By == "" && is.By != "" && (!held || is.Value.Data != is.By || op.Token != rec.Holders[0].Token || op.Life != life):
			t.Fatalf("a result of one who does not run: %s\n%s", rec.Append(nil), next.Append(nil))
		case len(next.Holders) > 1 || len(next.Waiters) > 0 && len(next.Holders) == 0:
			t.Fatalf("%s", next.Append(nil))
		}
		if !next.Idle() {
			checkStored(t, next)
		}
		if !changed || rng.IntN(6) == 0 {
			continue
		}
		rev++
		if stored = next.Append(nil); next.Idle() {
			stored, life = nil, rev
		}
	}
	for _, event := range []string{"acquire applied", "acquire finished", "acquire other life", "finish applied", "finish not the holder", "finish other life",
		"delete applied", "delete in use", "delete other life", "evict applied", "release applied"} {
		if met[event] == 0 {
			t.Errorf("no step met %q: %v", event, met)
		}
	}
}
