package record

import (
	"iter"
	"slices"
	"time"
)

// Kind says what a resource is used as. One name has one kind for as long as its record lives.
type Kind string

// The kinds.
const (
	// KindLock is a lock: a mutex, a reader-writer lock with its conditions, an election, or one with
	// the modes of a hierarchy.
	KindLock      Kind = "lock"
	KindSemaphore Kind = "semaphore" // permits, of which each entry takes some
	KindBarrier   Kind = "barrier"   // parties that wait until all of them are there
	KindGate      Kind = "gate"      // parties that go in together and go out together
	KindLatch     Kind = "latch"     // a count, and those who wait until it is 0
	KindOnce      Kind = "once"      // a result, or who is about to give it
)

// kinds has the rules of every kind that this version knows.
var kinds = map[Kind]rules{
	KindLock:      lockRules{},
	KindSemaphore: semaphoreRules{},
	KindBarrier:   barrierRules{},
	KindGate:      gateRules{},
	KindLatch:     latchRules{},
	KindOnce:      onceRules{},
}

// rules is nil for no kind, and for one that is not known. A lock's are needed too often to look them up.
func (k Kind) rules() rules {
	if k == KindLock {
		return lockRules{}
	}
	return kinds[k]
}

// rules is what a kind adds to what all records have in common: entries that stand under leases,
// and the verbs release, evict, revoke and remove. A new kind is a new value of it, in a file of its own.
type rules interface {
	// check returns Applied for an operation with a verb of this kind that can be applied to some
	// record, and BadOp for other verbs.
	check(op *Op) Verdict
	// lives reports whether op has to name the life of the record it means (Op.Life).
	lives(op *Op) bool
	// begin gives a new record its body, as the operation says that makes it.
	begin(r *Record, op *Op)
	// apply applies an operation that check let through.
	apply(m *machine, op *Op) Result
	// settle does what a change of the entries leads to: it grants what can be granted. m.op is what
	// changed them, and m.removed are the entries that it took away.
	settle(m *machine)
	// idle reports whether nothing in r is worth keeping.
	idle(r *Record) bool
	// outlived is Record.Outlived, of a record in which nobody stands.
	outlived(r *Record, age time.Duration) bool
	// states yields every operation that stands in r, by its id.
	states(r *Record) iter.Seq2[string, State]
	// standing reads the standing of op off r.
	standing(r *Record, op *Op) State
	// inTheWay returns one of those that op, which waits in r, waits for.
	inTheWay(r *Record, op *Op) (Entry, bool)
	// ahead is Record.Ahead.
	ahead(r *Record, mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool)
	// traits says how an operation is to be carried out.
	traits(op *Op) traits
	// undo is Op.Undo.
	undo(op *Op) (Op, bool)

	// facts fills in what the kind has.
	facts(r *Record, f *Facts)

	// fields are those that an entry must have and may have, beside those that all entries have.
	fields(holder bool) (required, allowed uint)
	// longest makes e the longest form that it can ever take.
	longest(e *Entry)
	// body reads the value of a top-level field of this kind. known is false for other fields.
	body(d *decoder, key []byte) (known bool, err error)
	// whole checks what the fields of a decoded record say together.
	whole(d *decoder) error
}

// usual is what most kinds do. A kind embeds it, and has the methods that are otherwise with it.
type usual struct{}

func (usual) lives(*Op) bool                       { return false }
func (usual) begin(*Record, *Op)                   {}
func (usual) settle(*machine)                      {}
func (usual) idle(r *Record) bool                  { return len(r.Holders)+len(r.Waiters) == 0 }
func (usual) outlived(*Record, time.Duration) bool { return false }

func (usual) states(r *Record) iter.Seq2[string, State] { return r.entryStates() }
func (usual) inTheWay(*Record, *Op) (e Entry, ok bool)  { return e, false }

// ahead: a waiter waits for all holders and all waiters before it.
func (usual) ahead(r *Record, mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	last := r.lastWaiter(mine)
	if last < 0 {
		return noLeases, false
	}
	return leasesOf(r.Holders, r.Waiters[:last]), mine(r.Waiters[0].ID)
}

func (usual) fields(holder bool) (required, allowed uint) {
	if holder {
		return 0, hasRevoked
	}
	return 0, 0
}

func (usual) longest(e *Entry) { e.Revoked = true }

// released is what takes back a request of which nothing but its entry is left.
func (op *Op) released() (Op, bool) {
	return Op{Kind: op.Kind, Verb: OpRelease, ID: op.ID, Lease: op.Lease}, true
}

// lastWaiter is the index of the last waiter for which mine is true, -1 if there is none.
func (r *Record) lastWaiter(mine func(id string) bool) int {
	for i, e := range slices.Backward(r.Waiters) {
		if mine(e.ID) {
			return i
		}
	}
	return -1
}

// leasesOf yields the leases of entries, with their TTLs.
func leasesOf(lists ...[]Entry) iter.Seq2[string, time.Duration] {
	return func(yield func(string, time.Duration) bool) {
		for _, list := range lists {
			if !yieldAll(list, func(e *Entry) bool { return yield(e.Lease(), e.TTL) }) {
				return
			}
		}
	}
}

// traits are what the verb of an operation says about how it is carried out.
type traits struct {
	waits, blind, owed, proven, stays bool
	leaves                            bool // what it waits for is that nothing of it stands any more
}

// Standing is what a record says about an operation whose outcome is an entry.
type Standing uint8

// The standings.
const (
	Gone    Standing = iota // it neither waits nor was granted, any more or yet
	Waiting                 // it waits, in the queue or before it
	Granted                 // it has what it asked for
	Refused                 // it won't get what it asked for: State.Why says why
)

