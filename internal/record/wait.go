package record

import (
	"time"
)

// What waits for what in a record, for finding deadlocks over several records.

// FinalMode returns the mode that e has when it waits no more: the target of its conversion, else its mode.
func (e *Entry) FinalMode() Mode {
	if e.Convert.ID != "" {
		return e.Convert.Mode
	}
	return e.Mode
}

// Wait is one waiting operation: a request in the queue, or a holder's conversion.
type Wait struct {
	ID     string // of the request or the conversion
	Mode   Mode   // the mode that it waits for
	Queued uint64 // the revision of the write that requested it, or gave it its last ticket; 0 = this record's
	Entry  Entry
}

// Waiting returns the waiting operation in a lock's record. id names a request, a conversion or
// the holder that converts. An entry that waits for a signal is not in the lock's queue.
func (r *Record) Waiting(id string) (Wait, bool) {
	if r == nil || r.Kind != KindLock {
		return Wait{}, false
	}
	if i := indexOf(r.Waiters, id); i >= 0 {
		e := r.Waiters[i]
		return Wait{ID: e.ID, Mode: e.Mode, Queued: RevisionOf(e.Token), Entry: e}, true
	}
	for _, h := range r.Holders {
		if c := h.Convert; c.ID != "" && (c.ID == id || h.ID == id) {
			return Wait{ID: c.ID, Mode: c.Mode, Queued: c.Queued, Entry: h}, true
		}
	}
	return Wait{}, false
}

// Blockers returns the entries that make the request, or the conversion, with this id wait in a
// lock's record. It is granted when none of them is in its way any more. A blocker that itself waits for a
// mode (FinalMode) that admits the other one only has to be granted; every other blocker has to be released.
//
// A request waits for all entries before it in the queue, compatible or not, since promotion
// stops at the first that does not fit; for every holder whose mode excludes its own; and for
// every holder that converts. A conversion waits for the other holders whose modes exclude its target.
//
// Blockers returns nil for a request that waits only because there are too many holders, since any of them may be
// the next to release, and for records of other kinds.
func (r *Record) Blockers(id string) (all []Entry) {
	w, ok := r.Waiting(id)
	switch {
	case !ok:
		return nil
	case w.ID == w.Entry.ID:
		all = r.BlockersOfNext(w.Mode)
		return all[:len(all)-len(r.Waiters)+indexOf(r.Waiters, w.ID)]
	}
	for _, h := range r.Holders {
		if h.ID != w.Entry.ID && !Compatible(h.Mode, w.Mode) {
			all = append(all, h)
		}
	}
	return all
}

// Granted reports whether a lock's request with this id holds or, if holder is given, whether that
// holder's conversion with this id was granted.
func (r *Record) Granted(id, holder string) bool {
	if r == nil {
		return false
	}
	if holder == "" {
		return indexOf(r.Holders, id) >= 0
	}
	h, _ := r.Holder(holder)
	return h.Converted == id
}

// BlockersOfNext returns the entries that a request for the mode would wait for if it queued now.
func (r *Record) BlockersOfNext(mode Mode) (all []Entry) {
	if r == nil || r.Kind != KindLock {
		return nil
	}
	for _, h := range r.Holders {
		if !Compatible(h.Mode, mode) || h.Convert.ID != "" {
			all = append(all, h)
		}
	}
	return append(all, r.Waiters...)
}

// stopWaiting removes a request, or a conversion, that still waits. A granted one stays.
func (m *machine) stopWaiting(op *Op) Result {
	m.remove(&m.Waiters, selection{id: op.ID})
	for i := range m.Holders {
		if h := &m.Holders[i]; h.Convert.ID == op.ID {
			h.Convert = Conversion{}
		}
	}
	return m.settled()
}

// The hold time, and so the expected wait, is an estimate: for people, and for requests
// with Patience. It decides nothing else, so a hold that was counted
// twice, or not at all, does no harm.

// holdGain is the weight of the newest hold in the smoothed hold time, as a divisor: the gain that
// RFC 6298 gives to a new round trip.
const holdGain = 8

// maxHold is the longest hold time that a record can store: its microseconds are exact in every JSON reader.
const maxHold = maxSince * time.Microsecond

// SmoothHold returns the smoothed hold time after one more hold, of the given length. 0 means not
// known, for both arguments.
func SmoothHold(smoothed, held time.Duration) time.Duration {
	switch {
	case held <= 0:
		return smoothed
	case smoothed <= 0:
		return truncHold(held)
	}
	return truncHold(smoothed + (held-smoothed)/holdGain)
}

// truncHold cuts to whole microseconds, but never to 0, which would mean "not known".
func truncHold(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return min(max(d.Truncate(time.Microsecond), time.Microsecond), maxHold)
}

// Turns returns how many holds end one after the other before the waiter at pos is granted. Holds that are
// granted together count as one. It is at least 1.
func (r *Record) Turns(pos int) int {
	turns, group := 1, r.modes()
	for i := range r.Holders {
		if c := r.Holders[i].Convert; c.ID != "" {
			turns, group = turns+1, modeSet(0).with(c.Mode)
		}
	}
	// As long as the head of the queue doesn't fit the present holders, no waiter can join them.
	for i := 0; i <= pos && i < len(r.Waiters); i++ {
		mode := r.Waiters[i].Mode
		if i > 0 && group.admits(mode) {
			group = group.with(mode)
			continue
		}
		if i > 0 {
			turns++
		}
		group = modeSet(0).with(mode)
	}
	return turns
}

// LongestWait returns the expected wait, from now, of the last waiter for which mine is true. A nil record has none.
func (r *Record) LongestWait(mine func(id string) bool) time.Duration {
	if r == nil {
		return 0
	}
	if last := lastOf(r.Waiters, mine); last >= 0 {
		return r.ExpectedWait(last) // no waiter before it waits longer
	}
	return 0
}

// ExpectedWait returns the expected wait, from now, of the waiter at pos, by the
// holds so far: its turns times the smoothed hold time. 0 means not known.
func (r *Record) ExpectedWait(pos int) time.Duration {
	if r.Kind != KindLock {
		return 0
	}
	turns := int64(r.Turns(pos))
	if int64(r.Hold) > int64(maxHold)/turns {
		return maxHold
	}
	return time.Duration(int64(r.Hold) * turns)
}
