package jskv

import (
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/kv"
)

// transient is an error of the buckets that ends by itself: it is a kv.ErrUnavailable.
type transient string

func (e transient) Error() string        { return string(e) }
func (e transient) Is(target error) bool { return target == kv.ErrUnavailable }

// Outcomes of a write that was not committed, or may not be, and of reads. All of them are
// kv.ErrUnavailable, and so is a read that no leader answered in time.
var (
	// ErrConnectionClosed, together with ErrNotSent, says that the connection was
	// closed for good. Make a new one: retries never succeed.
	ErrConnectionClosed = nats.ErrConnectionClosed

	// ErrConflict says that the key's revision was not the expected one. The leader that answered wrote nothing. It
	// always comes as a *ConflictError. Read and decide again. While leaders change, two can take the same request,
	// and the deposed one may answer first. An Actual below Expected comes from a leader that is behind; the
	// other leader may have written, or may still write.
	ErrConflict error = transient("kv: revision conflict")

	// ErrBusy is the server's code 10164: another write of the same key was in flight, or its mark was not cleared yet
	// after an acknowledgement. The leader that answered wrote nothing, and the expected revision
	// may still be right: retry after a short, jittered pause. As with ErrConflict the answer may come from a deposed
	// leader, so it proves nothing.
	ErrBusy error = transient("kv: key busy")

	// ErrNotSent says that the request reached no stream: the connection is
	// down, or no server answers for the stream at present. Nothing was written.
	ErrNotSent error = transient("kv: request not sent")

	// ErrUnknown says that it is not known whether the write was committed. It may still be committed later.
	// Only a committed write of the same key at or above the expected revision settles it.
	ErrUnknown error = transient("kv: outcome unknown")

	// ErrBucketGone says that the bucket's stream does not exist any more.
	ErrBucketGone error = transient("kv: bucket is gone")
)

// ConflictError is the ErrConflict of a compare-and-set.
type ConflictError struct {
	Key      string // encoded key
	Expected uint64 // revision that the caller expected
	Actual   uint64 // the key's real revision; 0 = the key does not exist
	Again    bool   // the write was sent before, in a batch, and that attempt may have been committed
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("kv: revision conflict on %q: expected %d, is %d", e.Key, e.Expected, e.Actual)
}

func (e *ConflictError) Unwrap() error { return ErrConflict }
