package main

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// Exit codes. They follow sysexits.h and the shells; the package comment lists
// them for users.
const (
	exitUsage       = 64
	exitData        = 65
	exitUnavailable = 69
	exitInternal    = 70
	exitNotAcquired = 75
	exitLost        = 76
	exitRefused     = 77
	exitDoctor      = 78
	exitBroken      = 79
	exitCannotRun   = 126
	exitNotFound    = 127
	exitSignal      = 128 // plus the signal's number
	maxExit         = 255
)

// exitError is an error with an exit code. Without a cause nothing is printed.
type exitError struct {
	code  int
	cause error
}

func (e *exitError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

func (e *exitError) Unwrap() error { return e.cause }

// reworded is an error with a better text.
type reworded struct {
	error
	text string
}

func (e *reworded) Error() string { return e.text }

func (e *reworded) Unwrap() error { return e.error }

func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, cause: fmt.Errorf(format, args...)}
}

// exitCode maps an error to the exit code: the one it carries, or that of its
// kind. The order matters where an error is of two kinds: a lock that was not
// acquired because no server answered is the server's trouble, so that a job
// which takes 75 for "somebody else is at it" doesn't hide an outage.
func exitCode(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	for _, k := range []struct {
		code int
		is   []error
	}{
		{exitUsage, []error{fabric.ErrInvalidOption, fabric.ErrInvalidName, kv.ErrInvalidOption, embedded.ErrInvalidOption}},
		{exitData, []error{fabric.ErrKindMismatch, fabric.ErrSizeMismatch, fabric.ErrTooLarge, fabric.ErrMalformedRecord, fabric.ErrNewerSchema}},
		{exitBroken, []error{fabric.ErrBroken, fabric.ErrDeleted}},
		// Before 69, which they are as well: nothing but other credentials helps.
		{exitRefused, []error{errRefused, nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrPermissionViolation}},
		{exitUnavailable, []error{fabric.ErrUnavailable, fabric.ErrUncertain, fabric.ErrConnectionClosed, kv.ErrNoJetStream, kv.ErrServerTooOld, kv.ErrUnsafeConfig, kv.ErrLimit, kv.ErrNoBucket,
			embedded.ErrStartFailed, embedded.ErrStoreInUse, embedded.ErrStoreFailed}},
		{exitNotAcquired, []error{fabric.ErrNotAcquired, fabric.ErrHeld, errNotPassed}},
		{exitLost, []error{fabric.ErrLost}},
	} {
		for _, target := range k.is {
			if errors.Is(err, target) {
				return k.code
			}
		}
	}
	return exitInternal
}
