package record

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
