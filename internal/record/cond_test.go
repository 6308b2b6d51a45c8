package record

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// board is one lock as a bucket would keep it: each call of do is a write, stored and read again.
type board struct {
	t   *testing.T
	lim Limits
	rec *Record // nil: absent
	rev uint64
}

// do writes ops at once and returns their verdicts.
func (b *board) do(ops ...Op) string {
	b.t.Helper()
	next, results, changed := Apply(b.rec, b.rev, ops, b.lim)
	var verdicts []string
	for _, r := range results {
		verdicts = append(verdicts, r.Verdict.String())
	}
	if !changed {
		return strings.Join(verdicts, ", ")
	}
	b.rev++
	b.rec = nil
	if !next.Idle() {
		back, err := Decode(next.Append(nil))
		if err != nil || !reflect.DeepEqual(back, next) {
			b.t.Fatalf("%s\ncame back as %+v, %v", next.Append(nil), back, err)
		}
		back.Resolve(b.rev)
		b.rec = back
	}
	return strings.Join(verdicts, ", ")
}

// must is do for operations that have to be applied.
func (b *board) must(ops ...Op) {
	b.t.Helper()
	for _, op := range ops {
		if v := b.do(op); v != "applied" {
			b.t.Fatalf("%s %s: %s", op.Verb, op.ID, v)
		}
	}
}

// is compares the holders, the waiters for the lock, and the waiters for each condition.
func (b *board) is(want string) {
	b.t.Helper()
	if got := layout(b.rec); got != want {
		b.t.Fatalf("at revision %d: %s\nwant %s", b.rev, got, want)
	}
}

// layout is like "a.1 | b.2* c.3 | full: d.4": holders, waiters, conditions; "*" is signalled, "**" by a broadcast.
func layout(r *Record) string {
	if r == nil {
		return "absent"
	}
	names := func(list []Entry) string {
		var out []string
		for _, e := range list {
			out = append(out, e.ID+map[bool]string{true: "*"}[e.Signalled != ""]+map[bool]string{true: "*"}[e.SignalAll])
		}
		return strings.Join(out, " ")
	}
	places := []string{names(r.Holders), names(r.Waiters)}
	for _, q := range r.Facts().Queues {
		places = append(places, q.Name+": "+names(q.Waiters))
	}
	return strings.Join(places, " | ")
}

// ofHold is an operation of the hold, by its token.
func (b *board) ofHold(verb Verb, hold string, seq uint64, queue string) Op {
	b.t.Helper()
	e, ok := b.rec.Holder(hold)
	if !ok {
		b.t.Fatalf("%s doesn't hold: %s", hold, layout(b.rec))
	}
	return Op{Kind: KindLock, Verb: verb, ID: ID(LeaseOf(hold), seq), Lease: LeaseOf(hold), Holder: hold, Token: e.Token, Queue: queue}
}

func (b *board) wait(hold string, seq uint64, queue string) Op {
	b.t.Helper()
	return b.ofHold(OpWait, hold, seq, queue)
}

func (b *board) signal(hold string, seq uint64, queue string) Op {
	b.t.Helper()
	return b.ofHold(OpSignal, hold, seq, queue)
}

func (b *board) broadcast(hold string, seq uint64, queue string) Op {
	b.t.Helper()
	op := b.ofHold(OpSignal, hold, seq, queue)
	op.All = true
	return op
}

// unlock is the release of a hold that was handed out.
func (b *board) unlock(hold string) Op {
	b.t.Helper()
	op := release(hold)
	op.Token = b.ofHold(OpRelease, hold, 0, "").Token
	return op
}

func evict(leases ...string) Op { return Op{Verb: OpEvict, Leases: leases} }

// waiting is a lock held by s.1, with the given leases waiting for the condition, as a.2, b.2, ….
func waiting(t *testing.T, lim Limits, queue string, leases ...string) *board {
	t.Helper()
	b := &board{t: t, lim: lim}
	for _, l := range leases {
		b.must(acquire(l+".1", X))
		b.must(b.wait(l+".1", 2, queue))
	}
	b.must(acquire("s.1", X))
	return b
}

// OpWait releases and queues in one write, so that the next holder finds the waiter there.
func TestP2_WaitReleasesAndQueuesInOneWrite(t *testing.T) {
	b := &board{t: t}
	b.must(acquire("a.1", X), acquire("s.1", X))
	before := b.rev
	b.must(b.wait("a.1", 2, "full"))
	b.is("s.1 |  | full: a.2")
	if b.rev != before+1 {
		t.Errorf("%d writes", b.rev-before)
	}
	if s, _ := b.rec.Holder("s.1"); s.Token != Ticket(before, 1) {
		t.Errorf("granted with token %s", ticketText(s.Token))
	}
	b.must(b.signal("s.1", 2, "full"))
	b.is("s.1 | a.2*")
	b.must(b.unlock("s.1"))
	b.is("a.2* | ")
	if a, _ := b.rec.Holder("a.2"); a.Token != Ticket(b.rev-1, 1) {
		t.Errorf("back with token %s by write %d", ticketText(a.Token), b.rev)
	}
	b.must(b.unlock("a.2"))
	b.is("absent")
}

