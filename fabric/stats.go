package fabric

import (
	"cmp"
	"slices"
	"time"
)

// Stats contains the counters of a manager since it was created. They never decrease, and stay after Close.
type Stats struct {
	Operations uint64 // acquires, releases and other operations given to the engine
	Writes     uint64 // committed writes of lock records
	Batched    uint64 // of these, writes sent in atomic batches: by a coalescer, for many locks at a time
	Reads      uint64 // reads from the leader
	Conflicts  uint64 // writes that met a newer record and were repeated
	Busy       uint64 // writes that the server postponed (code 10164)
	Unknown    uint64 // writes whose outcome was unknown at first

	Coalesced     uint64 // operations sent to a coalescer; an operation that is also sent directly counts above as well
	Frames        uint64 // messages for these operations
	Turns         uint64 // of these operations, acquires granted by a turn: the coalescer passed the lock on before it wrote this
	Fallbacks     uint64 // of these operations, those that were also sent directly, because the coalescer did not answer in time
	CoalescerLost uint64 // how often a coalescer was found to be gone
	CoalescerTerm uint64 // term of the coalescer in use, with shards the highest; 0 = none
	Held          int    // acquires that wait in this process until fewer of its acquires of the same key are at the coalescer
	Serving       uint64 // term in which this manager is a coalescer, with shards the highest; 0 = it is none
	// CoalescedRTT is from a message until the coalescer confirms that it has it, smoothed; 0 before the first.
	CoalescedRTT time.Duration

	OptimisticReads     uint64 // stamps that were validated or found to be out of date
	OptimisticHits      uint64 // of these, valid stamps
	OptimisticFallbacks uint64 // calls of ReadOptimistic that needed a Shared hold
	UpdateTries         uint64 // results of fn that Update tried to write
	Updates             uint64 // of these, those that were written
	UpdateFallbacks     uint64 // calls of Update that needed an exclusive hold
	Pins                uint64 // shared intents on ancestors that were acquired
	PinJoins            uint64 // how often a path used an existing shared intent, without a write
	PinRevocations      uint64 // how often a shared intent ended because somebody waited for the ancestor
	KeptJoins           uint64 // acquires that took over a kept lock, without a write

	HoldTime     time.Duration // how long this manager's holds last, smoothed; 0 = none was released yet
	Waiting      int           // acquires and conversions that wait in a queue now
	ExpectedWait time.Duration // the longest expected remaining wait of these; 0 = unknown

	// The round trips of the connection since the manager was created, and the timing that follows from them.

	RTT            time.Duration // smoothed time from a request to its answer; 0 before the first
	RTTDeviation   time.Duration // its smoothed mean deviation
	RequestTimeout time.Duration // time after which a request is treated as lost and repeated
	RenewEarly     time.Duration // how much earlier than configured the manager's own lease is renewed
	Timeouts       uint64        // requests without an answer in time

	DeadlockProbes uint64 // searches for deadlocks, by units of work that have waited for a long time
	DeadlockReads  uint64 // reads of these searches
	DeadlockCuts   uint64 // of these searches, those that ended at the limit of reads
	Deadlocks      uint64 // waits of this manager that were ended because of a deadlock
}

// Stats returns the manager's counters.
func (m *Manager) Stats() Stats {
	m.mu.Lock()
	st, s, sessions := m.past, m.current, slices.Clone(m.leaving)
	if s != nil {
		sessions = append(sessions, s)
	}
	m.mu.Unlock()
	for _, s := range sessions {
		st.add(s)
	}
	if s != nil {
		s.mu.Lock()
		sl := s.shares[m.cfg.timing]
		s.mu.Unlock()
		if sl != nil {
			st.RenewEarly = sl.lease.RenewEarly()
		}
	}
	st.RTT, st.RTTDeviation = m.rtt.RTT()
	st.RequestTimeout, st.Timeouts = m.rtt.Timeout(), m.rtt.Timeouts()
	st.Pins, st.PinJoins, st.PinRevocations = m.pins.Load(), m.pinJoins.Load(), m.pinRevocations.Load()
	st.KeptJoins = m.keptJoins.Load()
	st.OptimisticReads, st.OptimisticHits, st.OptimisticFallbacks = m.optimisticReads.Load(), m.optimisticHits.Load(), m.optimisticFallbacks.Load()
	st.UpdateTries, st.Updates, st.UpdateFallbacks = m.updateTries.Load(), m.updatesDone.Load(), m.updateFallbacks.Load()
	return st
}

// add adds the counters of a session that is newer than those before. Values of one session replace the older ones.
func (st *Stats) add(s *session) {
	st.CoalescerTerm, st.Held, st.Serving, st.CoalescedRTT = 0, 0, 0, 0
	for _, sh := range s.shards {
		e := sh.engine.Stats()
		st.Operations += e.Operations
		st.Writes += e.Writes
		st.Batched += sh.bucket.Batched()
		st.Reads += e.Reads
		st.Conflicts += e.Conflicts
		st.Busy += e.Busy
		st.Unknown += e.Unknown
		st.HoldTime = cmp.Or(e.HoldTime, st.HoldTime)
		st.Waiting += e.Waiting
		st.ExpectedWait = max(st.ExpectedWait, e.ExpectedWait)
		st.Serving = max(st.Serving, sh.serving.Load())
		if sh.router == nil {
			continue
		}
		r := sh.router.Stats()
		st.Coalesced += r.Operations
		st.Frames += r.Frames
		st.Turns += r.Turns
		st.Fallbacks += r.Fallbacks
		st.CoalescerLost += r.Suspended
		st.CoalescerTerm = max(st.CoalescerTerm, r.Term)
		st.Held += r.Held
		st.CoalescedRTT = max(st.CoalescedRTT, r.RTT)
	}
	if s.detection != nil {
		d := s.detection.d.Stats()
		st.DeadlockProbes += d.Probes
		st.DeadlockReads += d.Reads
		st.DeadlockCuts += d.Cuts
		st.Deadlocks += d.Victims
	}
}
