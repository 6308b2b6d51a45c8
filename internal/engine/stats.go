package engine

import (
	"maps"
	"slices"
	"time"
)

// Stats counts what an engine has done since it was made.
type Stats struct {
	Operations uint64 // submitted
	Rounds     uint64 // compare-and-set attempts
	Writes     uint64 // committed
	Reads      uint64 // leader reads
	Conflicts  uint64
	Busy       uint64 // code 10164
	Unknown    uint64 // writes whose outcome was not known at once

	HoldTime     time.Duration // smoothed length of this process's holds; 0 = none was released yet
	Waiting      int           // operations that wait in a queue now
	ExpectedWait time.Duration // the longest expected wait among these, from now; 0 = not known
}

// Stats returns the counters, and the expected wait of the operations in a queue now.
func (e *Engine) Stats() Stats {
	st := Stats{
		Operations: e.operations.Load(), Rounds: e.rounds.Load(), Writes: e.writes.Load(), Reads: e.reads.Load(),
		Conflicts: e.conflicts.Load(), Busy: e.busy.Load(), Unknown: e.unknown.Load(),
		HoldTime: time.Duration(e.holdTime.Load()),
	}
	e.mu.Lock()
	watched := slices.Collect(maps.Keys(e.watched)) // every key with waiting operations is in it
	e.mu.Unlock()
	for _, v := range watched {
		waiting, expected := v.expectedWait()
		st.Waiting += waiting
		st.ExpectedWait = max(st.ExpectedWait, expected)
	}
	return st
}

// NoteHold takes a hold of length d that another process releases into Stats.HoldTime.
func (e *Engine) NoteHold(d time.Duration) { e.noteHold(d) }
