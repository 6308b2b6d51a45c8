package record

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// condOracle says where every id of a lock with conditions is, as dumbly as it can: one list in the order
// in which they came to where they are. All entries have mode X. It shares no code with the package.
type condOracle struct {
	max   int // of all waiters
	stand []condEntry
}

type condEntry struct {
	id, place, woken string // place: "held", "queue", or "?" and a condition's name; woken: by which
	all              bool
	token            uint64 // of the holder; 0: the write at hand
	signalled        uint64 // sequence of its last signal
}

func (o *condOracle) at(place string) (out []int) {
	for i, e := range o.stand {
		if e.place == place {
			out = append(out, i)
		}
	}
	return out
}

func (o *condOracle) find(id string) int {
	return slices.IndexFunc(o.stand, func(e condEntry) bool { return e.id == id })
}

// move takes the i-th entry and puts it, changed, behind all others.
func (o *condOracle) move(i int, change func(*condEntry)) {
	e := o.stand[i]
	change(&e)
	o.stand = append(slices.Delete(slices.Clone(o.stand), i, i+1), e)
}

func (o *condOracle) grant() {
	if q := o.at("queue"); len(o.at("held")) == 0 && len(q) > 0 {
		o.move(q[0], func(e *condEntry) { e.place, e.token = "held", 0 })
	}
}

func (o *condOracle) wake(name string, all bool) {
	if q := o.at("?" + name); len(q) > 0 {
		o.move(q[0], func(e *condEntry) { e.place, e.woken, e.all = "queue", name, all })
	}
}

func seqOf(id string) (seq uint64) {
	_, _ = fmt.Sscan(id[strings.Index(id, ".")+1:], &seq)
	return seq
}

func (o *condOracle) apply(op Op) Verdict {
	h := o.find(op.Holder)
	holds := h >= 0 && o.stand[h].place == "held" && o.stand[h].token == op.Token
	there := o.find(op.ID)
	switch op.Verb {
	case OpAcquire:
		if there < 0 && len(o.stand)-len(o.at("held")) >= o.max && len(o.at("held"))+len(o.at("queue")) > 0 {
			return QueueFull
		} else if there < 0 {
			o.stand = append(o.stand, condEntry{id: op.ID, place: "queue"})
		}
	case OpWait:
		if there >= 0 {
			break
		} else if !holds {
			return NotHolder
		}
		waiting := len(o.stand) - 1
		if len(o.at("queue")) > 0 {
			waiting--
		}
		if waiting >= o.max {
			o.stand[h] = condEntry{id: op.ID, place: "held", token: op.Token}
			break
		}
		o.move(h, func(e *condEntry) { *e = condEntry{id: op.ID, place: "?" + op.Queue} })
	case OpCancelWait:
		switch {
		case there >= 0 && o.stand[there].place[0] == '?':
			o.move(there, func(e *condEntry) { e.place = "queue" })
		case there < 0 && holds:
			o.stand[h] = condEntry{id: op.ID, place: "held", token: op.Token}
		}
	case OpSignal:
		if !holds {
			return NotHolder
		} else if o.stand[h].signalled < seqOf(op.ID) {
			for n := len(o.at("?" + op.Queue)); n > 0; n-- {
				o.stand[o.find(op.Holder)].signalled = seqOf(op.ID)
				if o.wake(op.Queue, op.All); !op.All {
					break
				}
			}
		}
	case OpRelease, OpEvict:
		leaves := func(e condEntry) bool {
			return e.id == op.ID && op.Verb == OpRelease || slices.Contains(op.Leases, e.id[:1])
		}
		var pass []string
		for _, i := range slices.Concat(o.at("held"), o.at("queue")) { // signals pass on in this order
			if e := o.stand[i]; leaves(e) && e.woken != "" && !e.all && op.Token == 0 {
				pass = append(pass, e.woken)
			}
		}
		o.stand = slices.DeleteFunc(slices.Clone(o.stand), leaves)
		for _, name := range pass {
			o.wake(name, false)
		}
	}
	o.grant()
	return Applied
}

