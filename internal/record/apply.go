package record

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"sync"
)

// Apply applies ops in their order to rec, which was read at revision rev (nil and 0 if the key is
// absent), and returns the next record and one result per operation.
//
// rec is never modified. next is a copy whose tokens are resolved at rev, so a ticket without a revision in
// next belongs to the write of next. If changed is false, next is rec with its
// tokens resolved, or, if it has no entries, an empty record without a kind. A caller that writes although nothing changed (to
// prove by a committed CAS that an id is absent) must write next, never rec: a ticket without a revision in rec
// would get a later revision than its holder was told.
//
// The outcome of an operation is read off the committed record, by id, never off intermediate states: in one
// call an acquire may be granted, released and succeeded by another. Only the entries in next count, and among them,
// since holders are compatible, is at most one new exclusive grant. The Verdict only tells refusals apart.
//
// Every operation but a try afterwards grants what can be granted, conversions first. So repeating
// one of them also repairs a record whose head waiter was not granted, because of another program or of lower limits.
func Apply(rec *Record, rev uint64, ops []Op, lim Limits) (next *Record, results []Result, changed bool) {
	return ApplyInto(nil, rec, rev, ops, lim)
}

// ApplyInto is Apply with results stored in room, if it is long enough.
func ApplyInto(room []Result, rec *Record, rev uint64, ops []Op, lim Limits) (next *Record, results []Result, changed bool) {
	next = rec.resolved(rev)
	results = slices.Grow(room[:0], len(ops))[:len(ops)]
	m := machines.Get().(*machine)
	*m = machine{Record: next, rev: rev, lim: lim.orDefaults(), size: -1, scratch: m.scratch}
	for i := range ops {
		results[i] = m.apply(&ops[i])
	}
	m.assignTickets()
	if next.Idle() {
		*next = Record{} // it will be deleted, and the key is free for any kind
	}
	changed = m.forceWrite || !m.unchanged(rec, rev)
	*m = machine{scratch: m.scratch}
	machines.Put(m)
	return next, results, changed
}

// machines recycles machines with their buffers.
var machines = sync.Pool{New: func() any { return new(machine) }}

// machine is a record while operations are applied to it.
type machine struct {
	*Record
	rev          uint64  // at which the record was read; of an absent one, that of its delete marker
	op           *Op     // the operation at hand
	removed      []Entry // that op has removed, for kinds with a body
	lim          Limits
	size         int    // of the record by sizeBound, -1 = not computed
	staleTickets bool   // waiters need new tickets
	forceWrite   bool   // an operation that did nothing must not be done later: write, though nothing changed
	scratch      []byte // buffer for encoding an entry to measure it
	long         Entry  // buffer, too
}

func (m *machine) apply(op *Op) Result {
	if v := op.check(); v != Applied {
		return Result{Verdict: v}
	}
	m.op, m.removed = op, nil
	if m.Idle() {
		if op.common() {
			return Result{Verdict: Applied} // there is no entry
		}
		if op.Kind != m.Kind || m.Body != nil && !m.forceWrite {
			m.make(op)
		}
	}
	k := m.rules()
	switch {
	case k == nil, op.Kind != "" && op.Kind != m.Kind:
		return Result{Verdict: WrongKind}
	case op.Life != m.Life && op.rule().is&needLife != 0:
		return Result{Verdict: OtherLife}
	}
	held := len(m.Holders)
	switch op.Verb {
	case OpRelease:
		m.advance(op.ID, op.Token)
		m.removeAll(selection{id: op.ID})
		if len(m.Holders) < held {
			m.Hold = SmoothHold(m.Hold, op.Hold)
		}
	case OpEvict:
		m.removeAll(selectLeases(op.Leases))
	case OpRevoke:
		m.revokeTurns(op)
		for i := range m.Holders {
			if h := &m.Holders[i]; op.targets(h) {
				h.Revoked, h.LetTurn, h.Convert = true, false, Conversion{} // its owner has to release it, so it gets no other mode
			}
		}
	case OpRemove:
		m.remove(&m.Holders, selection{targets: op})
	case OpSweep:
		if m.rev != op.Base || !m.Outlived(math.MaxInt64) {
			return Result{Verdict: Stale}
		}
		*m.Record, m.size = Record{}, -1
		return Result{Verdict: Applied}
	default:
		return op.rule().apply(m, op)
	}
	return m.settled()
}

// settled grants what can be granted, after a change.
func (m *machine) settled() Result {
	m.rules().settle(m)
	return Result{Verdict: Applied}
}

// make makes a new record in place of an idle one.
func (m *machine) make(op *Op) {
	*m.Record, m.size = Record{Kind: op.Kind}, -1
	k := m.rules()
	k.initBody(m.Record, op)
	if m.Body != nil {
		m.Life = m.rev
	}
}

// reserve reserves the room for e. It returns false if there is not enough. The room is for the
// largest form that e can ever take, so no later change of it needs more.
func (m *machine) reserve(e *Entry) bool { return m.reserveBytes(0) && m.reserveBytes(m.entryBound(e)) }

