// Package engine is the one implementation of locking, which turns operations on
// a resource into compare-and-set writes of its record.
//
// What the goroutines of a process want of one resource at the same moment is
// combined: one round takes every pending operation, applies the pure state
// machine of internal/record to the newest committed record it knows, and
// writes the result with one compare-and-set. A lone operation runs in its
// caller's goroutine, with one write and no read when the cached record is
// current.
//
//	submit -> pending -> [ apply -> CAS ] -> committed -> granted | refused
//	             ^            |                  |
//	             |  conflict, busy, unknown      +-> queued -- wakeup --> granted
//	             +--- read, apply again ---------+
//
// # Guarantees
//
// An operation's result is read off a committed record, by the operation's id,
// and never off an intermediate state of a round. Operations are idempotent by
// id, so an unknown outcome needs no handling of its own: the operation is
// applied again to what is committed.
//
// An acquire whose caller gives up is not forgotten. Its id stays in the ledger,
// and the engine goes on until a committed write proves that the id holds and
// waits nowhere, however late the original request arrives.
//
// # Failure
//
// While no leader answers, operations are repeated with growing, jittered
// pauses until their context ends; with the fail-fast option they end at the
// first failure. A record that cannot be decoded is never written over.
package engine
