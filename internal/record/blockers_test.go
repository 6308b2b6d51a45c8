package record

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// The edges of deadlock detection (rule M24) against the ground truth, by the real state machine: units of
// work hold and wait in several records, and units that don't wait release everything until nothing
// more happens. A unit that still waits then is in a deadlock.

const (
	modelUnits   = 5
	modelRecords = 3
)

type modelWorld struct {
	recs [modelRecords]*Record
	revs [modelRecords]uint64
	seq  uint64
}

func unitLease(u int) string { return string(rune('a' + u)) }

func (w *modelWorld) apply(k int, op Op) Verdict {
	op.Kind = KindLock
	op.Lease = LeaseOf(op.ID)
	next, results, _ := Apply(w.recs[k], w.revs[k], []Op{op}, Limits{})
	w.revs[k]++
	next.Resolve(w.revs[k])
	w.recs[k] = next
	return results[0].Verdict
}

func (w *modelWorld) clone() *modelWorld {
	c := *w
	for i, r := range w.recs {
		if r != nil {
			c.recs[i] = r.Clone()
		}
	}
	return &c
}

// waits returns the ids under which the unit waits in the k-th record.
func (w *modelWorld) waits(u, k int) (ids []string) {
	for id, st := range w.recs[k].States() {
		if st.Standing == Waiting && LeaseOf(id) == unitLease(u) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (w *modelWorld) waiting(u int) (n int) {
	for k := range modelRecords {
		n += len(w.waits(u, k))
	}
	return n
}

// step makes a random unit do something possible: a waiting unit may begin another wait besides,
// or give one up.
func (w *modelWorld) step(rnd *rand.Rand) {
	u, k := rnd.IntN(modelUnits), rnd.IntN(modelRecords)
	busy := w.waiting(u)
	if busy > 1 || busy == 1 && rnd.IntN(4) > 0 {
		return
	}
	w.seq++
	id, mode := ID(unitLease(u), w.seq), IS+Mode(rnd.IntN(6))
	var held []Entry
	if w.recs[k] != nil {
		held = slices.DeleteFunc(slices.Clone(w.recs[k].Holders), func(e Entry) bool { return e.Lease() != unitLease(u) })
	}
	stands := len(held) > 0 || len(w.waits(u, k)) > 0
	switch n := rnd.IntN(10); {
	case n < 6 && !stands:
		w.apply(k, Op{Verb: OpAcquire, ID: id, Mode: mode, TTL: ttl})
	case n < 8 && len(held) > 0 && held[0].Convert.ID == "":
		w.apply(k, Op{Verb: OpConvert, ID: id, Holder: held[0].ID, Mode: mode})
	case n == 8 && len(held) > 0:
		w.apply(k, Op{Verb: OpRelease, ID: held[0].ID})
	case n == 9 && busy > 0:
		for k := range modelRecords {
			for _, waits := range w.waits(u, k) {
				w.apply(k, Op{Verb: OpStopWaiting, ID: waits})
			}
		}
	}
}

// truth tells of each unit whether it waits for ever.
func (w *modelWorld) truth() (stuck [modelUnits]bool) {
	w = w.clone()
	for changed := true; changed; {
		changed = false
		for u := range modelUnits {
			if w.waiting(u) > 0 {
				continue
			}
			for k := range modelRecords {
				if w.recs[k].HasLease(unitLease(u)) {
					w.apply(k, Op{Verb: OpEvict, ID: ID(unitLease(u), 1), Leases: []string{unitLease(u)}})
					changed = true
				}
			}
		}
	}
	for u := range modelUnits {
		stuck[u] = w.waiting(u) > 0
	}
	return stuck
}

// edges is a definition of who is in the way of a wait, and of whether the whole unit behind an entry has
// to go or only the entry's wait has to end.
type edges func(r *Record, id string) (away, granted []Entry)

// theEdges are those of Blockers and FinalMode.
func theEdges(r *Record, id string) (away, granted []Entry) {
	w, _ := r.Waiting(id)
	for _, e := range r.Blockers(id) {
		if _, waits := r.Waiting(e.ID); waits && Compatible(e.FinalMode(), w.Mode) {
			granted = append(granted, e)
		} else {
			away = append(away, e)
		}
	}
	return away, granted
}

// predict tells of each unit whether a circle of edges can be reached from it.
func (w *modelWorld) predict(of edges) (stuck [modelUnits]bool) {
	free := map[string]bool{} // waits that end
	unitFree := func(u int) bool {
		for k := range modelRecords {
			for _, id := range w.waits(u, k) {
				if !free[id] {
					return false
				}
			}
		}
		return true
	}
	for changed := true; changed; {
		changed = false
		for u := range modelUnits {
			for k := range modelRecords {
				for _, id := range w.waits(u, k) {
					away, granted := of(w.recs[k], id)
					ends := !slices.ContainsFunc(away, func(e Entry) bool { return !unitFree(int(e.Lease()[0] - 'a')) }) &&
						!slices.ContainsFunc(granted, func(e Entry) bool {
							other, _ := w.recs[k].Waiting(e.ID)
							return !free[other.ID]
						})
					if ends && !free[id] {
						free[id], changed = true, true
					}
				}
			}
		}
	}
	for u := range modelUnits {
		stuck[u] = !unitFree(u)
	}
	return stuck
}

// Rule M24: the edges find every unit that waits for ever and no other. Three that look right are wrong:
// the model sees each of them fail.
func TestM24EdgesAgainstTheGroundTruth(t *testing.T) {
	t.Parallel()
	weaker := func(keep func(r *Record, w Wait, e Entry) bool) edges {
		return func(r *Record, id string) (away, granted []Entry) {
			w, _ := r.Waiting(id)
			drop := func(e Entry) bool { return !keep(r, w, e) }
			away, granted = theEdges(r, id)
			return slices.DeleteFunc(away, drop), slices.DeleteFunc(granted, drop)
		}
	}
	definitions := map[string]edges{
		"these": theEdges,
		"incompatible entries only": weaker(func(r *Record, w Wait, e Entry) bool {
			return !Compatible(e.Mode, w.Mode)
		}),
		"not those who convert": weaker(func(r *Record, w Wait, e Entry) bool {
			return e.Convert.ID == "" || !Compatible(e.Mode, w.Mode)
		}),
		"the whole unit always": func(r *Record, id string) (away, granted []Entry) { return r.Blockers(id), nil },
	}
	type score struct{ missed, invented int }
	scores := map[string]*score{}
	deadlocks := 0
	for seed := range uint64(1500) {
		rnd := rand.New(rand.NewPCG(seed, 24))
		w := &modelWorld{}
		for range 12 + rnd.IntN(30) {
			w.step(rnd)
		}
		truth := w.truth()
		if truth != [modelUnits]bool{} {
			deadlocks++
		}
		for name, of := range definitions {
			s := scores[name]
			if s == nil {
				s = new(score)
				scores[name] = s
			}
			for u, stuck := range w.predict(of) {
				switch {
				case truth[u] && !stuck:
					s.missed++
				case stuck && !truth[u]:
					s.invented++
				}
			}
			if name == "these" && (s.missed > 0 || s.invented > 0) {
				t.Fatalf("schedule %d: %+v; %s", seed, s, w)
			}
		}
	}
	t.Logf("%d schedules with a deadlock", deadlocks)
	for name, s := range scores {
		t.Logf("%s: %d missed, %d invented", name, s.missed, s.invented)
		if name != "these" && s.missed+s.invented == 0 {
			t.Errorf("%s: the model sees nothing wrong with it", name)
		}
	}
	if deadlocks < 300 {
		t.Errorf("only %d schedules with a deadlock", deadlocks)
	}
}

func (w *modelWorld) String() (s string) {
	for k, r := range w.recs {
		if r != nil {
			s += fmt.Sprintf("\n%d: %s", k, r.Append(nil))
		}
	}
	return s
}

// Promotion stops at the head: IS behind IX behind S waits for the IX, though it excludes neither.
func TestM24CompatibleWaiterAhead(t *testing.T) {
	rec, _ := after(t, Limits{}, acquire("a.1", S), acquire("b.1", IX), acquire("c.1", IS))
	if got := ids(rec.Blockers("c.1")); got != "b.1" {
		t.Errorf("c.1 waits for [%s]", got)
	}
	if got := ids(rec.Blockers("b.1")); got != "a.1" {
		t.Errorf("b.1 waits for [%s]", got)
	}
	if got := rec.Blockers("a.1"); len(got) > 0 {
		t.Errorf("a.1, which holds, waits for [%s]", ids(got))
	}
}

func TestBlockersOfConversions(t *testing.T) {
	rec, _ := after(t, Limits{}, acquire("a.1", S), acquire("b.1", S), acquire("c.1", IS), convert("a.1", 2, X), acquire("d.1", IS))
	for _, id := range []string{"a.1", "a.2"} {
		if got := ids(rec.Blockers(id)); got != "b.1 c.1" {
			t.Errorf("%s waits for [%s]", id, got)
		}
	}
	if got := ids(rec.Blockers("d.1")); got != "a.1" {
		t.Errorf("d.1, which only the conversion keeps out, waits for [%s]", got)
	}
	w, ok := rec.Waiting("a.2")
	if !ok || w.ID != "a.2" || w.Mode != X || w.Queued != 4 || w.Entry.ID != "a.1" {
		t.Errorf("%+v, %v", w, ok)
	}
}

// Rule M36: permits, a place among the holders and a signal come from any of several, so there are no edges.
func TestM36NoEdgesWhereAnyOfSeveralWillDo(t *testing.T) {
	full, _ := after(t, Limits{MaxHolders: 1}, acquire("a.1", S), acquire("b.1", S))
	if got := full.Blockers("b.1"); len(got) > 0 {
		t.Errorf("waits for a place, and for [%s]", ids(got))
	}
	permits := Op{Kind: KindSemaphore, Verb: OpAcquire, Lease: "a", ID: "a.1", N: 1, Limit: 1, TTL: ttl}
	other := permits
	other.Lease, other.ID = "b", "b.1"
	sem, _, _ := Apply(nil, 0, []Op{permits, other}, Limits{})
	if len(sem.Waiters) != 1 || len(sem.Blockers("b.1")) > 0 {
		t.Errorf("%s: waits for [%s]", sem.Append(nil), ids(sem.Blockers("b.1")))
	}
	wait := Op{Kind: KindLock, Verb: OpWait, Lease: "a", ID: "a.2", Holder: "a.1", Token: Ticket(1, 0), Queue: "c"}
	cond, _ := after(t, Limits{}, acquire("a.1", X), wait, acquire("b.1", X))
	if got := cond.Blockers("a.2"); len(got) > 0 || ids(cond.Holders) != "b.1" {
		t.Errorf("waits for a signal, and for [%s]", ids(got))
	}
}
