package record

import (
	"iter"
	"maps"
	"slices"
	"time"
)

// Record is the state of one resource.
type Record struct {
	Kind Kind
	// Hold is how long a hold lasts here, smoothed over those that were released since the record was
	// made; 0 = not known. See SmoothHold.
	Hold    time.Duration
	Holders []Entry // in the order they were granted
	Waiters []Entry // in queue order, the head first
	// Life tells this record from those that stood under its key before: the revision of the delete
	// marker that it was made over, 0 if there was none. A lock has none: nothing depends on it.
	Life uint64
	Body Body // the kind's own; nil for a plain lock
}

// Body is what the records of a kind have beside holders and waiters. A body that is in a record is
// not modified: Apply works on a clone.
type Body interface {
	clone() Body
	resolve(rev uint64)                // like Record.Resolve
	append(dst []byte) []byte          // the fields as JSON, each after a comma
	bound(m *machine) int              // bytes of the longest form it can take while nobody new comes
	remove(gone selection, m *machine) // its own entries, with m.took for each
}

// noEntries is the part of a body that has no entries.
type noEntries struct{}

func (noEntries) remove(selection, *machine) {}

// noTickets is the part of a body in which nothing waits for the revision of its write.
type noTickets struct{}

func (noTickets) resolve(uint64) {}

// Clone returns a deep copy.
func (r *Record) Clone() *Record {
	c := r.clone()
	for e := range c.entries() {
		e.Meta = maps.Clone(e.Meta)
	}
	return c
}

// entries yields all who hold, who wait, and who wait for a signal.
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

// Resolve fills in rev, the revision at which r was read, in tickets without one, and likewise in
// conversions whose Queued is 0.
func (r *Record) Resolve(rev uint64) {
	for _, list := range [][]Entry{r.Holders, r.Waiters} {
		for i := range list {
			list[i].Resolve(rev)
		}
	}
	if r.Body != nil {
		r.Body.resolve(rev)
	}
}

// Holder returns the holder with the given id, if there is one.
func (r *Record) Holder(id string) (Entry, bool) {
	if i := indexOf(r.Holders, id); i >= 0 {
		return r.Holders[i], true
	}
	return Entry{}, false
}

// Waiter returns the waiter with the given id, if there is one, and how many wait before it.
func (r *Record) Waiter(id string) (e Entry, pos int, ok bool) {
	if i := indexOf(r.Waiters, id); i >= 0 {
		return r.Waiters[i], i, true
	}
	return Entry{}, 0, false
}

// Has reports whether an entry with the given id stands in r. A nil record has none.
func (r *Record) Has(id string) bool {
	return r != nil && (indexOf(r.Holders, id) >= 0 || indexOf(r.Waiters, id) >= 0 ||
		slices.ContainsFunc(r.conditions(), func(q Queue) bool { return indexOf(q.Waiters, id) >= 0 }))
}

// HasLease reports whether an entry, or a mark of a latch, stands under the given lease.
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

// Leases yields the leases of all entries and marks, with their TTLs, one lease perhaps several times. A nil record
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

// resolved returns a copy of r as it stands at revision rev, and an empty one without a kind for nil. It
// shares the Meta maps, which nobody modifies once they are in a record.
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

func indexOf(list []Entry, id string) int {
	for i := range list {
		if list[i].ID == id {
			return i
		}
	}
	return -1
}

// Facts are what a record says beside its entries, of whatever kind it is, for whoever looks at it.
type Facts struct {
	Size    int    // semaphore: how many permits there are
	Taken   int    // semaphore: how many of them are out
	Initial int    // semaphore: the size it was made with; latch: the count
	Sized   uint64 // semaphore: revision at which its size was set, which a resize is based on

	Parties int     // barrier, gate: how many have to come
	Arrived int     // barrier, gate: how many of them have come, for the generation Gen
	Gen     uint64  // barrier, gate: the generation that forms
	Acting  bool    // barrier: the last one who came for a generation runs its action
	Ended   []Ended // barrier: the last generations, the oldest first

	Open   bool   // gate: all are in; latch: the count is 0
	Count  int    // latch
	Fenced uint64 // latch: revision at which marks of dead leases were removed last

	Value Value  // election: the leader's; once: the result
	By    string // once: the id that gave the result
	// Retention is, of once, for how long the result stays at least; 0 = until it is deleted.
	Retention time.Duration

	Queues []Queue // lock: its conditions, by name
}

// Ended is how one generation of a barrier ended.
type Ended struct {
	Gen    uint64
	IDs    []string // who was in it, in the order they came
	Broken bool
	Why    string // of a broken one
	Who    string // the id, or the lease, because of which
}

// Queue is a condition with those who wait for its signal, the next one first.
type Queue struct {
	Name    string
	Waiters []Entry
}

// Facts tells what r says beside its entries. A nil record says nothing.
func (r *Record) Facts() (f Facts) {
	if k := r.rules(); k != nil {
		k.facts(r, &f)
	}
	return f
}
