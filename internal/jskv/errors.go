package jskv

import (
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/kv"
)

// passing is an error of the buckets that passes: it is a kv.ErrUnavailable.
type passing string

func (e passing) Error() string        { return string(e) }
func (e passing) Is(target error) bool { return target == kv.ErrUnavailable }

// Outcomes of a write that did not commit, or is not known to have, and of reads. A read
// that no leader answered in time is kv.ErrUnavailable, as all of these are.
var (
	// ErrConnectionClosed, together with ErrNotSent, says that the connection was
	// closed for good. Make a new one: trying again is of no use.
	ErrConnectionClosed = nats.ErrConnectionClosed

	// ErrConflict says that the key's revision was not the expected one; the leader that answered wrote nothing. It
	// always comes as a *ConflictError. Read and decide again. While leaders change two can take the same request,
	// and the deposed one may answer first: an Actual below Expected comes from a leader that is behind, and the
	// other one may have written, or may yet.
	ErrConflict error = passing("kv: revision conflict")

	// ErrBusy is the server's code 10164: another write of the same key was in flight, or one had been acknowledged a
	// moment ago and its mark was not cleared yet. The leader that answered wrote nothing, and the expected revision
	// may still be right: retry it after a short, jittered pause. As with ErrConflict it may have been a deposed
	// leader, so nothing is proved.
	ErrBusy error = passing("kv: key busy")

	// ErrNotSent says that the request reached no stream: the connection is
	// down, or nobody answers for the stream right now. Nothing was written.
	ErrNotSent error = passing("kv: request not sent")

	// ErrUnknown says that it is not known whether the write was committed, and that it may still be committed later.
	// Only a committed write of the same key at or above the expected revision settles it.
	ErrUnknown error = passing("kv: outcome unknown")

	// ErrBucketGone says that the bucket's stream does not exist any more.
	ErrBucketGone error = passing("kv: bucket is gone")
)

// ConflictError is the ErrConflict of a compare-and-set.
type ConflictError struct {
	Key      string // encoded key
	Expected uint64 // revision that the caller expected
	Actual   uint64 // revision that the key really has; 0 = the key does not exist
	Again    bool   // the write was sent before, in a batch, and that may have been committed
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("kv: revision conflict on %q: expected %d, is %d", e.Key, e.Expected, e.Actual)
}

func (e *ConflictError) Unwrap() error { return ErrConflict }
