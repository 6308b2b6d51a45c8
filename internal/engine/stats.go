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
	Batched    uint64 // of these, those of a group commit; whoever owns the store adds them
	Reads      uint64 // leader reads
	Conflicts  uint64
	Busy       uint64 // code 10164
	Unknown    uint64 // writes whose outcome was not known at once

	HoldTime     time.Duration // how long this process's holds last, smoothed; 0 = none was released yet
	Waiting      int           // operations that stand in a queue now
	ExpectedWait time.Duration // the longest that one of these is expected to wait from now; 0 = not known
}

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
	for _, v := range watched {
		waiting, expected := v.expectedWait()
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
	s.Batched += o.Batched
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

// NoteHold takes a hold into Stats.HoldTime that lasted d and is released by another process.
func (e *Engine) NoteHold(d time.Duration) { e.held(d) }
