// Package lease keeps this process's leases alive, and finds out when the lease of another process has ended.
//
// A lease is one key in a KV bucket, named by a fresh id. Its holder rewrites it again and again. All locks of a
// process are under one lease, so one write renews any number of locks. The states of the key:
//
//	          Create                      Close, by its holder
//	absent ------------> live ------------------------------------> tombstone
//	   |                 |  ^                                           ^
//	   |                 +--+ renewal: compare-and-set on its           |
//	   |                      own revision, with a fresh nonce          |
//	   |                                                                |
//	   +---------- an observer, by compare-and-set at a revision -------+
//	               that it has seen unchanged for TTL + margin
//
// An id is never used again, even after a creation with an unknown outcome, or after the server has deleted the tombstone.
//
// # The holder
//
// A [Lease] is valid until
//
//	the time its last successful renewal was sent + TTL - margin
//
// by the holder's clock, and not one moment longer, whatever the server says. Every accessor asks that clock
// before it answers, so a process that was stopped knows of the loss when it wakes. Until then a renewal is tried
// again after any error. If its outcome is unknown, the lease reads the key: the attempt whose nonce is there has
// succeeded, and counts from the time when it was sent. Anything in the key that the holder did not write (a
// tombstone, another value, nothing) ends the lease at once. After the loss the holder writes the tombstone itself if
// it can, since other processes wait for it.
//
// # The observer
//
// A process that a lease blocks watches it with an [Observer]. When the lease's revision has stayed the same for
// TTL + margin, by the observer's clock and counted from when that revision was first received, the observer writes the
// tombstone at that revision. It treats a missing key in the same way. Only a committed tombstone means that a lease is
// dead; nothing else is a reason to evict its entries.
//
// # Why it is safe
//
// A tombstone at revision r proves that no renewal came after r. The holder's validity counts from a moment
// before r was written, the observer's wait from a moment after. One lasts TTL - margin, the other TTL + margin. So
// the holder gives up first if the rates of the two clocks differ by less than the margin. That is the only
// assumption. The wall clock and the server's TTL decide nothing: the server's TTL collects garbage, many TTLs later.
//
// # Failure
//
// Without the server no lease can be created, closed or declared dead. Leases then expire
// by the holder's clock. Calls retry until their context ends.
package lease
