// Package fabric acquires and holds distributed locks that are stored in NATS JetStream KV.
//
//	m, err := fabric.Connect(ctx, url)
//	lock, err := m.Acquire(ctx, "orders/42", fabric.WithTTL(30*time.Second))
//	lock.Token()     // the fencing token: pass it to the resource that the lock protects
//	lock.Lost()      // closed when the hold is lost
//	lock.Release(ctx)
//
// # Holds
//
// A granted lock is an entry in the lock's record. The entry belongs to a lease, which the manager renews. The handle
// is valid until the time at which the last successful renewal was sent, plus the TTL, minus a margin, by this
// process's own clock:
//
//	           granted            lease ended, revoked, removed
//	waiting -------------> valid ---------------------------------> lost
//	                         |
//	                         +-- Release --> released
//
// Other processes may take the lock over only after they have seen no renewal for the TTL plus the margin, by their own
// clocks. So the holder knows of the loss first. The only assumption is that the clock rates of two hosts differ by
// less than the margin, which is 5 % of the TTL. The times of two hosts are never compared.
//
// # What is not guaranteed
//
// Locks are advisory. A process that is paused between the check of its lock and its write can write late, with every
// lock service. Only the receiver of the write can refuse it, by its token: see [Guard] and [Register]. If a server
// does not sync every write, a power failure can lose acknowledged writes.
//
// # Failures
//
// In a partition the minority grants nothing, and its holders lose their locks at their deadlines. Calls retry until
// their context ends. With [WithFailFast] they end at once. When a call gives up, its request may still be written
// later; the manager then undoes it in the background. If this does not succeed, the manager ends the lease of the
// request, so no unknown hold remains.
//
// A context must not be nil. As in the standard library, the call then panics; nothing was sent.
// A nil function to call is ErrInvalidOption; nothing was sent.
package fabric