// State is an operation's standing and the entry that says so.
type State struct {
	Standing Standing
	Entry    *Entry  // not to be modified; nil where none stands
	Why      Verdict // of Refused
}

// Place is where an operation waits in a record.
type Place struct {
	// Position in the queue: 1 is granted next. 0 is before the queue, as a conversion.
	Position int
	// Blocker is one of those in the way: a holder that can't be held beside what is asked for, or
	// else the next in the queue before it.
	Blocker Entry
}

// Standing returns where op, which Waits, stands in r. In a nil record nobody does.
func (r *Record) Standing(op *Op) State {
	if k := r.rules(); k != nil && (r.Kind == op.Kind || op.common()) {
		return k.standing(r, op)
	}
	if op.traits().leaves {
		return State{Standing: Granted}
	}
	return State{}
}

// entryState is the standing of an operation whose outcome is the entry with its id.
func (r *Record) entryState(id string) State {
	if i := indexOf(r.Holders, id); i >= 0 {
		return State{Standing: Granted, Entry: &r.Holders[i]}
	}
	if i := indexOf(r.Waiters, id); i >= 0 {
		return State{Standing: Waiting, Entry: &r.Waiters[i]}
	}
	return State{}
}

// entryStates yields the standings of all entries.
func (r *Record) entryStates() iter.Seq2[string, State] {
	return func(yield func(string, State) bool) {
		_ = yieldAll(r.Holders, func(e *Entry) bool { return yield(e.ID, State{Standing: Granted, Entry: e}) }) &&
			yieldStates(r.Waiters, yield)
	}
}

// yieldStates yields the standings of entries that wait.
func yieldStates(waiters []Entry, yield func(string, State) bool) bool {
	return yieldAll(waiters, func(e *Entry) bool { return yield(e.ID, State{Standing: Waiting, Entry: e}) })
}

// States yields every operation that stands in r, by its id. A nil record has none.
func (r *Record) States() iter.Seq2[string, State] {
	if k := r.rules(); k != nil {
		return k.states(r)
	}
	return func(func(string, State) bool) {}
}

// Place returns where op waits in r.
func (r *Record) Place(op *Op) Place {
	var p Place
	if _, before, ok := r.Waiter(op.ID); ok {
		p.Position = before + 1
	}
	p.Blocker, _ = r.rules().inTheWay(r, op)
	return p
}

// Turn names the oldest hold in r, and changes when that is handed on. It is "" where nobody holds.
func (r *Record) Turn() string {
	if r == nil || len(r.Holders) == 0 {
		return ""
	}
	return r.Holders[0].ID
}

// LetIn returns the leases under which operations waited in base and don't in r, the record after it:
// they were granted, refused, or taken away. Those for which known is true are left out.
func (r *Record) LetIn(base *Record, known func(id string) bool) (leases []string) {
	if base == nil || base.Body == nil && len(base.Waiters) == 0 && !base.converting() {
		return nil // nobody can
	}
	waits := map[string]bool{}
	for id, st := range r.States() {
		waits[id] = st.Standing == Waiting
	}
	for id, st := range base.States() {
		if st.Standing == Waiting && !waits[id] && !known(id) {
			leases = append(leases, LeaseOf(id))
		}
	}
	return leases
}

// Ahead yields the leases, with their TTLs, of all entries that the operations for which mine is true wait for, one
// lease perhaps several times. next is whether one of them is granted next. A nil record has none.
func (r *Record) Ahead(mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	if k := r.rules(); k != nil {
		return k.ahead(r, mine)
	}
	return noLeases, false
}

func noLeases(func(string, time.Duration) bool) {}

// Idle reports whether nothing in r is worth keeping: its key can be deleted.
func (r *Record) Idle() bool {
	k := r.rules()
	return r == nil || r.Kind == "" || k != nil && k.idle(r)
}

// Outlived reports whether r, last written so long ago, is kept for nobody any more, though it isn't
// Idle: it can be swept, see OpSweep.
func (r *Record) Outlived(age time.Duration) bool {
	k := r.rules()
	return k != nil && len(r.Holders)+len(r.Waiters) == 0 && k.outlived(r, age)
}

// rules is nil for a nil record and for one that has no kind yet, or none that is known.
func (r *Record) rules() rules {
	if r == nil {
		return nil
	}
	return r.Kind.rules()
}

// Waits reports whether op's outcome is an entry: it is granted, now or later, and stands in
// committed records meanwhile.
func (op *Op) Waits() bool { return op.traits().waits }

// Blind reports whether op may be tried on a key that was never read, which is taken to be absent.
func (op *Op) Blind() bool { return op.traits().blind }

// Owed reports whether op only takes something away from its own holder, who counts on it no more
// from the moment it asks, so that it must happen some time whatever comes in between.
func (op *Op) Owed() bool { return op.traits().owed }

// Proven reports whether whoever gives op up has to know what became of it, since it would change
// something for others if it came late: its Undo has to be committed first, and the record it was
// committed in says where op stands.
func (op *Op) Proven() bool { return op.traits().proven }

// Stays reports whether whoever gives op up goes on waiting for it: Undo doesn't end it, but has it granted sooner.
func (op *Op) Stays() bool { return op.traits().stays }

func (op *Op) traits() traits {
	if op.common() {
		return traits{owed: op.Verb == OpRelease}
	}
	if k := op.Kind.rules(); k != nil {
		return k.traits(op)
	}
	return traits{}
}

// Undo returns the operation that takes op's place when nobody waits for op any more and op may have been written:
// after it, op has left nothing behind. ok is false where there is nothing to take back, because op, once asked for,
// has to be carried through: a release, an eviction, or another one that is Owed.
func (op *Op) Undo() (undo Op, ok bool) {
	if k := op.Kind.rules(); k != nil && !op.common() {
		return k.undo(op)
	}
	return Op{}, false
}
