// Package jskv is the only package that uses JetStream: it opens the fabric's buckets, writes by compare-and-set, reads
// from the stream leader, and turns watchers into wakeups. The part for users of the module is in package kv.
//
// The buckets are ordinary NATS KV buckets: any KV client and the stock nats command can read them. This package
// creates them itself, because a lock needs settings that the KV API does not offer; see [Open].
//
// # Outcomes of a write
//
// A compare-and-set has four outcomes, each with its own errors. A
// lock service that confuses two of them grants a lock twice:
//
//   - committed: nil, and the revision of the value;
//   - not written: [ErrConflict] (with the key's real revision), [ErrNotSent],
//     [kv.ErrRejected];
//   - not written by the leader that answered: [ErrBusy], and an [ErrConflict]
//     with a revision below the expected one. While leaders change, a deposed leader
//     can answer first, and the new leader can still commit the same request;
//   - unknown: [ErrUnknown]. The write may have been committed, may be lost, or
//     may be committed later, after this call has returned.
//
// This package never retries a write, except the members of a batch that was refused as a whole, see
// [Bucket.CommitInGroups]. The engine above knows whether a retry is safe; this package only reports the outcome.
//
// # Reads
//
// [Bucket.Get] asks the stream's leader. A deposed leader that does not know it yet can answer with an old value. So a
// read is a hint, and only a compare-and-set decides. But every value that a read returns was committed.
package jskv
