package record

import "slices"

// A lock can be handed over without a write: a holder in X ends its hold and says so, and the next in the
// queue holds from then on by a turn, with its ticket as its token. The record is behind then: it shows the entry that
// has ended as the holder still, until that is released there.
//
// If one entry stood directly before another in any committed record, and has held and holds no more, then
// all before the other are gone for good: the first was granted only when all before it were gone, and nothing
// is ever put between two entries of a queue. So it does no harm if a turn comes late, twice, or from one who is behind.

// Behind returns the entry to which the turn passes when the hold with this id and this very token ends,
// which was never to be converted: both in mode X, and without a value.
func (r *Record) Behind(id string, token uint64) (next Entry, ok bool) {
	if r == nil || r.Kind != KindLock || len(r.Holders) != 1 {
		return Entry{}, false
	}
	before := &r.Holders[0]
	for i := range r.Waiters {
		switch e := &r.Waiters[i]; {
		case !before.passes():
			return Entry{}, false // nor does one who waits behind it hold by a turn
		case before.ID == id && before.Token == token:
			return *e, e.Mode == X && !e.Value.Set && !e.LetTurn
		default:
			before = e
		}
	}
	return Entry{}, false
}

// passes reports whether a turn can go on from the entry, if it holds.
func (e *Entry) passes() bool { return e.Mode == X && e.Convert.ID == "" && e.Converted == "" }

// MayHold reports whether a waiter may hold by a turn.
func (r *Record) MayHold(id string) bool {
	_, n, ok := r.Waiter(id)
	return ok && n < r.turns()
}

// turns is how many waiters from the head of the queue on may hold by a turn, or have.
func (r *Record) turns() (n int) {
	if r.Kind != KindLock || len(r.Holders) != 1 || !r.Holders[0].passes() {
		return 0
	}
	for n < len(r.Waiters) && r.Waiters[n].Mode == X && !r.Waiters[n].Value.Set {
		n++
	}
	return n
}

// Held returns the entry of a hold: a holder, or a waiter with the ticket turn, which it holds by. turn is 0 where the
// record has granted it. revoked is whether it is to let go.
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

// revokeTurns marks those who may hold by a turn in place of a holder that op targets, or the one that it names. No
// turn of a later record goes to them, and what the record grants them passes none on. So one lets go at most: the one
// that holds by a turn when it hears of it.
func (m *machine) revokeTurns(op *Op) {
	n := m.turns()
	all := n > 0 && op.ID == "" && op.targets(&m.Holders[0])
	for i := range m.Waiters[:n] {
		if e := &m.Waiters[i]; all || e.ID == op.ID {
			e.LetTurn = true
		}
	}
}

// advance removes all before the waiter with this id and this very ticket, which holds by a turn: they have
// ended. An id can come into a record again, by a late acquire: it has another ticket then.
func (m *machine) advance(id string, token uint64) {
	i := indexOf(m.Waiters, id)
	if token == 0 || m.Kind != KindLock || i < 0 || m.Waiters[i].Token != token {
		return
	}
	for _, list := range [][]Entry{m.Holders, m.Waiters[:i]} {
		for k := range list {
			m.took(&list[k])
		}
	}
	m.Holders, m.Waiters = nil, slices.Delete(m.Waiters, 0, i)
	m.removed = nil // they have held: signals that let them in are used up
}
