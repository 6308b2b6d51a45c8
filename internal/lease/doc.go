// Package lease keeps a process's claim to be alive, and finds out when another one's has ended.
//
// A lease is one key in a KV bucket, named by a fresh id, which its holder rewrites again and again. All locks of a
// process stand under one, so that one write keeps any number of them. The key's life has no way back:
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
// An id is never used again, neither after a creation of unknown outcome nor after the tombstone was collected.
//
// # The holder
//
// A [Lease] is valid until
//
//	the time its last successful renewal was sent + TTL - margin
//
// by the holder's clock, and not one moment longer, whatever the server would say. Every accessor asks that clock
// before it answers, so a process that was stopped knows on waking. A renewal is tried through any error until then.
// When its outcome is unknown the key is read, and what counts is the attempt whose nonce stands there, at the time
// that attempt was sent. Anything in the key that the holder did not write (a tombstone, another value, nothing) ends
// the lease at once. After the loss it writes the tombstone itself if it can, since others wait for it.
//
// # The observer
//
// Whoever is blocked by a lease has an [Observer] look at it. When its revision has stayed the same for TTL + margin,
// by the observer's clock and counted from when that revision was first received, the observer writes the tombstone
// at that revision. A missing key is treated alike. Only a committed tombstone means that a lease is dead; nothing
// else may be a reason to take locks away.
//
// # Why it is safe
//
// A tombstone at revision r shows that no renewal came after r. The holder's validity then counts from a moment
// before r was written, the observer's wait from a moment after; one lasts TTL - margin, the other TTL + margin. So
// the holder has given up first if the rates of the two clocks differ by less than the margin, which is the one
// assumption made. The wall clock and the server's TTL decide nothing: the latter collects garbage, many TTLs later.
//
// # Failure
//
// Without the server nothing can be created, closed or declared dead; leases run
// out by the holder's clock. Calls retry until their context ends.
package lease
