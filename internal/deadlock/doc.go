// Package deadlock finds units of work that wait for each other in a circle, over any number of locks and
// processes, and picks the one that gives up its wait. It does no I/O of its own: a [Place] reads and writes.
//
// A unit of work keeps what it holds until it has got what it waits for. While it holds something and has waited for
// longer than a delay, it says so in a document ([Doc]) for each lease that it holds or waits under. From an entry in
// a lock's record the documents lead to the units behind it, and so to what these wait for.
//
//	waits, holds something -- delay --> document written -> look -> (0.5, 1, 2, 4, 5, 5 … s) -> look
//	                                                         |
//	                     a circle; this unit is the victim   v
//	                  look again by fresh reads -> proof by conditional writes -> stop waiting
//
// # Guarantees
//
// A unit is a victim only of a circle that stood at one instant: a second look has found the same entries, and
// conditional writes have proved that no record changed between it and them. Where records never hold still,
// three probes whose looks agree are enough. If circles overlap, the victim of another one may have freed it since.
// Only a unit that waits is ever a victim, and only its own process aborts it: a grant that comes first stays.
//
// All who see a circle pick the same victim, since they order by what is committed: the fewest deaths, then the
// youngest wait.
//
// # Limits
//
// A record convicts nobody that doesn't wait in it: a holder without a document is at work. What can come from any of
// several, as a permit, a place among the holders or a signal, is no edge, so a circle over it is not seen. A look
// costs a bounded number of reads ([MaxReads]); one that is cut short goes elsewhere the next time.
package deadlock
