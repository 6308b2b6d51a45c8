package record

// verbTable has the rules of a kind's verbs.
type verbTable [OpFinish + 1]verbRule

// verbRule says what an operation with a verb of a kind must have, and how the engine treats it.
type verbRule struct {
	is    trait
	undo  Verb // of the operation that undoes it; 0 = nothing does
	apply func(m *machine, op *Op) Result
}

type trait uint32

// An operation that lacks something is BadOp.
const (
	needID      trait = 1 << iota // ID, under Lease
	needEntry                     // ID, under Lease, and what every entry needs
	needHold                      // ID and Holder, both under Lease
	needHolder                    // Holder, under Lease, or else it is BadOp instead of LeaseMismatch
	needMode                      // a valid Mode
	noN                           // neither N nor Gen
	noMode                        // no Mode
	needN                         // N, a count
	mayN                          // N, a count or 0
	needLimit                     // Limit, a count
	needParties                   // Limit, a number of parties
	needToken                     // Token
	needQueue                     // Queue, the name of a condition
	needValue                     // Value
	needLife                      // it applies only to the life of the record that it names (Op.Life)

	// See the methods of Op with these names.

	waits
	blind
	mustComplete // unless it can be undone
	proven       // if it can be undone
	waitsAfterUndo
	leaves // it is granted when no entry of it is left
)

// rule returns the rule of op's verb, none if its kind has no such verb.
func (op *Op) rule() (r verbRule) {
	if k := op.Kind.rules(); k != nil && op.Verb <= OpFinish {
		r = k.verbs()[op.Verb]
	}
	return r
}

func (op *Op) is(f trait) bool {
	r := op.rule()
	switch {
	case op.common():
		return f == mustComplete && op.Verb == OpRelease
	case f == mustComplete && r.undoable(op), f == proven && !r.undoable(op):
		return false
	}
	return r.is&f != 0
}

func (r verbRule) check(op *Op) Verdict {
	has := func(f trait) bool { return r.is&f != 0 }
	switch {
	case r.is == 0,
		has(needMode) && !op.Mode.Valid(),
		has(noN) && (op.N != 0 || op.Gen != 0),
		has(needHolder) && LeaseOf(op.Holder) != op.Lease,
		has(noMode) && op.Mode != None,
		has(needN) && !validCount(op.N),
		has(mayN) && op.N != 0 && !validCount(op.N),
		has(needLimit) && !validCount(op.Limit),
		has(needParties) && (op.Limit < 1 || op.Limit > MaxParties),
		has(needToken) && op.Token == 0,
		has(needQueue) && !validQueue(op.Queue),
		has(needValue) && !op.Value.Set:
		return BadOp
	case has(needEntry):
		return op.checkEntry()
	case has(needHold):
		return op.checkOfHold()
	case has(needID):
		return op.checkID(true)
	}
	return Applied
}

// undoable reports whether Undo undoes op. A conversion to a mode that op.From covers is completed, since its holder
// already relies only on the weaker mode. A finish that failed is completed, too.
func (r verbRule) undoable(op *Op) bool {
	switch r.undo {
	case OpUnconvert:
		return !op.From.Covers(op.Mode)
	case OpFinish:
		return !op.Fail
	}
	return r.undo != 0
}

// Undo returns the operation that replaces op when its caller has given it up and op may have been written.
// After Undo, op has left nothing behind. A condition's wait that is given up waits for the lock, and holds it in the
// end. ok is false if nothing can be undone, because op has to be completed: a release, an eviction, or another
// operation that MustComplete.
func (op *Op) Undo() (undo Op, ok bool) {
	r := op.rule()
	if !r.undoable(op) {
		return Op{}, false
	}
	undo = Op{Kind: op.Kind, Verb: r.undo, ID: op.ID, Lease: op.Lease}
	switch r.undo {
	case OpUnconvert:
		undo.Holder, undo.Mode = op.Holder, Meet(op.From, op.Mode)
	case OpCancelWait:
		undo.Holder, undo.Token = op.Holder, op.Token
	case OpCancel:
		undo.Limit, undo.Gen, undo.Life = op.Limit, op.Gen, op.Life
	case OpUncount:
		undo.Base, undo.Life = op.Base, op.Life
	case OpFinish: // the run fails
		undo = *op
		undo.Fail, undo.Value = true, Value{}
	}
	return undo, true
}

// Waits reports whether op's outcome is an entry: it is granted, now or later, and its entry is in
// committed records until then.
func (op *Op) Waits() bool { return op.is(waits) }

// Blind reports whether op may be tried on a key that was never read, as if the key were absent.
func (op *Op) Blind() bool { return op.is(blind) }

// MustComplete reports whether op only takes something away from its own holder. The holder stops relying on it
// when it submits op, so op has to be committed some time, whatever happens meanwhile.
func (op *Op) MustComplete() bool { return op.is(mustComplete) }

// Proven reports whether a caller that gives op up has to know its outcome, since op would change
// something for others if it came late. Then its Undo has to be committed first, and the state of op in that
// record is the outcome.
func (op *Op) Proven() bool { return op.is(proven) }

// WaitsAfterUndo reports whether a caller that gives op up still waits for it: Undo doesn't end it, but has it granted sooner.
func (op *Op) WaitsAfterUndo() bool { return op.is(waitsAfterUndo) }
