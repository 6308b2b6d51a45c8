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
	KindSemaphore Kind = "semaphore" // permits; each entry takes some
	KindBarrier   Kind = "barrier"   // parties that wait until all have arrived
	KindGate      Kind = "gate"      // parties that enter together and leave together
	KindLatch     Kind = "latch"     // a count, and waiters until it is 0
	KindOnce      Kind = "once"      // a result, or a runner that will produce it
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

// rules returns nil for "" and for an unknown kind. Locks are checked first, since looking them up would cost too much.
func (k Kind) rules() rules {
	if k == KindLock {
		return lockRules{}
	}
	return kinds[k]
}

// rules are what a kind adds to the common part of all records: entries under leases,
// and the verbs release, evict, revoke and remove. A new kind is a new type with these methods, in a file of its own.
type rules interface {
	// verbs are those of this kind.
	verbs() *verbTable
	// initBody gives a new record its body. op is the operation that creates the record.
	initBody(r *Record, op *Op)
	// settle grants what can be granted after a change of the entries. m.op is the operation that
	// changed them, and m.removed are the entries that it removed.
	settle(m *machine)
	// idle reports whether r, without entries, contains nothing worth keeping.
	idle(r *Record) bool
	// outlived is Record.Outlived, for a record without entries.
	outlived(r *Record, age time.Duration) bool
	// states yields every operation in r, by its id.
	states(r *Record) iter.Seq2[string, State]
	// standing returns the state of op in r.
	standing(r *Record, op *Op) State
	// blockerOf returns one of the entries that op, which waits in r, waits for.
	blockerOf(r *Record, op *Op) (Entry, bool)
	// ahead is Record.Ahead.
	ahead(r *Record, mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool)

	// facts fills in the facts of this kind.
	facts(r *Record, f *Facts)

	// longest changes e to the longest form that it can ever take.
	longest(e *Entry)
	// validate checks the fields of a decoded record against each other.
	validate(d *decoder) error
}

// baseRules are the rules that most kinds share. A kind embeds them, and overrides those that differ.
type baseRules struct{}

func (baseRules) initBody(*Record, *Op)                {}
func (baseRules) settle(*machine)                      {}
func (baseRules) idle(*Record) bool                    { return true }
func (baseRules) outlived(*Record, time.Duration) bool { return false }

func (baseRules) states(r *Record) iter.Seq2[string, State] { return r.entryStates() }
func (baseRules) standing(r *Record, op *Op) State          { return r.entryState(op.ID) }
func (baseRules) blockerOf(*Record, *Op) (e Entry, ok bool) { return e, false }

// ahead: a waiter waits for all holders and all waiters before it.
func (baseRules) ahead(r *Record, mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	last := lastOf(r.Waiters, mine)
	if last < 0 {
		return noLeases, false
	}
	return leasesOf(r.Holders, r.Waiters[:last]), mine(r.Waiters[0].ID)
}

func (baseRules) longest(e *Entry) { e.Revoked = true }

// lastOf returns the index of the last entry for which mine is true, -1 if there is none.
func lastOf(list []Entry, mine func(id string) bool) int {
	for i, e := range slices.Backward(list) {
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

// Standing is the state of an operation whose outcome is an entry.
type Standing uint8

// The standings.
const (
	Gone    Standing = iota // it neither waits nor was granted
	Waiting                 // it waits, in the queue or before it
	Granted                 // it has what it requested
	Refused                 // it will never get what it requested: State.Why says why
)

// State is an operation's standing with its entry.
type State struct {
	Standing Standing
	Entry    *Entry  // read-only; nil if there is none
	Why      Verdict // set with Refused
}

// Place is where an operation waits in a record.
type Place struct {
	// Position in the queue: 1 is granted next. 0 is before the queue, as a conversion.
	Position int
	// Blocker is one of the entries in the way: a holder that excludes the request, or else the waiter before it.
	Blocker Entry
}

// Standing returns the state of op, which Waits, in r. A nil record has no entries.
func (r *Record) Standing(op *Op) State {
	if k := r.rules(); k != nil && (r.Kind == op.Kind || op.common()) {
		return k.standing(r, op)
	}
	if op.is(leaves) {
		return State{Standing: Granted}
	}
	return State{}
}

// entryState returns the state of an operation whose outcome is the entry with its id.
func (r *Record) entryState(id string) State {
	if i := indexOf(r.Holders, id); i >= 0 {
		return State{Standing: Granted, Entry: &r.Holders[i]}
	}
	if i := indexOf(r.Waiters, id); i >= 0 {
		return waitingState(&r.Waiters[i])
	}
	return State{}
}

// waitingState returns the state of an entry that doesn't hold.
func waitingState(e *Entry) State {
	if e.Refused {
		return State{Standing: Refused, Entry: e, Why: TooLarge}
	}
	return State{Standing: Waiting, Entry: e}
}

func (r *Record) entryStates() iter.Seq2[string, State] {
	return func(yield func(string, State) bool) {
		_ = yieldAll(r.Holders, func(e *Entry) bool { return yield(e.ID, State{Standing: Granted, Entry: e}) }) &&
			yieldStates(r.Waiters, yield)
	}
}

func yieldStates(waiters []Entry, yield func(string, State) bool) bool {
	return yieldAll(waiters, func(e *Entry) bool { return yield(e.ID, waitingState(e)) })
}

// States yields every operation in r, by its id. A nil record has none.
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
	p.Blocker, _ = r.rules().blockerOf(r, op)
	return p
}

// OldestHolder returns the id of the oldest holder, "" if there is none.
func (r *Record) OldestHolder() string {
	if r == nil || len(r.Holders) == 0 {
		return ""
	}
	return r.Holders[0].ID
}

// EndedWaits returns the leases of the operations that waited in base and wait no more in r, the record after it:
// they were granted, refused, or removed. It leaves out those for which known is true.
func (r *Record) EndedWaits(base *Record, known func(id string) bool) (leases []string) {
	if base == nil || base.Body == nil && len(base.Waiters) == 0 && !base.converting() {
		return nil // nothing waited
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

// Ahead yields the leases, with their TTLs, of all entries that the operations for which mine is true wait for. A
// lease may come several times. next is whether one of these operations is granted next. A nil record has none.
func (r *Record) Ahead(mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	if k := r.rules(); k != nil {
		return k.ahead(r, mine)
	}
	return noLeases, false
}

func noLeases(func(string, time.Duration) bool) {}

// Idle reports whether r contains nothing worth keeping: its key can be deleted.
func (r *Record) Idle() bool {
	k := r.rules()
	return r == nil || r.Kind == "" || k != nil && len(r.Holders)+len(r.Waiters) == 0 && k.idle(r)
}

// Outlived reports whether r, last written so long ago, is of no use any more, though it isn't
// Idle: it can be swept, see OpSweep.
func (r *Record) Outlived(age time.Duration) bool {
	k := r.rules()
	return k != nil && len(r.Holders)+len(r.Waiters) == 0 && k.outlived(r, age)
}

// rules returns nil for a nil record and for one with no kind or an unknown kind.
func (r *Record) rules() rules {
	if r == nil {
		return nil
	}
	return r.Kind.rules()
}
