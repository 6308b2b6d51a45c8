package fabric

import (
	"slices"
	"time"
)

// Stats counts what the manager has done since it was made. The counters only rise:
// they go on when its buckets are replaced, and stay when it is closed.
type Stats struct {
	Operations uint64 // acquires, releases and others given to the engine
	Writes     uint64 // committed writes of lock records
	Batched    uint64 // of these, those that were sent in atomic batches: by a coalescer, of many locks at a time
	Reads      uint64 // reads from the leader
	Conflicts  uint64 // writes that met a newer record and were done again
	Busy       uint64 // writes that the server put off (code 10164)
	Unknown    uint64 // writes whose outcome had to be found out

	Coalesced     uint64 // operations sent to a coalescer; one that goes directly as well counts above, too
	Frames        uint64 // messages that took them there
	Turns         uint64 // of these operations, acquires that held by a turn: a coalescer passed the lock on before it was written
	Fallbacks     uint64 // of these operations, those that went directly as well, since the coalescer did not answer in time
	CoalescerLost uint64 // how often a coalescer was taken to be gone
	CoalescerTerm uint64 // term of the coalescer that is in use now, the highest where there are several; 0 = none
	Held          int    // acquires that wait in this process until the coalescer has fewer of it for the same key
	Serving       uint64 // term in which this manager is a coalescer, likewise; 0 = it is not
	// CoalescedRTT is for the road over a coalescer what RTT is for the direct one: smoothed, from a message to the word that
	// it was taken. 0 before the first.
	CoalescedRTT time.Duration

	OptimisticReads     uint64 // stamps that were validated, or found to be old
	OptimisticHits      uint64 // of these, those that were valid
	OptimisticFallbacks uint64 // calls of ReadOptimistic that came to a Shared hold
	UpdateTries         uint64 // results of fn that Update tried to write
	Updates             uint64 // of these, those that were written
	UpdateFallbacks     uint64 // calls of Update that came to an exclusive hold
	Pins                uint64 // shared intents on ancestors that were taken
	PinJoins            uint64 // how often a path found one, and had nothing to write
	PinRevocations      uint64 // how often one was given up because somebody waited for the ancestor
	KeptJoins           uint64 // acquires that found their lock kept, and had nothing to write

	HoldTime     time.Duration // how long this manager's holds last, smoothed; 0 = none was released yet
	Waiting      int           // acquires and conversions that stand in a queue now
	ExpectedWait time.Duration // the longest that one of these is expected to wait from now; 0 = not known

	// What the connection is like since the manager was made, and what that makes of the manager's timing.

	RTT            time.Duration // smoothed time from a request to its answer; 0 before the first
	RTTDeviation   time.Duration // its smoothed mean deviation
	RequestTimeout time.Duration // after which a request is taken for lost and made again
	RenewEarly     time.Duration // by how much earlier than configured the manager's own lease is renewed
	Timeouts       uint64        // requests that were not answered in time

	DeadlockProbes uint64 // looks for deadlocks, of units of work that waited for long
	DeadlockReads  uint64 // reads that these took
	DeadlockCuts   uint64 // of these looks, those that were cut short: too much stood in the way
	Deadlocks      uint64 // waits of this manager that were ended because of one
}

// Stats returns the manager's counters.
func (m *Manager) Stats() Stats {
	var st Stats
	st.RTT, st.RTTDeviation = m.rtt.RTT()
	st.RequestTimeout, st.Timeouts = m.rtt.Timeout(), m.rtt.Timeouts()
	m.mu.Lock()
	e, d, roads := m.past, m.pastDetection, m.pastRoads
	s, sessions := m.current, slices.Clone(m.leaving)
	if s != nil {
		sessions = append(sessions, s)
	}
	m.mu.Unlock()
	for _, s := range sessions {
		roads = s.roads().Plus(roads)
		e = e.Plus(s.engineStats())
		d = d.Plus(s.detection.stats())
	}
	if s != nil {
		for _, sh := range s.shards {
			st.Serving = max(st.Serving, sh.serving.Load())
		}
		s.mu.Lock()
		sl := s.slots[m.cfg.timing]
		s.mu.Unlock()
		if sl != nil {
			st.RenewEarly = sl.lease.RenewEarly()
		}
	}
	st.Operations, st.Writes, st.Reads, st.Conflicts, st.Busy, st.Unknown = e.Operations, e.Writes, e.Reads, e.Conflicts, e.Busy, e.Unknown
	st.Coalesced, st.Frames, st.Fallbacks, st.CoalescerLost = roads.Operations, roads.Frames, roads.Fallbacks, roads.Suspended
	st.Turns, st.CoalescedRTT, st.Batched = roads.Turns, roads.RTT, e.Batched
	st.CoalescerTerm, st.Held = roads.Term, roads.Held
	st.Pins, st.PinJoins, st.PinRevocations = m.pins.Load(), m.pinJoins.Load(), m.pinRevocations.Load()
	st.KeptJoins = m.keptJoins.Load()
	st.HoldTime, st.Waiting, st.ExpectedWait = e.HoldTime, e.Waiting, e.ExpectedWait
	st.OptimisticReads, st.OptimisticHits, st.OptimisticFallbacks = m.optimism.reads.Load(), m.optimism.hits.Load(), m.optimism.fallbacks.Load()
	st.UpdateTries, st.Updates, st.UpdateFallbacks = m.updates.tries.Load(), m.updates.done.Load(), m.updates.fallbacks.Load()
	st.DeadlockProbes, st.DeadlockReads, st.DeadlockCuts, st.Deadlocks = d.Probes, d.Reads, d.Cuts, d.Victims
	return st
}