// layout is that of a record.
func (o *condOracle) layout() string {
	out := func(place string) string {
		var list []string
		for _, i := range o.at(place) {
			e := o.stand[i]
			list = append(list, e.id+map[bool]string{true: "*"}[e.woken != ""]+map[bool]string{true: "*"}[e.all])
		}
		return strings.Join(list, " ")
	}
	places := []string{out("held"), out("queue")}
	for _, name := range []string{"empty", "full"} {
		if list := out("?" + name); list != "" {
			places = append(places, name+": "+list)
		}
	}
	return strings.Join(places, " | ")
}

// condWorld is a lock with conditions, beside the oracle's idea of it.
type condWorld struct {
	lim    Limits
	stored []byte
	rev    uint64
	last   uint64 // token
	model  condOracle
	sent   []Op // all that may come late, or twice
	met    map[string]int
}

func (w *condWorld) anyOp(t *rapid.T) Op {
	if len(w.sent) > 0 && rapid.IntRange(0, 3).Draw(t, "again") == 0 {
		return rapid.SampledFrom(w.sent).Draw(t, "late")
	}
	id := ID(rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "lease"), rapid.Uint64Range(1, 5).Draw(t, "seq"))
	op := Op{Kind: KindLock, Verb: rapid.SampledFrom([]Verb{OpAcquire, OpAcquire, OpAcquire, OpWait, OpWait, OpWait, OpWait, OpSignal, OpSignal,
		OpSignal, OpCancelWait, OpRelease, OpRelease, OpRelease, OpEvict}).Draw(t, "verb"), ID: id, Lease: LeaseOf(id)}
	switch op.Verb {
	case OpAcquire:
		op.Mode, op.TTL = X, ttl
	case OpEvict:
		op.Leases = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 3, rapid.ID).Draw(t, "dead")
		op.ID, op.Lease = "", ""
	case OpRelease:
		if held := w.model.at("held"); len(held) > 0 && rapid.Bool().Draw(t, "the holder") {
			e := w.model.stand[held[0]]
			op.ID, op.Lease = e.id, e.id[:1]
			if rapid.Bool().Draw(t, "handed out") {
				op.Token = e.token
			}
		}
	default:
		op.Queue = rapid.SampledFrom([]string{"full", "full", "empty"}).Draw(t, "condition")
		op.All = op.Verb == OpSignal && rapid.IntRange(0, 2).Draw(t, "all") == 0
		op.Holder, op.Token = id, 1
		if held := w.model.at("held"); len(held) > 0 {
			e := w.model.stand[held[0]]
			op.Holder, op.Lease, op.Token = e.id, e.id[:1], e.token
			op.ID = ID(op.Lease, rapid.Uint64Range(1, 9).Draw(t, "its seq"))
		}
	}
	return op
}

func (w *condWorld) step(t *rapid.T) {
	var base *Record
	if w.stored != nil {
		var err error
		if base, err = Decode(w.stored); err != nil {
			t.Fatalf("%v: %s", err, w.stored)
		}
	}
	ops := make([]Op, rapid.IntRange(1, 3).Draw(t, "ops"))
	for i := range ops {
		ops[i] = w.anyOp(t)
	}
	w.sent = append(w.sent, ops...)
	next, results, changed := Apply(base, w.rev, ops, w.lim)
	model := condOracle{max: w.model.max, stand: slices.Clone(w.model.stand)}
	for i, op := range ops {
		verdict := model.apply(op)
		if results[i].Verdict != verdict {
			t.Fatalf("op %d, %s %s: %s, the oracle says %s\nof %s", i, op.Verb, op.ID, results[i].Verdict, verdict, w.model.layout())
		}
		w.met[op.Verb.String()+": "+verdict.String()]++
	}
	if got, want := layout(next), model.layout(); got != want {
		t.Fatalf("%v\nof %s\nmade %s, the oracle says %s", ops, w.model.layout(), got, want)
	}
	// P1: in exactly one place.
	ids := map[string]bool{}
	for id := range next.States() {
		if ids[id] || !next.Has(id) {
			t.Fatalf("%s stands twice, or not at all: %s", id, layout(next))
		}
		ids[id] = true
	}
	if len(ids) != len(model.stand) || next.EntriesUnder("a", "b", "c", "d") != len(ids) {
		t.Fatalf("%d of %d: %s", len(ids), len(model.stand), layout(next))
	}
	// The same operations once more change nothing.
	once, _, _ := Apply(base, w.rev, ops[:1], w.lim)
	if _, _, again := Apply(once, w.rev+1, ops[:1], w.lim); again {
		t.Fatalf("%s %s changes something twice: %s", ops[0].Verb, ops[0].ID, layout(once))
	}
	if rapid.IntRange(0, 4).Draw(t, "write lost") == 0 || !changed {
		return
	}
	w.rev++
	w.stored = storedForm(next)
	if next.Idle() {
		w.stored = nil
	}
	for i := range model.stand {
		if e := &model.stand[i]; e.place == "held" && e.token == 0 {
			h, _ := next.Holder(e.id)
			h.Resolve(w.rev)
			if e.token = h.Token; e.token <= w.last {
				t.Fatalf("%s has token %d, after one that had %d", e.id, e.token, w.last)
			}
			w.last = e.token
		}
	}
	w.model = model
	w.checkTokens(t, next)
}

