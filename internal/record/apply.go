package record

import (
	"fmt"
	"maps"
	"slices"
)

// Apply applies ops in their order to rec, which was read at revision rev (nil and 0 if the key is
// absent), and returns the next record and one result per operation.
//
// rec is never modified. next is a copy whose tokens are resolved at rev, so a token of 0 in next
// means "granted, or queued, by the write of next". If changed is false then next is rec with its
// tokens resolved, or, where nobody holds or waits, an empty record without a kind. A caller that writes although nothing changed (to
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
	m := machine{Record: next, lim: lim.orDefaults(), size: -1}
	for i := range ops {
		results[i] = m.apply(&ops[i])
	}
	if next.Idle() {
		*next = Record{} // it is deleted, and free for any kind
	}
	return next, results, !m.unchanged(rec, rev)
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
	if op.Kind != "" && op.Kind != m.Kind && m.Idle() {
		*m.Record, m.size = Record{Kind: op.Kind}, -1
	}
	k := m.rules()
	switch {
	case m.Kind == "":
		return Result{Verdict: Applied} // nobody is there
	case k == nil, op.Kind != "" && op.Kind != m.Kind:
		return Result{Verdict: WrongKind}
	}
	held := len(m.Holders)
	switch op.Verb {
	case OpRelease:
		byID := func(e Entry) bool { return e.ID == op.ID }
		if m.remove(&m.Holders, byID); len(m.Holders) < held {
			m.Hold = SmoothHold(m.Hold, op.Hold)
		}
		m.remove(&m.Waiters, byID)
	case OpEvict:
		dead := deadLeases(op.Leases)
		m.remove(&m.Holders, dead)
		m.remove(&m.Waiters, dead)
	case OpRevoke:
		for i := range m.Holders {
			if h := &m.Holders[i]; op.targets(h) {
				h.Revoked, h.Convert = true, Conversion{} // it is to let go, not to get more
			}
		}
	case OpRemove:
		m.remove(&m.Holders, func(e Entry) bool { return op.targets(&e) })
	default:
		return k.apply(m, op)
	}
	k.settle(m)
	return Result{Verdict: Applied}
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
	*list = nilIfEmpty(slices.DeleteFunc(*list, func(e Entry) bool {
		if !gone(e) {
			return false
		}
		if m.size >= 0 {
			m.size -= m.entryBound(&e)
		}
		return true
	}))
}

// unchanged reports whether all operations together left the record as it was.
func (m *machine) unchanged(rec *Record, rev uint64) bool {
	if rec == nil {
		return m.Idle()
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

// nilIfEmpty makes an emptied list nil, as Decode does.
func nilIfEmpty(list []Entry) []Entry {
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
