package record

// Who waits for whom, for finding deadlocks over several records.

// Becomes is the mode that e has when it waits no more, or has already.
func (e *Entry) Becomes() Mode {
	if e.Convert.ID != "" {
		return e.Convert.Mode
	}
	return e.Mode
}

// Wait is what waits in a record: a request in the queue, or a holder's conversion.
type Wait struct {
	ID     string // of the request or the conversion
	Mode   Mode   // that is waited for
	Queued uint64 // the revision of the write that asked, or gave it its last ticket; 0 = this record's
	Entry  Entry
}

// Waiting returns what waits in a lock's record under the id, that of a request, of a conversion or of
// the holder that converts. Who waits for a signal is not in the lock's queue.
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

// Blockers returns the entries because of which the request, or the conversion, with this id waits in a
// lock's record. It is granted when none of them is in its way any more. One that waits itself and then has a
// mode (Becomes) beside which the other can be granted only has to be granted; any other one has to go.
//
// A request waits for everybody before it in the queue, compatible or not, since promotion
// stops at the first that does not fit; for every holder whose mode excludes its own; and for
// every holder that converts. A conversion waits for the other holders whose modes exclude its target.
//
// It returns nil for who waits only for a place among the holders, which is free when any of them goes,
// and in records of other kinds.
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

// Granted reports whether a lock's request with this id holds, or for a conversion of the given holder
// whether it was granted.
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

// BlockersOfNext returns the entries because of which a request for the mode would wait that queues now.
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

// stopWaiting removes a request, or a conversion, that still waits. What was granted stays.
func (m *machine) stopWaiting(op *Op) {
	m.remove(&m.Waiters, selection{id: op.ID})
	for i := range m.Holders {
		if h := &m.Holders[i]; h.Convert.ID == op.ID {
			h.Convert = Conversion{}
		}
	}
	lockRules{}.settle(m)
}
