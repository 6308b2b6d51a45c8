package record

import (
	"cmp"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is one resource, as stored in a bucket, with the oracle's state of it.
type world struct {
	lim    Limits
	stored []byte // nil: absent
	rev    uint64 // of the last write, also when that deleted the key
	model  *oracle
	grants []grant // every grant that was ever committed
}

type grant struct {
	mode  Mode
	token uint64
}

// read is a leader read: the stored record, and revision 0 for an absent key.
func (w *world) read(t *rapid.T) (*Record, uint64) {
	if w.stored == nil {
		return nil, 0
	}
	rec, err := Decode(w.stored)
	if err != nil {
		t.Fatalf("%v: %s", err, w.stored)
	}
	return rec, w.rev
}

var scheduleTTLs = []time.Duration{time.Millisecond, 300 * time.Millisecond, 30 * time.Second}
var scheduleHolds = []time.Duration{0, 0, 3 * time.Microsecond, 1234567, 3 * time.Second, 5 * time.Hour}

// anyOp draws from few names, so that retries, late duplicates and reuse happen all the time.
func (w *world) anyOp(t *rapid.T) Op {
	lease := rapid.SampledFrom([]string{"A", "B", "C"})
	op := Op{Kind: KindLock, Verb: rapid.SampledFrom([]Verb{OpAcquire, OpAcquire, OpAcquire, OpAcquire, OpTry, OpTry,
		OpConvert, OpConvert, OpConvert, OpConvert, OpUnconvert,
		OpRelease, OpRelease, OpRelease, OpEvict, OpRevoke, OpRemove}).Draw(t, "op")}
	op.Lease = lease.Draw(t, "lease")
	op.ID = ID(op.Lease, rapid.Uint64Range(1, 4).Draw(t, "seq"))
	switch op.Verb {
	case OpAcquire, OpTry:
		if rapid.IntRange(0, 9).Draw(t, "retried under another lease") == 0 {
			op.Lease = lease.Draw(t, "lease")
		}
		op.Mode = rapid.SampledFrom([]Mode{IS, IX, S, SIX, U, X, X, S, IS}).Draw(t, "mode")
		op.Owner = rapid.SampledFrom([]string{"", "", "alice", "bob"}).Draw(t, "owner")
		op.TTL = rapid.SampledFrom(scheduleTTLs).Draw(t, "ttl")
		op.Hold = rapid.SampledFrom(scheduleHolds).Draw(t, "supposed hold")
		op.Patience = rapid.SampledFrom([]time.Duration{0, 0, 0, 0, 0, 5 * time.Millisecond, 10 * time.Second}).Draw(t, "patience")
		op.Since = rapid.SampledFrom([]time.Time{{}, time.UnixMilli(1790000000000).UTC()}).Draw(t, "since")
		if rapid.IntRange(0, 3).Draw(t, "meta") == 0 {
			op.Meta = map[string]string{"host": "h", "note": "say \"hi\""}
		}
	case OpConvert, OpUnconvert:
		op.Holder = ID(op.Lease, rapid.Uint64Range(1, 4).Draw(t, "holder"))
		if holders := w.model.list(true); len(holders) > 0 && rapid.IntRange(0, 4).Draw(t, "some holder") > 0 {
			op.Holder = rapid.SampledFrom(holders).Draw(t, "of").op.ID
			op.Lease = LeaseOf(op.Holder)
		}
		op.ID = ID(op.Lease, rapid.Uint64Range(4, 7).Draw(t, "conversion"))
		if rapid.IntRange(0, 14).Draw(t, "retried under another lease") == 0 {
			op.Lease = lease.Draw(t, "lease")
		}
		op.Mode = rapid.SampledFrom([]Mode{IS, IX, S, SIX, U, X, X}).Draw(t, "mode")
		if op.Verb == OpUnconvert && op.Mode == IS { // which uses no mode
			op.Verb = OpStopWaiting
		}
	case OpRelease:
		op.Hold = rapid.SampledFrom(scheduleHolds).Draw(t, "held")
	case OpEvict:
		op.Leases = rapid.SliceOfNDistinct(lease, 0, 3, rapid.ID).Draw(t, "leases")
		if rapid.IntRange(0, 3).Draw(t, "many") == 0 {
			op.Leases = append(op.Leases, "D", "E", "F", "G", "H")
		}
	case OpRevoke, OpRemove:
		if rapid.Bool().Draw(t, "all") {
			op.ID = ""
			if rapid.IntRange(0, 4).Draw(t, "whoever holds") > 0 {
				for _, h := range w.model.list(true) {
					op.UpTo = max(op.UpTo, h.token)
				}
				op.UpTo = cmp.Or(op.UpTo, Ticket(w.rev, 0)) - rapid.SampledFrom([]uint64{0, 1, Ticket(3, 0)}).Draw(t, "seen before")
			}
		}
	}
	return op
}

// step is one round of an engine: read, apply, and write by CAS unless the write is lost.
func (w *world) step(t *rapid.T) {
	base, rev := w.read(t)
	var kept *Record
	if base != nil {
		kept = base.Clone()
	}
	ops := make([]Op, rapid.IntRange(1, 4).Draw(t, "ops"))
	for i := range ops {
		ops[i] = w.anyOp(t)
	}

	next, results, changed := Apply(base, rev, ops, w.lim)

	if !reflect.DeepEqual(base, kept) {
		t.Fatalf("Apply modified its input: %s", base.Append(nil))
	}
	model := w.model.clone()
	for i, op := range ops {
		verdict, blocker := model.apply(op)
		if results[i].Verdict != verdict || results[i].Blocker.ID != blocker {
			t.Fatalf("op %d: %s by %q, the oracle says %s by %q", i, results[i].Verdict, results[i].Blocker.ID, verdict, blocker)
		}
	}
	if len(model.entries) == 0 {
		model.hold = 0
	}
	if want := model.record(); !reflect.DeepEqual(next, want) {
		t.Fatalf("next is\n%s\nthe oracle says\n%s", next.Append(nil), want.Append(nil))
	}
	if before := w.model.record(); changed == reflect.DeepEqual(next, before) {
		t.Fatalf("changed is %v:\n%s\n%s", changed, before.Append(nil), next.Append(nil))
	}
	w.checkState(t, next)
	w.checkOrder(t, base, next, ops, results)
	w.checkRetry(t, base, rev, ops)
	w.checkRoom(t, next)

	if rapid.IntRange(0, 4).Draw(t, "write lost") == 0 {
		return
	}
	w.rev += rapid.Uint64Range(1, 3).Draw(t, "other keys' writes")
	w.stored = storedForm(next)
	w.checkTokens(t, base, rev, next)
	model.commit(w.rev)
	w.model = model
	if next.Idle() && rapid.Bool().Draw(t, "delete") {
		w.stored = nil
	}
}

// checkState checks one record by itself.
func (w *world) checkState(t *rapid.T, r *Record) {
	for i, a := range r.Holders {
		for _, b := range r.Holders[i+1:] {
			if !oracleCompatible(a.Mode, b.Mode) {
				t.Fatalf("%s and %s hold together: %s", a.ID, b.ID, r.Append(nil))
			}
		}
	}
	ids, owners := map[string]bool{}, map[string]bool{}
	for _, e := range append(append([]Entry(nil), r.Holders...), r.Waiters...) {
		if ids[e.ID] || e.Owner != "" && owners[e.Owner] {
			t.Fatalf("%s or its owner stands twice: %s", e.ID, r.Append(nil))
		}
		ids[e.ID], owners[e.Owner] = true, true
	}
	waits := false
	for i, h := range r.Holders {
		if h.Convert.ID == "" {
			continue
		}
		waits = true
		fits := true
		for k, other := range r.Holders {
			fits = fits && (k == i || oracleCompatible(other.Mode, h.Convert.Mode))
		}
		if fits || h.Revoked || h.Converted != "" || LeaseOf(h.Convert.ID) != h.Lease() {
			t.Fatalf("%s waits for %s: %s", h.ID, h.Convert.Mode, r.Append(nil))
		}
	}
	checkProgress(t, r)
	if len(r.Waiters) > 0 && len(r.Holders) < w.lim.MaxHolders {
		blocked := waits
		for _, h := range r.Holders {
			blocked = blocked || !oracleCompatible(h.Mode, r.Waiters[0].Mode)
		}
		if !blocked {
			t.Fatalf("nothing blocks the head of the queue: %s", r.Append(nil))
		}
	}
	stored := r.Append(nil)
	if len(r.Holders) > w.lim.MaxHolders || len(r.Waiters) > w.lim.MaxWaiters || len(stored) > w.lim.MaxBytes {
		t.Fatalf("beyond %+v: %s", w.lim, stored)
	}
	if back, err := Decode(stored); !r.Idle() && (err != nil || !reflect.DeepEqual(back, r)) {
		t.Fatalf("came back as %+v, %v: %s", back, err, stored)
	}
}

// checkProgress: a holder that waits for nothing releases some time. If all of them leave, and those
// granted after them leave as well, no waiter may be left.
func checkProgress(t *rapid.T, r *Record) {
	left := r.Clone()
	left.Waiters = nil
	for len(left.Holders) > 0 {
		var gone []Op
		for _, h := range left.Holders {
			if h.Convert.ID == "" {
				gone = append(gone, Op{Kind: KindLock, Verb: OpRelease, ID: h.ID})
			}
		}
		if len(gone) == 0 {
			t.Fatalf("they wait for each other: %s of %s", left.Append(nil), r.Append(nil))
		}
		left, _, _ = Apply(left, 1, gone, Limits{})
	}
}

// checkOrder uses only arrivals, not modes: entries that these operations have granted
// arrived before all that still wait.
func (w *world) checkOrder(t *rapid.T, base, next *Record, ops []Op, results []Result) {
	var queue []string
	leave := func(gone func(id string) bool) {
		kept := queue[:0]
		for _, id := range queue {
			if !gone(id) {
				kept = append(kept, id)
			}
		}
		queue = kept
	}
	held := map[string]uint64{}
	if base != nil {
		for _, e := range base.Waiters {
			queue = append(queue, e.ID)
		}
		for _, e := range base.Holders {
			held[e.ID] = e.Token
		}
	}
	for i, op := range ops {
		switch {
		case results[i].Verdict != Applied:
		case op.Verb == OpAcquire || op.Verb == OpTry:
			if _, holds := held[op.ID]; !holds && !strings.Contains(" "+strings.Join(queue, " ")+" ", " "+op.ID+" ") {
				queue = append(queue, op.ID)
			}
		case op.Verb == OpRelease:
			leave(func(id string) bool { return id == op.ID })
			delete(held, op.ID)
		case op.Verb == OpEvict:
			for _, lease := range op.Leases {
				leave(func(id string) bool { return strings.HasPrefix(id, lease+".") })
			}
			for id := range held {
				for _, lease := range op.Leases {
					if strings.HasPrefix(id, lease+".") {
						delete(held, id)
					}
				}
			}
		case op.Verb == OpRemove && i < len(ops)-1:
			return // may remove some who were granted here, and who may then arrive again: left to the oracle
		}
	}
	place := map[string]int{}
	for i, id := range queue {
		place[id] = i
	}
	for _, g := range next.Holders {
		if _, before := held[g.ID]; before {
			continue
		}
		for _, wait := range next.Waiters {
			if place[g.ID] > place[wait.ID] {
				t.Fatalf("%s passed %s (%v): %s", g.ID, wait.ID, queue, next.Append(nil))
			}
		}
	}
}

// checkRetry: an unknown outcome is handled by reading again and applying again, so twice is once.
func (w *world) checkRetry(t *rapid.T, base *Record, rev uint64, ops []Op) {
	for _, op := range ops {
		if (op.Verb == OpRemove || op.Verb == OpRevoke) && op.ID == "" && op.UpTo == 0 {
			continue // says of itself that it is not idempotent
		}
		once, first, _ := Apply(base, rev, []Op{op}, w.lim)
		twice, second, _ := Apply(base, rev, []Op{op, op}, w.lim)
		if !reflect.DeepEqual(once, twice) || second[1].Verdict != first[0].Verdict {
			t.Fatalf("%s twice in one write is %s:\n%s\n%s", op.Verb, second[1].Verdict, once.Append(nil), twice.Append(nil))
		}
		later, third, changed := Apply(once, w.rev+1, []Op{op}, w.lim)
		resolved := once.Clone()
		resolved.Resolve(w.rev + 1)
		if changed || third[0].Verdict != first[0].Verdict || !reflect.DeepEqual(later, resolved) {
			t.Fatalf("%s again in the next write is %s:\n%s\n%s", op.Verb, third[0].Verdict, once.Append(nil), later.Append(nil))
		}
	}
}

// checkRoom: however full a record is, its entries can be revoked, granted, and released one by one.
func (w *world) checkRoom(t *rapid.T, r *Record) {
	r = r.Clone()
	for _, h := range r.Holders {
		for _, m := range []Mode{X, SIX} {
			op := Op{Kind: KindLock, Verb: OpConvert, ID: ID(h.Lease(), math.MaxUint64), Lease: h.Lease(), Holder: h.ID, Mode: m}
			if r, _, _ = Apply(r, 1<<51, []Op{op}, w.lim); len(r.Append(nil)) > w.lim.MaxBytes {
				t.Fatalf("converting made it %d bytes of %d: %s", len(r.Append(nil)), w.lim.MaxBytes, r.Append(nil))
			}
		}
	}
	for n := len(r.Holders) + len(r.Waiters); n > 0; n-- {
		revoked, _, _ := Apply(r, 1<<51, []Op{{Verb: OpRevoke}}, w.lim)
		if size := len(revoked.Append(nil)); size > w.lim.MaxBytes {
			t.Fatalf("revoking made it %d bytes of %d: %s", size, w.lim.MaxBytes, revoked.Append(nil))
		}
		if len(revoked.Holders) == 0 {
			t.Fatalf("nobody holds and %d wait: %s", n, revoked.Append(nil))
		}
		gone := revoked.Holders[0].ID
		next, results, changed := Apply(revoked, 1<<51, []Op{{Kind: KindLock, Verb: OpRelease, ID: gone}}, w.lim)
		if results[0].Verdict != Applied || !changed || len(next.Holders)+len(next.Waiters) != n-1 {
			t.Fatalf("release of %s: %s: %s", gone, results[0].Verdict, next.Append(nil))
		}
		w.checkState(t, next)
		r = next
	}
}

// checkTokens checks the record just written, as its readers see it.
func (w *world) checkTokens(t *rapid.T, base *Record, rev uint64, next *Record) {
	was, mode := map[string]uint64{}, map[string]Mode{}
	if base != nil {
		base.Resolve(rev)
		for _, e := range base.Holders {
			was[e.ID], mode[e.ID] = e.Token, e.Mode
		}
	}
	now, err := Decode(w.stored)
	if err != nil {
		t.Fatal(err)
	}
	now.Resolve(w.rev)
	var grants []grant
	for _, e := range now.Holders {
		if e.Token == was[e.ID] {
			if !oracleCovers(mode[e.ID], e.Mode) {
				t.Fatalf("%s went from %s to %s with its old token", e.ID, mode[e.ID], e.Mode)
			}
			continue
		}
		grants = append(grants, grant{e.Mode, e.Token})
		for _, g := range w.grants {
			if !oracleCompatible(g.mode, e.Mode) && g.token >= e.Token {
				t.Fatalf("%s got %s with token %d after %s had %d", e.ID, e.Mode, e.Token, g.mode, g.token)
			}
		}
	}
	w.grants = append(w.grants, grants...)
	before := uint64(0) // every waiter's ticket is above that of the one before it, and above all granted tokens
	for _, g := range w.grants {
		before = max(before, g.token)
	}
	for _, e := range now.Waiters {
		if e.Token <= before {
			t.Fatalf("%s waits with ticket %d, after %d", e.ID, e.Token, before)
		}
		before = e.Token
	}
}

func schedule(t *rapid.T) {
	lim := Limits{
		MaxHolders: rapid.IntRange(1, 5).Draw(t, "max holders"),
		MaxWaiters: rapid.IntRange(1, 5).Draw(t, "max waiters"),
		MaxBytes:   rapid.SampledFrom([]int{1 << 20, 626, 1026, 1626}).Draw(t, "max bytes"),
	}
	w := &world{lim: lim, rev: 1790000000000000, model: &oracle{lim: lim}}
	for range rapid.IntRange(1, 150).Draw(t, "steps") {
		w.step(t)
	}
}

// TestSchedules holds Apply against the oracle and against every invariant, after every step of
// random schedules with retries, lost writes, late duplicates, dead leases and tight limits.
func TestSchedules(t *testing.T) {
	t.Parallel()
	rapid.Check(t, schedule)
}

// FuzzSchedules is TestSchedules, steered by coverage.
func FuzzSchedules(f *testing.F) { f.Fuzz(rapid.MakeFuzz(schedule)) }
