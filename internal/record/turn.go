package record

import "slices"

// A lock can be handed over without a write: a holder in X ends its hold and says so, and the next waiter in the
// queue holds from then on by a turn, with its ticket as its token. The record is late then: it still shows the ended
// entry as the holder, until a release is written.
//
// Suppose that entry A was directly before entry B in any committed record, and that A has held and holds no more. Then
// all entries before B have ended for good: A was granted only after all before it had ended, and nothing
// is ever inserted between two entries of a queue. So a turn does no harm if it comes late, twice, or from an old record.

// Behind returns the entry that gets the turn when the hold with this id and this token ends. That hold
// must never have been converted. Both must be in mode X and without a value.
func (r *Record) Behind(id string, token uint64) (next Entry, ok bool) {
	if r == nil || r.Kind != KindLock || len(r.Holders) != 1 {
		return Entry{}, false
	}
	before := &r.Holders[0]
	for i := range r.Waiters {
		switch e := &r.Waiters[i]; {
		case !before.canPassTurn():
			return Entry{}, false // no waiter behind it can hold by a turn either
		case before.ID == id && before.Token == token:
			return *e, e.Mode == X && !e.Value.Set && !e.LetTurn
		default:
			before = e
		}
	}
	return Entry{}, false
}

// canPassTurn reports whether the entry, if it holds, can pass a turn to the next one.
func (e *Entry) canPassTurn() bool { return e.Mode == X && e.Convert.ID == "" && e.Converted == "" }

// MayHold reports whether a waiter may hold by a turn.
func (r *Record) MayHold(id string) bool {
	_, n, ok := r.Waiter(id)
	return ok && n < r.turns()
}

// turns returns how many waiters from the head of the queue may hold by a turn, or may have held.
func (r *Record) turns() (n int) {
	if r.Kind != KindLock || len(r.Holders) != 1 || !r.Holders[0].canPassTurn() {
		return 0
	}
	for n < len(r.Waiters) && r.Waiters[n].Mode == X && !r.Waiters[n].Value.Set {
		n++
	}
	return n
}

// Held reports whether a hold is in the record: as a holder, or as a waiter that holds by a turn, with the ticket turn.
// turn is 0 if the record has granted it. revoked is whether its owner has to release it.
func (r *Record) Held(id string, turn uint64) (revoked, ok bool) {
	if r == nil {
		return false, false
	}
	e, ok := r.Holder(id)
	if !ok && turn != 0 {
		e, _, ok = r.Waiter(id)
		ok = ok && e.Token == turn
	}
	return e.Revoked || e.LetTurn && turn != 0, ok
}

// revokeTurns marks the waiters that may hold by a turn in place of a holder that op targets, or the waiter that op names.
// A marked waiter gets no turn by a later record, and passes none on after a grant. So at most one owner lets go: the
// one that holds by a turn when it hears of the mark.
func (m *machine) revokeTurns(op *Op) {
	n := m.turns()
	all := n > 0 && op.ID == "" && op.targets(&m.Holders[0])
	for i := range m.Waiters[:n] {
		if e := &m.Waiters[i]; all || e.ID == op.ID {
			e.LetTurn = true
		}
	}
}

// advance removes all entries before the waiter with this id and this ticket. It holds by a turn, so they have
// ended. A late acquire can add an id to a record again, but with another ticket.
func (m *machine) advance(id string, token uint64) {
	i := indexOf(m.Waiters, id)
	if token == 0 || m.Kind != KindLock || i < 0 || m.Waiters[i].Token != token {
		return
	}
	for _, list := range [][]Entry{m.Holders, m.Waiters[:i]} {
		for k := range list {
			m.noteRemoved(&list[k])
		}
	}
	m.Holders, m.Waiters = nil, slices.Delete(m.Waiters, 0, i)
	m.removed = nil // they have held, so the signals that woke them are used up
}

func (m *machine) advanceTo(op *Op) Result {
	m.advance(op.ID, op.Token)
	return m.settled()
}
