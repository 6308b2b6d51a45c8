// Package engine is the one implementation of locking, which turns operations on
// a key into compare-and-set writes of its record.
//
// What a process wants of one key at the same moment is combined: one round takes
// every pending request, applies the pure state machine of internal/record to the
// newest committed record it knows, and writes the result with one
// compare-and-set. A free key costs one write and no read.
//
//	Submit -> pending -> [ plan -> write -> conclude ] -> granted | refused
//	             ^                   |
//	             |  conflict, busy,  +-> waits in the record -- wakeup --> granted
//	             +-- unknown: read, plan again
//
// # Parts
//
// From the top, each using only those below it (of two files at most one uses the other, see internal/archtest):
//
//	do        a context and a caller that blocks: Submit, select, Withdraw
//	engine    the Doer: a writer for each key, made on first use, forgotten when idle
//	round     what becomes of a key's requests: plan, write, conclude
//	kept      entries that stay when their hold is released; window: who waits in the record, who in the process
//	watch     how a view learns of changes: watches, hints, looks; stamp: proofs that nothing has changed
//	writer    the state of a key: what is pending, uncertain, held back, kept
//	view      the newest committed state known of a key, who waits in it, watched holds
//	observe   leases ahead of those who wait
//	ledger    what must still happen though nobody waits for it, by lease
//
// Nothing below do knows a caller's goroutine, channel or context. A request is a
// value with two callbacks, so a request may come from another process as well. Every
// key has one mutex. A round is planned and concluded under it, and sent without it,
// by a runner: a goroutine of the engine that works on the key until nothing is
// pending there. On a fast link the first request for a key at rest is sent by the caller that waits
// for it, since a hand-over between goroutines costs as much as all the rest. Every write runs under the engine's context and its own time-out;
// whoever submitted it bounds only their own waiting. Callbacks are called when the
// mutex is let go.
//
// # Guarantees
//
// An operation's result is read off a committed record, by the operation's id,
// and never off an intermediate state of a round. A refusal is read off a state that was
// read or committed after its request came. Operations are idempotent by
// id, so an unknown outcome needs no handling of its own: the operation is
// applied again to what is committed.
//
// An acquire that nobody waits for any more is not forgotten. Its id stays in the ledger,
// and the engine goes on until a committed write proves that the id holds and
// waits nowhere, however late the original request arrives.
//
// Of the acquires of one process for one key at most 16 wait in the record. The others
// wait in the process, in their order: see window.go.
//
// # Failure
//
// While no leader answers, operations are repeated with growing, jittered
// pauses until they are withdrawn; with the fail-fast option they end at the
// first failure. A record that cannot be decoded is never written over.
package engine
