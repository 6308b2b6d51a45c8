// Package deadlock finds units of work that wait for each other in a circle, over any number of locks and
// processes, and picks the victim, whose wait is ended. It does no I/O of its own: a [Place] reads and writes.
//
// A unit of work keeps its holds while it waits. If it holds something and has waited for
// longer than a delay, its process publishes a document ([Doc]) for each lease under which it holds or waits. From an entry
// in a lock's record, the documents lead to the units that own the entry, and so to the waits of these units.
//
//	waits, holds something -- delay --> document written -> look -> (0.5, 1, 2, 4, 5, 5 … s) -> look
//	                                                         |
//	                     a circle; this unit is the victim   v
//	                  look again by fresh reads -> proof by conditional writes -> stop waiting
//
// # Guarantees
//
// A unit becomes a victim only if its circle existed at one instant: a second look has found the same entries, and
// conditional writes have proved that no record changed between that look and the writes. If the records change all the time,
// three probes whose looks agree are enough. If circles overlap, the victim of another one may have ended this one since.
// Only a waiting unit can be a victim, and only its own process aborts its wait: a grant that comes first stays.
//
// All processes that see a circle pick the same victim, since they order by committed data: the fewest deaths, then the
// youngest wait.
//
// # Limits
//
// A holder without a document counts as working, not as waiting. A wait that any of several entries can end is
// no edge: for a permit, for a place among the holders, or for a signal. So a circle over it is not found. A look
// costs a bounded number of reads ([MaxReads]). If it is cut short, the next look reads others.
package deadlock
