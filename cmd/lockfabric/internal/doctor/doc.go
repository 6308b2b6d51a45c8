// Package doctor examines a server, its cluster and a fabric's buckets, and reports problems with remedies.
//
// It repairs nothing. It creates no bucket, and writes only its probe: a lock with an unpredictable name, which it
// acquires and releases several times. This leaves a delete marker and the tombstone of one lease; the server removes
// both. With Options.NoProbe it writes nothing.
//
// A finding is a problem if locks are unsafe or do not work. It is a warning if they work now, but something may change
// this. It is unknown if it could not be checked: a check that did not run never counts as passed. One case can't be
// detected: a restore of both buckets from one backup leaves no trace in them.
package doctor
