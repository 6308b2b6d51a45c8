package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Stats returns the counters, and how long the operations wait that stand in a queue now.
func (e *Engine) Stats() Stats {
	st := Stats{
		Operations: e.operations.Load(), Rounds: e.rounds.Load(), Writes: e.writes.Load(), Reads: e.reads.Load(),
		Conflicts: e.conflicts.Load(), Busy: e.busy.Load(), Unknown: e.unknown.Load(),
		HoldTime: time.Duration(e.holdTime.Load()),
	}
	e.mu.Lock()
	watched := slices.Collect(maps.Keys(e.watched)) // whoever waits has a watch
	e.mu.Unlock()
	for _, r := range watched {
		waiting, expected := r.expectedWait()
		st.Waiting += waiting
		st.ExpectedWait = max(st.ExpectedWait, expected)
	}
	return st
}

// Plus adds up the numbers of two engines. Times are not added: of HoldTime, the one
// that o knows counts, and of ExpectedWait the longer one.
func (s Stats) Plus(o Stats) Stats {
	s.Operations += o.Operations
	s.Rounds += o.Rounds
	s.Writes += o.Writes
	s.Reads += o.Reads
	s.Conflicts += o.Conflicts
	s.Busy += o.Busy
	s.Unknown += o.Unknown
	s.Waiting += o.Waiting
	if o.HoldTime > 0 {
		s.HoldTime = o.HoldTime
	}
	s.ExpectedWait = max(s.ExpectedWait, o.ExpectedWait)
	return s
}

// expectedWait returns how many operations of this process wait, and the longest time that one of
// them is expected to.
func (r *resource) expectedWait() (waiting int, longest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting), r.rec.LongestWait(func(id string) bool { return r.waiting[id] != nil })
}

// held notes that a hold was released which lasted d.
func (e *Engine) held(d time.Duration) {
	for d > 0 {
		old := e.holdTime.Load()
		if e.holdTime.CompareAndSwap(old, int64(record.SmoothHold(time.Duration(old), d))) {
			return
		}
	}
}
