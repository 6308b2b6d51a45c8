// Package jskv is the only place that speaks to JetStream: it opens the fabric's
// buckets, writes by compare-and-set, reads from the stream leader, and turns
// watchers into wakeups. What users of the module need of it is in package kv.
//
// The buckets are ordinary NATS KV buckets that any KV client and the stock nats command can read. They are created
// by this package all the same, because a lock needs settings that the KV API does not offer; see [Open].
//
// # Outcomes of a write
//
// A compare-and-set has four outcomes, kept apart by error class, because a
// lock service that confuses two of them grants a lock twice:
//
//   - committed: nil, and the revision at which the value stands;
//   - not written: [ErrConflict] (with the key's real revision), [ErrNotSent],
//     [kv.ErrRejected];
//   - not written by the leader that answered: [ErrBusy], and an [ErrConflict]
//     with a revision below the expected one. While leaders change a deposed one
//     can be the first to answer a request that the new one has taken, too;
//   - unknown: [ErrUnknown]. The write may have been committed, may be lost, or
//     may be committed later, after this call has returned.
//
// Nothing in this package retries a write, but for the members of a batch that was refused as a whole, see
// [Bucket.CommitInGroups]. The engine above knows whether a retry is safe; this package only says what is known.
//
// # Reads
//
// [Bucket.Get] asks the stream's leader. A deposed leader that has not noticed yet can answer with an old value, so a
// read is a hint and only a compare-and-set decides. What a read does show was committed.
package jskv
