// Package fabric acquires and holds distributed locks that live in NATS JetStream KV.
//
//	m, err := fabric.Connect(ctx, url)
//	lock, err := m.Acquire(ctx, "orders/42", fabric.WithTTL(30*time.Second))
//	lock.Token()     // the fencing token: give it to what the lock protects
//	lock.Lost()      // closed when the hold is lost
//	lock.Release(ctx)
//
// # What a hold is
//
// A granted lock stands as an entry in a record, under a lease that the manager renews. The handle is valid until the
// moment at which the last successful renewal was sent, plus the TTL, less a margin, by this process's own clock:
//
//	           granted            lease runs out, revoked, removed
//	waiting -------------> valid ---------------------------------> lost
//	                         |
//	                         +-- Release --> released
//
// Others may take the lock over only when they have seen, by their own clocks, no renewal for the TTL plus the
// margin, so a holder knows of its loss first. The one assumption is that the rates of two hosts' clocks differ by
// less than the margin, 5 % of the TTL; nothing compares their times.
//
// # What it does not guarantee
//
// Locks are advisory. A process that is stopped between checking its lock and writing can write late, whatever lock
// service it uses; only the receiver of the write can refuse it, by its token: see [Guard] and [Register]. What a
// server acknowledged can be lost in a power failure unless it syncs every write.
//
// # Failure
//
// In a partition the minority grants nothing and its holders lose their locks at their deadlines. Calls go on trying
// until their context ends, or end at once with [WithFailFast]. When a call gives up, whatever its request may still
// write is undone in the background; if that does not succeed the lease under which it was made is given up, so no
// forgotten hold survives.
//
// A context must not be nil: as in the standard library, the call panics, and nothing was sent.
package fabric
