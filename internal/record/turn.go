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
		case before.Mode != X || before.Convert.ID != "" || before.Converted != "":
			return Entry{}, false // nor does one who waits behind it hold by a turn
		case before.ID == id && before.Token == token:
			return *e, e.Mode == X && !e.Value.Set
		default:
			before = e
		}
	}
	return Entry{}, false
}

// Held returns the entry of a hold: a holder, or a waiter with this very token, which may hold by a turn.
func (r *Record) Held(id string, token uint64) (Entry, bool) {
	if r == nil {
		return Entry{}, false
	}
	if e, ok := r.Holder(id); ok {
		return e, true
	}
	e, _, ok := r.Waiter(id)
	return e, ok && e.Token == token
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
