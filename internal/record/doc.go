// Package record is the lock record and its state machine: pure functions from a record and
// some operations to the next record. It reads no clock, does no I/O and starts no goroutine;
// whoever calls it (package internal/engine) reads records from and writes them to a bucket by CAS.
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
// A holder can change its mode (OpConvert): at once where nobody is in the way, else it waits, still
// holding what it has. Conversions that wait stand before the queue, and while one does nobody new
// is granted. One that would wait for a holder which waits for it is refused.
//
// A holder in mode X can wait for a condition (OpWait): it goes to that condition's queue, and a signal of
// another holder brings it to the tail of the queue above. A signal is not lost with a waiter that dies
// before it has used it.
//
// A lock in mode X can pass on before that is written: who holds by such a turn still waits here, behind
// entries that have ended. See turn.go. Nothing sends turns yet.
//
// What it guarantees, for every record that was made by [Apply]:
//
//   - Any two holders' modes are compatible ([Compatible]).
//   - No two conversions wait for each other, directly or over others.
//   - Waiters are granted strictly in queue order: promotion starts at the head and stops at the
//     first waiter that does not fit, so a reader behind a queued writer waits. An entry that is
//     granted on arrival found nobody waiting.
//   - No id stands in a record twice, and every operation is idempotent by its id: after an
//     unknown outcome the caller reads the record and applies the same operation again. The one
//     exception is revoking or removing "whoever holds", without Op.UpTo.
//   - An entry belongs to the lease its id names, "<lease>.<sequence>", and to no other.
//   - The fencing token of a grant is its ticket: the revision of the write that queued it, or granted it
//     at once, and its place among those that this write queued. It is larger than every token granted
//     before, and a write after which this would not hold for a waiter gives all of them new tickets. A conversion to a mode
//     that excludes more is a new grant; one to a weaker mode keeps its token. The revision isn't known while
//     that write is composed, so it is stored as 0, "the revision this record is stored at", and
//     the next write fills it in. Token fields have a fixed width: filling one in never makes a
//     record larger.
//   - A record is bounded ([Limits]), and the bound keeps room for everything that may still
//     happen to the entries in it: release, evict, revoke, remove, conversion and promotion always fit.
//
// A record is stored as JSON, one object for each entry; in long lists a short text for most, see compact.go.
//
// A record has a [Kind], and what kinds add to the common verbs (release, evict, revoke, remove) are
// their rules, one value for each in a file of its own. Whoever applies
// operations and reads outcomes asks methods of [Record] and [Op], and needs to know no kind.
//
// What it doesn't know: whether a lease is alive, whether a write was committed, what time it is.
// Entry.Since is for people and decides nothing.
//
// It fails without panics: [Decode] returns [ErrMalformed] or [ErrNewerSchema] and never guesses,
// and [Apply] answers each operation with a [Verdict].
package record
