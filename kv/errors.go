package kv

import (
	"errors"
	"fmt"
)

// Errors of writes and reads.
var (
	// ErrUnavailable says that a request was not answered, was answered by a server that
	// does not lead the bucket any more, or met another write each time. The operation
	// can be repeated. Every error of the buckets that passes is one.
	ErrUnavailable = errors.New("kv: unavailable")

	// ErrRejected says that the server refused the write for a reason that a retry does not cure, such as a value
	// over the payload limit. Nothing was written.
	ErrRejected = errors.New("kv: write rejected")

	// ErrFull says that the storage of the stream, the account or the server is used up. Whether the write was stored
	// is not known: on a replicated stream one replica can fail to store what the others keep. Free storage or raise
	// the limit.
	ErrFull = errors.New("kv: storage is full")
)

// Errors of opening.
var (
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

	// ErrNoBucket says that a bucket does not exist and could not be created with these credentials. Create the
	// buckets once with credentials that may create streams; afterwards the present ones are enough.
	ErrNoBucket = errors.New("kv: bucket does not exist and cannot be created with these credentials")

	// ErrShards says that the fabric has another number of shards than was asked for, or that its buckets differ in
	// it. Ask for the number that the message names, or for none. It is fixed when the buckets are made: to have
	// another one, end all programs that use the fabric, delete its buckets, and start them with the new number.
	ErrShards = errors.New("kv: another number of shards")

	// ErrNewerSchema says that the buckets were written by a newer version of
	// this library. Nothing was changed; upgrade this program.
	ErrNewerSchema = errors.New("kv: buckets have a newer schema")

	// ErrInvalidOption says that an option has a value that makes no sense. The message names it.
	ErrInvalidOption = errors.New("kv: invalid option")
)

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

func (e *ConfigError) Unwrap() error { return ErrUnsafeConfig }