func (w *condWorld) checkTokens(t *rapid.T, next *Record) {
	next.Resolve(w.rev)
	for i, k := range w.model.at("held") {
		if e := w.model.stand[k]; next.Holders[i].Token != e.token || next.Holders[i].LastSignal != e.signalled {
			t.Fatalf("%+v, the oracle says %+v", next.Holders[i], e)
		}
		if w.model.stand[k].woken != "" {
			w.met["a woken one holds"]++
		}
	}
}

func condSchedule(t *rapid.T, met map[string]int) {
	lim := Limits{MaxWaiters: rapid.IntRange(1, 6).Draw(t, "max waiters")}
	w := &condWorld{lim: lim, rev: 1, model: condOracle{max: lim.MaxWaiters}, met: met}
	for range rapid.IntRange(1, 100).Draw(t, "steps") {
		w.step(t)
	}
}

// Random schedules of a lock with two conditions, with lost writes, late and repeated operations, and dead
// leases: who could be in two places (a condition's queue, the lock's, holding) is in one, always, and in that
// which the oracle says.
func TestP1_EveryoneIsInOnePlace(t *testing.T) {
	met := map[string]int{}
	rapid.Check(t, func(t *rapid.T) { condSchedule(t, met) })
	for _, event := range []string{"acquire: applied", "acquire: queue full", "wait: applied", "wait: not the holder", "signal: applied",
		"signal: not the holder", "cancel-wait: applied", "release: applied", "evict: applied", "a woken one holds"} {
		if met[event] == 0 {
			t.Errorf("no schedule met %q: %v", event, met)
		}
	}
}

// However full a record is, waiting, being signalled and coming back fit.
func TestFullRecordWithConditionsDrains(t *testing.T) {
	t.Parallel()
	name := strings.Repeat("\x01", maxQueueName) // six bytes each
	for room := 1; room < 2500; room += 7 {
		b := &board{t: t, lim: Limits{MaxBytes: room}}
		n := 0
		for ; n < 9; n++ {
			op := acquire(ID("a", uint64(n)), X)
			if n == 0 {
				op.Value = Value{Set: true, Data: "leads"}
			}
			if b.do(op) != "applied" {
				break
			}
		}
		fits := func(what string) {
			t.Helper()
			if b.rec == nil {
				return
			}
			if size := len(b.rec.Append(nil)); size > room {
				t.Fatalf("%s made it %d bytes of %d: %s", what, size, room, b.rec.Append(nil))
			}
		}
		for i := range 3 * n {
			hold := b.rec.Holders[0].ID
			b.must(b.wait(hold, math.MaxUint64-uint64(9*i), name))
			fits("wait")
			if len(b.rec.Holders) == 0 {
				break
			}
			hold = b.rec.Holders[0].ID
			b.must(b.broadcast(hold, math.MaxUint64-uint64(9*i+1), name))
			fits("signal")
			less, more := convert(hold, math.MaxUint64-uint64(9*i+2), U), convert(hold, math.MaxUint64-uint64(9*i+3), X)
			b.must(less, more)
			fits("convert")
		}
		if b.rec == nil {
			continue
		}
		for id := range b.rec.States() {
			b.must(Op{Verb: OpRevoke})
			fits("revoke")
			b.must(Op{Kind: KindLock, Verb: OpCancelWait, ID: id, Lease: LeaseOf(id), Holder: id, Token: Ticket(1, 0)})
			fits("coming back")
			if b.rec == nil {
				break
			}
		}
	}
}
