package record

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Apply applies ops in their order to rec, which was read at revision rev (nil and 0 if the key is
// absent), and returns the next record and one result per operation.
//
// rec is never modified. next is a copy whose tokens are resolved at rev, so a token of 0 in next
// means "granted, or queued, by the write of next". If changed is false then next is rec with its
// tokens resolved, or an empty record for nil. A caller that writes although nothing changed (to
// prove by a committed CAS that an id is absent) writes next, never rec again: a token of 0 in rec
// would become a later revision than the one its holder was told.
//
// What an operation achieved is read off the record that was committed, by id, never off
// intermediate states: in one call an acquire may be granted, released and succeeded by another.
// Only what stands in next survives, and there, since holders are compatible, at most one new
// exclusive grant. The Verdict only tells refusals apart.
//
// Every operation but a try grants afterwards what can be granted, conversions first, so repeating
// one of them also mends a record whose head waiter was left behind by another hand or by lower limits.
func Apply(rec *Record, rev uint64, ops []Op, lim Limits) (next *Record, results []Result, changed bool) {
	next = rec.resolved(rev)
	results = make([]Result, len(ops))
	if next.Kind != KindLock {
		for i := range results {
			results[i].Verdict = WrongKind
		}
		return next, results, false
	}
	m := machine{Record: next, lim: lim.orDefaults(), size: -1}
	for i := range ops {
		results[i] = m.apply(&ops[i])
	}
	if next.Empty() {
		next.Hold = 0 // such a record is deleted
	}
	return next, results, !m.isStill(rec, rev)
}

// machine is a record that is being worked on.
type machine struct {
	*Record
	lim     Limits
	size    int    // of the record by sizeBound, -1 while nobody asked
	scratch []byte // for what is encoded to be measured
}

func (m *machine) apply(op *Op) Result {
	if v := op.check(); v != Applied {
		return Result{Verdict: v}
	}
	held := len(m.Holders)
	switch op.Kind {
	case OpAcquire:
		return m.acquire(op)
	case OpTry:
		return m.try(op)
	case OpRelease:
		byID := func(e Entry) bool { return e.ID == op.ID }
		if m.remove(&m.Holders, byID); len(m.Holders) < held {
			m.Hold = SmoothHold(m.Hold, op.Hold)
		}
		m.remove(&m.Waiters, byID)
		m.promote()
	case OpEvict:
		dead := deadLeases(op.Leases)
		m.remove(&m.Holders, dead)
		m.remove(&m.Waiters, dead)
		m.promote()
	case OpRevoke:
		for i := range m.Holders {
			if h := &m.Holders[i]; op.hits(h) {
				h.Revoked, h.Convert = true, Conversion{} // it is to let go, not to get more
			}
		}
		m.promote()
	case OpRemove:
		m.remove(&m.Holders, func(e Entry) bool { return op.hits(&e) })
		m.promote()
	case OpConvert:
		return m.convert(op)
	case OpUnconvert:
		m.unconvert(op)
	}
	return Result{Verdict: Applied}
}

func (m *machine) acquire(op *Op) Result {
	if indexOf(m.Holders, op.ID) >= 0 || indexOf(m.Waiters, op.ID) >= 0 {
		m.promote()
		return Result{Verdict: Applied}
	}
	if other := m.sameOwner(op.Owner); other != nil {
		return Result{Verdict: AlreadyHeld, Blocker: *other}
	}
	granted := m.grantable(op.Mode)
	e := op.entry()
	if !granted && op.Patience > 0 {
		if wait := m.expectedWaitOf(&e, op.Hold); wait > op.Patience {
			return Result{Verdict: WaitTooLong, Blocker: m.blocker(op.Mode), Wait: wait, Position: len(m.Waiters)}
		}
	}
	if !granted && len(m.Waiters) >= m.lim.MaxWaiters {
		return Result{Verdict: QueueFull, Limit: fmt.Sprintf("%d waiters", m.lim.MaxWaiters)}
	}
	if !m.reserve(&e) {
		return m.tooLarge()
	}
	m.suppose(op)
	if granted {
		m.Holders = append(m.Holders, e)
	} else {
		m.Waiters = append(m.Waiters, e)
		m.promote()
	}
	return Result{Verdict: Applied}
}

func (m *machine) try(op *Op) Result {
	if indexOf(m.Holders, op.ID) >= 0 {
		return Result{Verdict: Applied}
	}
	if other := m.sameOwner(op.Owner); other != nil && other.ID != op.ID {
		return Result{Verdict: AlreadyHeld, Blocker: *other}
	}
	if !m.grantable(op.Mode) {
		return Result{Verdict: Held, Blocker: m.blocker(op.Mode)}
	}
	e := op.entry()
	if !m.reserve(&e) {
		return m.tooLarge()
	}
	m.suppose(op)
	m.Holders = append(m.Holders, e)
	return Result{Verdict: Applied}
}

// suppose takes over what a requester knows of the hold time, where the record knows nothing.
func (m *machine) suppose(op *Op) {
	if m.Hold == 0 {
		m.Hold = wholeHold(op.Hold)
	}
}

// expectedWaitOf returns how long a request would wait at the end of the queue; hold is the
// requester's idea of the hold time.
func (m *machine) expectedWaitOf(e *Entry, hold time.Duration) time.Duration {
	queued := Record{Hold: m.Hold, Holders: m.Holders, Waiters: append(slices.Clip(m.Waiters), *e)}
	if queued.Hold == 0 {
		queued.Hold = wholeHold(hold)
	}
	return queued.ExpectedWait(len(m.Waiters))
}

// grantable reports whether a request that arrives now can be granted without passing anybody.
func (m *machine) grantable(want Mode) bool {
	return len(m.Waiters) == 0 && len(m.Holders) < m.lim.MaxHolders && m.modes().admits(want) && !m.converting()
}

// blocker returns whom a request that is not grantable would have to wait for: a holder it is
// incompatible with, else one that waits for a conversion, else the head of the queue, else (too
// many holders) the oldest holder.
func (m *machine) blocker(want Mode) Entry {
	for i := range m.Holders {
		if !Compatible(m.Holders[i].Mode, want) {
			return m.Holders[i]
		}
	}
	for i := range m.Holders {
		if m.Holders[i].Convert.ID != "" {
			return m.Holders[i]
		}
	}
	if len(m.Waiters) > 0 {
		return m.Waiters[0]
	}
	return m.Holders[0]
}

// sameOwner finds an entry of the same explicit owner.
func (m *machine) sameOwner(owner string) *Entry {
	if owner == "" {
		return nil
	}
	for _, list := range [][]Entry{m.Holders, m.Waiters} {
		for i := range list {
			if list[i].Owner == owner {
				return &list[i]
			}
		}
	}
	return nil
}

// promote grants from the head of the queue and stops at the first waiter that doesn't fit, even
// if one behind it would: else readers could keep a writer waiting for ever.
// Conversions come first, and while one of them waits nobody is let in beside it, for the same reason.
func (m *machine) promote() {
	if m.promoteConversions() {
		return
	}
	held, n := m.modes(), 0
	for n < len(m.Waiters) && len(m.Holders) < m.lim.MaxHolders && held.admits(m.Waiters[n].Mode) {
		e := m.Waiters[n]
		e.Token = 0 // the fencing token is the revision of this write, not of the one that queued it
		m.Holders = append(m.Holders, e)
		held = held.with(e.Mode)
		n++
	}
	m.Waiters = compact(slices.Delete(m.Waiters, 0, n))
}

// reserve takes the room for e, or reports that there is not enough. The room is that of the
// largest form e can ever have, so nothing that happens to it later needs more.
func (m *machine) reserve(e *Entry) bool {
	if m.size < 0 {
		m.size = m.sizeBound()
	}
	need := m.entryBound(e)
	if m.size+need > m.lim.MaxBytes {
		return false
	}
	m.size += need
	return true
}

func (m *machine) tooLarge() Result {
	return Result{Verdict: QueueFull, Limit: fmt.Sprintf("%d bytes", m.lim.MaxBytes)}
}

func (m *machine) remove(list *[]Entry, gone func(Entry) bool) {
	*list = compact(slices.DeleteFunc(*list, func(e Entry) bool {
		if !gone(e) {
			return false
		}
		if m.size >= 0 {
			m.size -= m.entryBound(&e)
		}
		return true
	}))
}

// isStill reports whether all operations together left the record as it was.
func (m *machine) isStill(rec *Record, rev uint64) bool {
	if rec == nil {
		return m.Empty()
	}
	same := func(was, is Entry) bool {
		was.Resolve(rev)
		return was.equal(&is)
	}
	return rec.Hold == m.Hold && slices.EqualFunc(rec.Holders, m.Holders, same) && slices.EqualFunc(rec.Waiters, m.Waiters, same)
}

// entry is the entry that a request makes.
func (op *Op) entry() Entry {
	return Entry{ID: op.ID, Mode: op.Mode, Owner: op.Owner, TTL: wholeTTL(op.TTL), Since: wholeSince(op.Since), Meta: cloneMeta(op.Meta)}
}

// deadLeases tells the entries of the given leases.
func deadLeases(leases []string) func(Entry) bool {
	if len(leases) <= 4 {
		return func(e Entry) bool { return slices.Contains(leases, e.Lease()) }
	}
	dead := make(map[string]bool, len(leases))
	for _, l := range leases {
		dead[l] = true
	}
	return func(e Entry) bool { return dead[e.Lease()] }
}

// compact makes an emptied list nil, as Decode does.
func compact(list []Entry) []Entry {
	if len(list) == 0 {
		return nil
	}
	return list
}

func cloneMeta(meta map[string]string) map[string]string {
	if len(meta) == 0 {
		return nil
	}
	return maps.Clone(meta)
}
