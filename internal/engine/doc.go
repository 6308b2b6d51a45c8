// Package engine turns operations on the record of a key into compare-and-set writes. All locking goes through it.
//
// The engine combines the requests that one process has for one key at the same moment. One round takes every pending
// request, applies the pure state machine of internal/record to the newest committed record it knows, and writes the
// result with one compare-and-set. A free key costs one write and no read.
//
//	Submit -> pending -> [ plan -> write -> conclude ] -> granted | refused
//	             ^                   |
//	             |  conflict, busy,  +-> waits in the record -- wakeup --> granted
//	             +-- unknown: read, plan again
//
// # Parts
//
// From the top. Each part uses only parts below it (of two files at most one uses the other, see internal/archtest):
//
//	do        a context and a caller that blocks: Submit, select, Withdraw
//	engine    the Doer: makes a writer for each key on first use, forgets it when idle
//	round     the requests of a key: plan, write, conclude
//	kept      entries that stay after a release; window: which requests wait in the record, which in the process
//	watch     how a view learns of changes: watches, hints, looks; stamp: proofs that nothing has changed
//	writer    the state of a key: requests that are pending or held back, uncertain writes, the kept entry
//	view      the newest committed state known of a key, its waiting operations, watched holds
//	observe   the leases ahead of the waiting operations
//	ledger    operations that must still happen though no caller waits for them, by lease
//
// The parts below do know no caller's goroutine, channel or context. A request is a value with two callbacks, so it may
// come from another process as well. Every key has one mutex: methods of the writer and the view that do not lock it are called with it held. The engine plans and concludes a round under it, and
// sends the request to the server without it. A runner does that: a goroutine of the engine that works on the key until
// nothing is pending there. On a fast link the waiting caller itself sends the first request for an idle key, because a
// hand-over between goroutines costs as much as everything else. Every write runs under the engine's context and its
// own time-out; a caller's context bounds only that caller's wait. Callbacks are called after the mutex is unlocked.
//
// # Guarantees
//
// An operation's result is read off a committed record, by the operation's id, and never off an intermediate state of a
// round. A refusal is read off a state that was read or committed after its request came. Operations are idempotent by
// id, so an unknown outcome needs no special handling: the engine applies the operation again to the committed record.
//
// The engine does not forget an acquire that was given up. Its id stays in the ledger, and the engine goes on until a
// committed write proves that the id neither holds nor waits, however late the original request arrives.
//
// Of one process's acquires of one key at most 16 wait in the record. The others
// wait in the process, in their order: see window.go.
//
// # Failure
//
// While no leader answers, the engine repeats operations with growing, jittered pauses until they are withdrawn; with
// the fail-fast option they end at the first failure. The engine never overwrites a record that it cannot decode.
package engine
