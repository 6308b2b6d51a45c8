package kv

import (
	"errors"
	"fmt"
)

// Errors of writes and reads.
var (
	// ErrUnavailable is every temporary error of the buckets: no answer in time, an answer of a server that no longer leads
	// the bucket, or a conflict each time. The operation can be repeated.
	ErrUnavailable = errors.New("kv: unavailable")

	// ErrRejected is returned if the server refused the write and a retry does not help, for example because a value
	// exceeds the payload limit. Nothing was written.
	ErrRejected = errors.New("kv: write rejected")

	// ErrFull is returned if the storage of the stream, the account or the server is full. It is unknown whether the
	// write was stored: on a replicated stream, one replica can fail to store what the others store. Free storage or
	// raise the limit.
	ErrFull = errors.New("kv: storage is full")
)

// Errors of opening.
var (
	// ErrNoJetStream is returned if the server (nats-server -js) or the account has no JetStream. Enable it.
	ErrNoJetStream = errors.New("kv: JetStream is not enabled")

	// ErrServerTooOld is returned if the server lacks per-message TTL and atomic batches, which it has since 2.12.
	ErrServerTooOld = errors.New("kv: nats-server is too old")

	// ErrLimit is returned if a limit of the server or the account, which the message names, is too small. Raise it.
	ErrLimit = errors.New("kv: a limit of the server is too small")

	// ErrUnsafeConfig is returned if locks would not be safe in an existing bucket. It comes as a *ConfigError.
	ErrUnsafeConfig = errors.New("kv: unsafe bucket configuration")

	// ErrNoBucket is returned if a bucket does not exist and cannot be created with these credentials. Create the buckets
	// once with credentials that may create streams.
	ErrNoBucket = errors.New("kv: bucket does not exist and cannot be created with these credentials")

	// ErrShards is returned if the fabric has another number of shards than requested, or if its buckets disagree on
	// it. Request the number in the message, or none. The number is fixed when the buckets are created. To change it,
	// end all programs that use the fabric, delete its buckets, and start the programs with the new number.
	ErrShards = errors.New("kv: another number of shards")

	// ErrNewerSchema is returned if a newer version of this library wrote the buckets. Upgrade this program.
	ErrNewerSchema = errors.New("kv: buckets have a newer schema")

	// ErrInvalidOption is returned if an option has an invalid value. The message names it.
	ErrInvalidOption = errors.New("kv: invalid option")
)

// ConfigError names the setting of an existing bucket that makes it unsafe.
type ConfigError struct {
	Bucket string
	Field  string // JSON name of the stream setting
	Value  string // the present value
	Want   string // the required value
	Remedy string // what to do
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("kv: bucket %s has an unsafe configuration: %s is %s, must be %s; %s",
		e.Bucket, e.Field, e.Value, e.Want, e.Remedy)
}

func (e *ConfigError) Unwrap() error { return ErrUnsafeConfig }
