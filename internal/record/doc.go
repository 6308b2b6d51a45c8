// Package record is the lock record and its state machine: pure functions from a record and
// some operations to the next record. It reads no clock, does no I/O and starts no goroutine.
// Its caller (package internal/engine) reads the records from a bucket and writes them by CAS.
//
// A record lists who holds a resource and who waits for it, in order:
//
//	          acquire, not grantable                release, evict, remove
//	absent ------------------------> waiting ---+     (and promotion of
//	  |  ^                             |        |      those behind)
//	  |  |  release (cancel), evict    |        |
//	  |  +-----------------------------+        | promotion: head of the queue,
//	  |                                         | compatible with every holder
//	  |     acquire or try, grantable           v
//	  +-----------------------------------> holding ----> holding, revoked
//	     ^                                      |    revoke     |
//	     |    release, evict, remove            |               |
//	     +--------------------------------------+---------------+
//
// A holder can change its mode (OpConvert): at once if no other holder excludes the new mode, else it waits and
// keeps its old mode meanwhile. Waiting conversions come before the queue, and while one waits no request
// is granted. A conversion that would wait for a holder that waits for it is refused.
//
// A holder in mode X can wait for a condition (OpWait): it moves to that condition's queue. A signal of
// another holder moves it to the tail of the lock's queue. If a signalled waiter dies before it
// has used the signal, the signal passes to another waiter.
//
// A lock in mode X can pass to the next waiter before a write. That waiter then holds by a turn: in the record it still
// waits behind entries that have ended. See turn.go.
//
// What it guarantees, for every record that was made by [Apply]:
//
//   - Any two holders' modes are compatible ([Compatible]).
//   - No two conversions wait for each other, directly or over others.
//   - Waiters are granted strictly in queue order: promotion starts at the head and stops at the
//     first waiter that does not fit, so a reader behind a queued writer waits. An entry is
//     granted on arrival only if the queue is empty.
//   - No id is in a record twice, and every operation is idempotent by its id: after an
//     unknown outcome the caller reads the record and applies the same operation again. The one
//     exception is revoking or removing "whoever holds", without Op.UpTo.
//   - An entry belongs to the lease its id names, "<lease>.<sequence>", and to no other.
//   - The fencing token of a grant is its ticket: the revision of the write that queued it, or granted it
//     at once, and its place among the entries that this write queued. It is larger than every token granted
//     before. A write that would break this for a waiter gives all waiters new tickets. A conversion to a mode
//     that excludes more is a new grant; a conversion to a weaker mode keeps the token. The revision isn't known while
//     the write is composed, so it is stored as 0, "the revision this record is stored at", and
//     the next write fills it in. Token fields have a fixed width, so filling one in never makes a
//     record larger.
//   - A record is bounded ([Limits]), and the bound reserves room for later changes of the
//     entries in it: release, evict, revoke, remove, conversion and promotion always fit.
//
// A record is stored as JSON, one object for each entry; in long lists a short text for most, see compact.go.
//
// A record has a [Kind]. The common verbs are release, evict, revoke and remove; each kind adds
// its own in its rules, one value for each kind in a file of its own. A caller applies
// operations and reads outcomes by methods of [Record] and [Op], and needs to know no kind.
//
// The package doesn't know whether a lease is alive, whether a write was committed, or what time it is.
// Entry.Since is for people and decides nothing.
//
// It never panics: [Decode] returns [ErrMalformed] or [ErrNewerSchema] and never guesses,
// and [Apply] answers each operation with a [Verdict].
package record