func TestConditionNeedsTheLock(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a")
	b.must(acquire("c.1", X))
	for why, op := range map[string]Op{
		"of nobody":        {Holder: "s.9", ID: "s.10", Lease: "s", Token: 1},
		"of a waiter":      {Holder: "c.1", ID: "c.2", Lease: "c", Token: Ticket(4, 1)},
		"of another token": {Holder: "s.1", ID: "s.2", Lease: "s", Token: 2},
	} {
		for _, verb := range []Verb{OpWait, OpSignal, OpProclaim} {
			op.Kind, op.Verb, op.Queue, op.Value = KindLock, verb, "full", Value{Set: true}
			if v := b.do(op); v != "not the holder" {
				t.Errorf("%s %s: %s", verb, why, v)
			}
		}
	}
	b.is("s.1 | c.1 | full: a.2")

	shared := &board{t: t}
	shared.must(acquire("a.1", S))
	for _, op := range []Op{shared.wait("a.1", 2, "full"), shared.signal("a.1", 2, "full")} {
		if v := shared.do(op); v != "not the holder" {
			t.Errorf("%s by a reader: %s", op.Verb, v)
		}
	}
}

// A signal with a lost answer is sent again, and must not wake a second waiter.
func TestP3_ARepeatedSignalWakesNobodyElse(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b", "c")
	first := b.signal("s.1", 2, "full")
	b.must(first, first)
	b.is("s.1 | a.2* | full: b.2 c.2")
	b.must(b.signal("s.1", 3, "full"), first)
	b.is("s.1 | a.2* b.2* | full: c.2")
	if v := b.do(first, first); v != "applied, applied" {
		t.Error(v)
	}
	b.is("s.1 | a.2* b.2* | full: c.2")
}

// Granted, the id would occur twice, and the record could not be read.
func TestNoTryUnderTheIDOfAWait(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a")
	b.must(b.unlock("s.1"))
	try := acquire("a.2", X)
	try.Verb = OpTry
	if v := b.do(try); v != BadOp.String() {
		t.Error(v)
	}
	b.is(" |  | full: a.2")
}

// A late acquire brings the hold's id back. A late signal, or wait, of the hold that was there before names
// another token.
func TestP3_OperationsOfAGhostDoNothing(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a")
	signal, wait := b.signal("s.1", 2, "full"), b.wait("s.1", 3, "full")
	b.must(b.unlock("s.1"), acquire("s.1", X))
	for _, op := range []Op{signal, wait} {
		if v := b.do(op); v != "not the holder" {
			t.Errorf("%s: %s", op.Verb, v)
		}
		b.is("s.1 |  | full: a.2")
	}
	cancel, _ := wait.Undo()
	b.must(cancel)
	b.is("s.1 |  | full: a.2")

	// Likewise after the hold had less for a time: its signals are told apart anew.
	b = waiting(t, Limits{}, "full", "a", "b", "c")
	b.must(b.signal("s.1", 3, "full"))
	was := b.signal("s.1", 4, "full")
	less, more := convert("s.1", 5, S), convert("s.1", 6, X)
	b.must(less)
	if v := b.do(was); v != "not the holder" {
		t.Error(v)
	}
	b.must(more)
	if v := b.do(was); v != "not the holder" {
		t.Error(v)
	}
	b.must(b.signal("s.1", 7, "full"))
	b.is("s.1 | a.2* b.2* | full: c.2")
}

func TestP9_ASignalIsPassedOnByWhoeverCanNotUseIt(t *testing.T) {
	for how, end := range map[string]func(b *board){
		"evicted while the signaller holds": func(b *board) { b.must(evict("a"), b.unlock("s.1")) },
		"evicted after its grant":           func(b *board) { b.must(b.unlock("s.1"), evict("a")) },
		"released before its grant":         func(b *board) { b.must(release("a.2"), b.unlock("s.1")) },
		"released after a grant that it didn't see": func(b *board) {
			b.must(b.unlock("s.1"), release("a.2"))
		},
		"removed": func(b *board) { b.must(b.unlock("s.1"), Op{Verb: OpRemove, ID: "a.2"}) },
	} {
		t.Run(how, func(t *testing.T) {
			b := waiting(t, Limits{}, "full", "a", "b", "c")
			b.must(b.signal("s.1", 2, "full"))
			end(b)
			b.is("b.2* |  | full: c.2")
			b.must(b.unlock("b.2"))
			b.is(" |  | full: c.2")
		})
	}
	t.Run("the last of its condition", func(t *testing.T) {
		b := waiting(t, Limits{}, "full", "a")
		b.must(b.signal("s.1", 2, "full"), evict("a"))
		b.is("s.1 | ")
	})
}

