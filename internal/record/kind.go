package record

import (
	"iter"
	"time"
)

// Kind says what a resource is used as. One name has one kind for as long as its record lives.
type Kind string

// KindLock is a lock: a mutex, a reader-writer lock, or one with the modes of a hierarchy.
const KindLock Kind = "lock"

// kinds has the rules of every kind that this version knows.
var kinds = map[Kind]rules{KindLock: lockRules{}}

// rules is what a kind adds to what all records have in common: entries that stand under leases,
// and the verbs release, evict, revoke and remove. A new kind is a new value of it, in a file of its own.
type rules interface {
	// schema is the lowest schema version that reads r.
	schema(r *Record) uint64
	// check returns Applied for an operation with a verb of this kind that can be applied to some
	// record, and BadOp for other verbs.
	check(op *Op) Verdict
	// apply applies an operation that check let through.
	apply(m *machine, op *Op) Result
	// settle does what a change of the entries leads to: it grants what can be granted.
	settle(m *machine)
	// idle reports whether nothing in r is worth keeping.
	idle(r *Record) bool
	// states yields every operation that stands in r, by its id.
	states(r *Record) iter.Seq2[string, State]
	// standing reads the standing of op off r.
	standing(r *Record, op *Op) (Standing, Entry)
	// inTheWay returns one of those that op, which waits in r, waits for.
	inTheWay(r *Record, op *Op) (Entry, bool)
	// ahead is Record.Ahead.
	ahead(r *Record, mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool)
	// traits says how an operation is to be carried out.
	traits(op *Op) traits
	// undo is Op.Undo.
	undo(op *Op) (Op, bool)
}

// traits are what the verb of an operation says about how it is carried out.
type traits struct{ waits, blind, owed bool }

// Standing is what a record says about an operation whose outcome is an entry.
type Standing uint8

// The standings.
const (
	Gone    Standing = iota // it neither waits nor was granted, any more or yet
	Waiting                 // it waits, in the queue or before it
	Granted                 // the entry is its outcome
)

// State is an operation's standing and the entry that says so.
type State struct {
	Standing Standing
	Entry    *Entry // not to be modified
}

// Place is where an operation waits in a record.
type Place struct {
	// Position in the queue: 1 is granted next. 0 is before the queue, as a conversion.
	Position int
	// Blocker is one of those in the way: a holder that can't be held beside what is asked for, or
	// else the next in the queue before it.
	Blocker Entry
}

// Standing returns where op, whose outcome is an entry, stands in r, and that entry. A nil record has nobody.
func (r *Record) Standing(op *Op) (Standing, Entry) {
	if k := r.rules(); k != nil {
		return k.standing(r, op)
	}
	return Gone, Entry{}
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

// Ahead yields the leases, with their TTLs, of all entries that the operations for which mine is
// true wait for, one lease perhaps several times. next is whether one of them is granted next. A
// nil record has none.
func (r *Record) Ahead(mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	if k := r.rules(); k != nil {
		return k.ahead(r, mine)
	}
	return func(func(string, time.Duration) bool) {}, false
}

// Idle reports whether nothing in r is worth keeping: its key can be deleted.
func (r *Record) Idle() bool {
	k := r.rules()
	return r == nil || r.Kind == "" || k != nil && k.idle(r)
}

// schema is the lowest schema version that reads r.
func (r *Record) schema() uint64 {
	if k := r.rules(); k != nil {
		return k.schema(r)
	}
	return 1
}

// rules is nil for a nil record and for one that has no kind yet, or none that is known.
func (r *Record) rules() rules {
	if r == nil {
		return nil
	}
	return kinds[r.Kind]
}

// Waits reports whether op's outcome is an entry: it is granted, now or later, and stands in
// committed records meanwhile.
func (op *Op) Waits() bool { return op.traits().waits }

// Blind reports whether op may be tried on a key that was never read, which is taken to be absent.
func (op *Op) Blind() bool { return op.traits().blind }

// Owed reports whether op only takes something away from its own holder, who counts on it no more
// from the moment it asks, so that it must happen some time whatever comes in between.
func (op *Op) Owed() bool { return op.traits().owed }

func (op *Op) traits() traits {
	if op.common() {
		return traits{owed: op.Verb == OpRelease}
	}
	if k := kinds[op.Kind]; k != nil {
		return k.traits(op)
	}
	return traits{}
}

// Undo returns the operation that takes op's place when nobody waits for op any more and op may
// have been written: after it, op has left nothing behind. ok is false where there is nothing to
// take back, because op, once asked for, has to be carried through: a release, an eviction, or
// another one that is Owed.
func (op *Op) Undo() (undo Op, ok bool) {
	if k := kinds[op.Kind]; k != nil && !op.common() {
		return k.undo(op)
	}
	return Op{}, false
}