// reserveBytes is reserve for need bytes.
func (m *machine) reserveBytes(need int) bool {
	if m.size < 0 {
		m.size = m.sizeBound()
	}
	if m.size+need > m.lim.MaxBytes {
		return false
	}
	m.size += need
	return true
}

// enqueue adds op's entry to the end of the queue, if there is room, and grants what can be granted.
func (m *machine) enqueue(op *Op) Result {
	if len(m.Waiters) >= m.lim.MaxWaiters {
		return m.queueFull()
	}
	e := op.entry()
	if !m.reserve(&e) {
		return m.tooLarge()
	}
	m.Waiters = append(m.Waiters, e)
	return m.settled()
}

// grantHead makes the first n waiters holders.
func (m *machine) grantHead(n int) {
	m.Holders = append(m.Holders, m.Waiters[:n]...)
	m.Waiters = nilIfEmpty(slices.Delete(m.Waiters, 0, n))
}

func (m *machine) queueFull() Result {
	return Result{Verdict: QueueFull, Limit: fmt.Sprintf("%d waiters", m.lim.MaxWaiters)}
}

// oldestEntry returns the oldest holder, or else the head of the queue.
func (r *Record) oldestEntry() (e Entry) {
	for _, list := range [][]Entry{r.Holders, r.Waiters} {
		if len(list) > 0 {
			return list[0]
		}
	}
	return e
}

func (m *machine) tooLarge() Result {
	return Result{Verdict: QueueFull, Limit: fmt.Sprintf("%d bytes", m.lim.MaxBytes)}
}

// removeAll removes entries from the holders, the waiters and the body.
func (m *machine) removeAll(gone selection) {
	m.remove(&m.Holders, gone)
	m.remove(&m.Waiters, gone)
	switch b := m.Body.(type) {
	case *conditions:
		b.remove(gone, m)
	case *latch:
		b.remove(gone, m)
	}
}

func (m *machine) remove(list *[]Entry, gone selection) {
	kept := (*list)[:0]
	for i := range *list {
		if e := &(*list)[i]; gone.has(e) {
			m.noteRemoved(e)
			if list == &m.Holders {
				m.noteModeEnded(e.Mode)
			}
		} else {
			kept = append(kept, *e)
		}
	}
	clear((*list)[len(kept):])
	*list = nilIfEmpty(kept)
}

// noteRemoved notes that an entry was removed, and frees its room.
func (m *machine) noteRemoved(e *Entry) {
	if m.size >= 0 {
		m.size -= m.entryBound(e)
	}
	if m.Body != nil {
		m.removed = append(m.removed, *e)
	}
}

// unchanged reports whether all operations together have left the record as it was.
func (m *machine) unchanged(rec *Record, rev uint64) bool {
	if rec == nil {
		return m.Idle()
	}
	return rec.Idle() == m.Idle() && rec.Hold == m.Hold && (rec.Kind == m.Kind || m.Kind == "") && sameEntries(rec.Holders, m.Holders, rev) &&
		sameEntries(rec.Waiters, m.Waiters, rev) && sameBody(rec.Body, m.Body, rev)
}

// sameEntries reports whether two lists have the same stored form. was is resolved at rev first.
func sameEntries(was, is []Entry, rev uint64) bool {
	return slices.EqualFunc(was, is, func(e, now Entry) bool {
		e.Resolve(rev)
		return e.equal(&now)
	})
}

// sameBody is sameEntries for a body.
func sameBody(was, is Body, rev uint64) bool {
	if was == nil || is == nil {
		return was == is
	}
	resolved := Record{Body: was.clone()}
	resolved.Resolve(rev)
	return bytes.Equal(appendBody(nil, resolved.Body), appendBody(nil, is))
}

// delete deletes a record without entries, whatever its body keeps. A later operation in
// the same write makes a new record.
func (m *machine) delete(*Op) Result {
	if e := m.oldestEntry(); e.ID != "" {
		return Result{Verdict: InUse, Blocker: e}
	}
	*m.Record, m.size = Record{}, -1
	return Result{Verdict: Applied}
}

// entry returns the entry of a request, with the fields of its kind.
func (op *Op) entry() Entry {
	e := Entry{ID: op.ID, Owner: op.Owner, TTL: roundTTL(op.TTL), Since: truncSince(op.Since), Meta: op.Meta}
	if len(e.Meta) == 0 {
		e.Meta = nil
	}
	switch op.Kind {
	case KindLock:
		e.Mode, e.Value = op.Mode, op.Value
	case KindSemaphore:
		e.Permits = op.N
	}
	return e
}

// selection is a set of entries: the one with an id, those under some leases, or those that op targets.
type selection struct {
	id      string
	leases  map[string]bool
	targets *Op
}

func selectLeases(leases []string) selection {
	s := selection{leases: make(map[string]bool, len(leases))}
	for _, l := range leases {
		s.leases[l] = true
	}
	return s
}

func (s *selection) has(e *Entry) bool {
	switch {
	case s.id != "":
		return e.ID == s.id
	case s.targets != nil:
		return s.targets.targets(e)
	}
	return s.leases[e.Lease()]
}

// nilIfEmpty makes an emptied list nil, as Decode does.
func nilIfEmpty(list []Entry) []Entry {
	if len(list) == 0 {
		return nil
	}
	return list
}
