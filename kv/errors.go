package kv

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
)

// Outcomes of a write that did not commit, or is not known to have.
var (
	// ErrConflict says that the key's revision was not the expected one; the
	// leader that answered wrote nothing. It always comes as a *ConflictError. Read
	// and decide again. While leaders change two can take the same request, and the
	// deposed one may answer first: an Actual below Expected comes from a leader that
	// is behind, and the other one may have written, or may yet.
	ErrConflict = errors.New("kv: revision conflict")

	// ErrBusy is the server's code 10164: another write of the same key was in
	// flight, or one had been acknowledged a moment ago and its mark was not
	// cleared yet. The leader that answered wrote nothing, and the expected
	// revision may still be right: retry it after a short, jittered pause. As with
	// ErrConflict it may have been a deposed leader, so nothing is proved.
	ErrBusy = errors.New("kv: key busy")

	// ErrNotSent says that the request reached no stream: the connection is
	// down, or nobody answers for the stream right now. Nothing was written.
	ErrNotSent = errors.New("kv: request not sent")

	// ErrConnectionClosed, together with ErrNotSent, says that the connection was
	// closed for good. Make a new one: trying again is of no use.
	ErrConnectionClosed = nats.ErrConnectionClosed

	// ErrRejected says that the server refused the write for a reason that a
	// retry does not cure, such as a value over the payload limit. Nothing was
	// written.
	ErrRejected = errors.New("kv: write rejected")

	// ErrFull says that the storage of the stream, the account or the server is
	// used up. It comes together with ErrUnknown: on a replicated stream one
	// replica can fail to store what the others keep. Free storage or raise the
	// limit.
	ErrFull = errors.New("kv: storage is full")

	// ErrUnknown says that it is not known whether the write was committed, and
	// that it may still be committed later. Only a committed write of the same
	// key at or above the expected revision settles it.
	ErrUnknown = errors.New("kv: outcome unknown")
)

// Errors of reads and of opening.
var (
	// ErrUnavailable says that no leader answered a read in time. The operation
	// can be repeated.
	ErrUnavailable = errors.New("kv: unavailable")

	// ErrBucketGone says that the bucket's stream does not exist any more.
	ErrBucketGone = errors.New("kv: bucket is gone")

	// ErrNoJetStream says that the server or the account has no JetStream.
	// Enable it on the server (nats-server -js) and for the account.
	ErrNoJetStream = errors.New("kv: JetStream is not enabled")

	// ErrServerTooOld says that the server lacks what safe locking needs:
	// per-message TTL and atomic batches, which nats-server has since 2.12.
	ErrServerTooOld = errors.New("kv: nats-server is too old")

	// ErrLimit says that a limit of the server or of the account leaves no room for
	// what locking needs. The message names the limit and its figure: raise it.
	ErrLimit = errors.New("kv: a limit of the server is too small")

	// ErrUnsafeConfig says that a bucket exists with a configuration under
	// which a lock would not be safe. It always comes as a *ConfigError.
	ErrUnsafeConfig = errors.New("kv: unsafe bucket configuration")

	// ErrNoBucket says that a bucket does not exist and could not be created
	// with these credentials. Create the buckets once with credentials that may
	// create streams; afterwards the present ones are enough.
	ErrNoBucket = errors.New("kv: bucket does not exist and cannot be created with these credentials")

	// ErrNewerSchema says that the buckets were written by a newer version of
	// this library. Nothing was changed; upgrade this program.
	ErrNewerSchema = errors.New("kv: buckets have a newer schema")

	// ErrInvalidOption says that an option has a value that makes no sense. The
	// message names it.
	ErrInvalidOption = errors.New("kv: invalid option")
)

// ConflictError is the ErrConflict of a compare-and-set.
type ConflictError struct {
	Key      string // encoded key
	Expected uint64 // revision that the caller expected
	Actual   uint64 // revision that the key really has; 0 = the key does not exist
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("kv: revision conflict on %q: expected %d, is %d", e.Key, e.Expected, e.Actual)
}

// Is makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// ConfigError names the one setting of an existing bucket that makes it unsafe.
type ConfigError struct {
	Bucket string
	Field  string // JSON name of the stream setting
	Value  string // what it is
	Want   string // what it has to be
	Remedy string // what to do
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("kv: bucket %s has an unsafe configuration: %s is %s, must be %s; %s",
		e.Bucket, e.Field, e.Value, e.Want, e.Remedy)
}

// Is makes errors.Is(err, ErrUnsafeConfig) true.
func (e *ConfigError) Is(target error) bool { return target == ErrUnsafeConfig }