// All dead go first, then as many signals are passed on as went with them.
func TestP9_ASignalIsNotPassedToTheDead(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b", "c", "d", "e")
	b.must(b.signal("s.1", 2, "full"), b.signal("s.1", 3, "full"))
	b.must(evict("a", "b", "c"))
	b.is("s.1 | d.2* e.2*")
}

// A broadcast is only for its waiters at that time, dead or alive.
func TestP9_ABroadcastIsNotPassedOn(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b")
	b.must(b.broadcast("s.1", 2, "full"))
	b.must(b.wait("s.1", 3, "full"))
	b.is("a.2** | b.2** | full: s.3")
	b.must(evict("a", "b"))
	b.is(" |  | full: s.3")
}

// A woken waiter that has used the lock has used the signal.
func TestP9_AUsedSignalIsNotPassedOn(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b")
	b.must(b.signal("s.1", 2, "full"), b.unlock("s.1"))
	b.must(b.unlock("a.2"))
	b.is(" |  | full: b.2")

	// It waits again: for the next signal.
	b = waiting(t, Limits{}, "full", "a", "b")
	b.must(b.signal("s.1", 2, "full"), b.unlock("s.1"))
	b.must(b.wait("a.2", 3, "full"))
	b.is(" |  | full: b.2 a.3")
	b.must(evict("a"))
	b.is(" |  | full: b.2")
}

// A broadcast moves the waiters of its first attempt, not later waiters at a retry.
func TestP10_ABroadcastMovesThoseWhoWaitThen(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b")
	late := b.broadcast("s.1", 2, "full")
	b.must(late, b.unlock("s.1"))
	b.must(b.unlock("a.2"))
	b.must(b.unlock("b.2"))
	b.must(acquire("c.1", X))
	b.must(b.wait("c.1", 2, "full"), acquire("d.1", X))
	if v := b.do(late); v != "not the holder" {
		t.Error(v)
	}
	b.is("d.1 |  | full: c.2")

	// Nor where a late acquire brings the hold's id back.
	b = waiting(t, Limits{}, "full", "a")
	late = b.broadcast("s.1", 2, "full")
	b.must(b.unlock("s.1"), acquire("s.1", X))
	if v := b.do(late); v != "not the holder" {
		t.Error(v)
	}
	b.is("s.1 |  | full: a.2")

	// Within one hold: it can't be repeated for one who came by being passed over.
	b = waiting(t, Limits{}, "full", "a", "b")
	b.must(b.broadcast("s.1", 2, "full"), b.broadcast("s.1", 3, "other"), b.broadcast("s.1", 2, "full"))
	b.is("s.1 | a.2** b.2**")
}

// A wait that is given up comes back holding, whether or not it was written, or signalled.
// The record decides, not the caller's clock: another holds by now.
// Only records that have what version 1 doesn't know state version 2.
// A waiter for a signal observes the leases of those before it in that condition, and of those that were signalled there:
// three dead ones are found at once, and a dead one that was signalled loses no signal.
func TestP22_ConditionWaitersObserveThoseAhead(t *testing.T) {
	b := waiting(t, Limits{}, "full", "a", "b", "c", "d", "e")
	b.must(acquire("x.1", X))
	b.must(b.signal("s.1", 2, "full"))
	for mine, want := range map[string]string{"d.2": "b c a", "b.2": "a", "x.1": "s"} {
		var got []string
		leases, _ := b.rec.Ahead(func(id string) bool { return id == mine })
		for lease, ttl := range leases {
			if ttl != 30*time.Second {
				t.Error(ttl)
			}
			got = append(got, lease)
		}
		if fmt.Sprint(got) != "["+want+"]" {
			t.Errorf("%s depends on %v, want %s", mine, got, want)
		}
	}
}

// A full queue is answered in the record: the hold stays, under the id of its wait.
func TestWaitInAFullQueue(t *testing.T) {
	b := waiting(t, Limits{MaxWaiters: 2}, "full", "a", "b")
	token := b.rec.Holders[0].Token
	wait := b.wait("s.1", 2, "full")
	b.must(wait, wait)
	b.is("s.2 |  | full: a.2 b.2")
	if s := b.rec.Holders[0]; s.Token != token || s.Signalled != "" {
		t.Errorf("%+v", s)
	}
	if v := b.do(acquire("c.1", X)); v != "queue full" {
		t.Error(v)
	}
	// A waiter for the lock makes room when it is granted.
	b = waiting(t, Limits{MaxWaiters: 2}, "full", "a")
	b.must(acquire("c.1", X), b.wait("s.1", 2, "full"))
	b.is("c.1 |  | full: a.2 s.2")
}

func TestOneOwnerStandsOnceWithConditions(t *testing.T) {
	b := &board{t: t}
	alice := acquire("a.1", X)
	alice.Owner = "alice"
	b.must(alice)
	b.must(b.wait("a.1", 2, "full"))
	again := acquire("b.1", X)
	again.Owner = "alice"
	if v := b.do(again); v != "already held" {
		t.Error(v)
	}
}
