package record

import (
	"cmp"
	"iter"
	"slices"
	"time"
)

// Record is the state of one resource.
type Record struct {
	Kind Kind
	// Hold is the smoothed length of a hold here, over the holds that were released since the record was
	// made; 0 = not known. See SmoothHold.
	Hold    time.Duration
	Holders []Entry // in the order they were granted
	Waiters []Entry // in queue order, the head first
	// Life tells this record from earlier records of its key: it is the revision of the delete
	// marker that the record replaced, 0 if there was none. A lock has no Life: nothing depends on it.
	Life uint64
	Body Body // of the kind; nil for a plain lock
}

// Body has the fields of a kind besides holders and waiters. A body in a record is
// never modified: Apply works on a clone.
type Body interface {
	clone() Body
	bound(m *machine) int // bytes of the longest form that it can take without new entries
}

// entries yields all holders, all waiters, and all entries that wait for a signal.
func (r *Record) entries() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		more := yieldAll(r.Holders, yield) && yieldAll(r.Waiters, yield)
		for _, q := range r.conditions() {
			more = more && yieldAll(q.Waiters, yield)
		}
	}
}

func yieldAll(list []Entry, yield func(*Entry) bool) bool {
	for i := range list {
		if !yield(&list[i]) {
			return false
		}
	}
	return true
}

// Resolve fills in rev, the revision at which r was read, in tickets without a revision and in
// conversions whose Queued is 0.
func (r *Record) Resolve(rev uint64) {
	for e := range r.entries() {
		e.Resolve(rev)
	}
	if s, ok := r.Body.(*semaphore); ok {
		s.sized = cmp.Or(s.sized, rev)
	}
}

// Holder returns the holder with the given id, if there is one.
func (r *Record) Holder(id string) (Entry, bool) {
	return find(r.Holders, func(e *Entry) bool { return e.ID == id })
}

// Waiter returns the waiter with the given id, if there is one, and the number of waiters before it.
func (r *Record) Waiter(id string) (e Entry, pos int, ok bool) {
	if i := indexOf(r.Waiters, id); i >= 0 {
		return r.Waiters[i], i, true
	}
	return Entry{}, 0, false
}

// Has reports whether r has an entry with the given id. A nil record has none.
func (r *Record) Has(id string) bool {
	return r != nil && (indexOf(r.Holders, id) >= 0 || indexOf(r.Waiters, id) >= 0 ||
		slices.ContainsFunc(r.conditions(), func(q Queue) bool { return indexOf(q.Waiters, id) >= 0 }))
}

// HasLease reports whether r has an entry, or a mark of a latch, under the given lease.
func (r *Record) HasLease(id string) bool { return r.EntriesUnder(id) > 0 }

// EntriesUnder counts the entries, and marks, under the given leases. A nil record has none.
func (r *Record) EntriesUnder(leases ...string) (n int) {
	for lease := range r.Leases() {
		if slices.Contains(leases, lease) {
			n++
		}
	}
	return n
}

// Leases yields the leases of all entries and marks, with their TTLs. A lease may come several times. A nil record
// has none.
func (r *Record) Leases() iter.Seq2[string, time.Duration] {
	return func(yield func(string, time.Duration) bool) {
		if r == nil {
			return
		}
		for e := range r.entries() {
			if !yield(e.Lease(), e.TTL) {
				return
			}
		}
		if l, ok := r.Body.(*latch); ok {
			for _, k := range l.marks {
				if !yield(k.lease, k.ttl) {
					return
				}
			}
		}
	}
}

// resolved returns a copy of r with tickets resolved at revision rev, and an empty record without a kind for nil. The copy
// shares the Meta maps, which are read-only once in a record.
func (r *Record) resolved(rev uint64) *Record {
	if r == nil {
		return new(Record)
	}
	c := r.clone()
	c.Resolve(rev)
	return c
}

// clone returns a copy that shares the Meta maps.
func (r *Record) clone() *Record {
	c := &Record{Kind: r.Kind, Hold: r.Hold, Holders: slices.Clone(r.Holders), Waiters: slices.Clone(r.Waiters), Life: r.Life}
	if r.Body != nil {
		c.Body = r.Body.clone()
	}
	return c
}

func find(list []Entry, matches func(*Entry) bool) (Entry, bool) {
	for i := range list {
		if matches(&list[i]) {
			return list[i], true
		}
	}
	return Entry{}, false
}

func indexOf(list []Entry, id string) int {
	for i := range list {
		if list[i].ID == id {
			return i
		}
	}
	return -1
}

// Facts are the contents of a record besides its entries, of any kind, for showing them.
type Facts struct {
	Size    int    // semaphore: number of permits
	Taken   int    // semaphore: number of permits held
	Initial int    // semaphore: the size it was made with; latch: the count
	Sized   uint64 // semaphore: revision at which its size was set; a resize is based on it

	Parties int     // barrier, gate: number of parties
	Arrived int     // barrier, gate: parties that have arrived for the generation Gen
	Gen     uint64  // barrier, gate: the generation that is forming
	Acting  bool    // barrier: the last to arrive in a generation runs its action
	Ended   []Ended // barrier: the last generations that ended, the oldest first

	Open   bool   // gate: all have entered; latch: the count is 0
	Count  int    // latch
	Fenced uint64 // latch: revision of the last removal of marks of dead leases

	Value Value  // election: of the leader; once: the result
	By    string // once: the id that stored the result
	// Retention is, for once, the least time that the result stays; 0 = until it is deleted.
	Retention time.Duration

	Queues []Queue // lock: its conditions, by name
}

// Ended is a generation of a barrier that has ended.
type Ended struct {
	Gen    uint64
	IDs    []string // its parties, in the order in which they arrived
	Broken bool
	Why    string // if it was broken
	Who    string // the id, or the lease, that broke it
}

// Queue is a condition with the entries that wait for its signal, the next one first.
type Queue struct {
	Name    string
	Waiters []Entry
}

// Facts returns the contents of r besides its entries. A nil record has none.
func (r *Record) Facts() (f Facts) {
	if k := r.rules(); k != nil {
		k.facts(r, &f)
	}
	return f
}
