package lease

import "errors"

// Why a lease is not valid any more: the values of [Lease.Err], wrapped with details. A lost lease never becomes
// valid again; make a new lease for new acquires.
var (
	// ErrExpired says that no renewal succeeded in time, by the holder's own clock: the server was out of reach, the
	// process was stopped or had no CPU time, or renewal was off. If it happens without an outage, the TTL is
	// too short for the link.
	ErrExpired = errors.New("lease: expired")

	// ErrDead says that the lease's entry is not its own any more: another process has written
	// a tombstone for it, deleted it or overwritten it.
	ErrDead = errors.New("lease: declared dead by another")

	// ErrRenewalsUsedUp says that the lease was renewed as often as its configuration allows and then expired.
	// [Lease.Renew] returns it while such a lease is still valid.
	ErrRenewalsUsedUp = errors.New("lease: renewals used up")

	// ErrClosed says that Close was called on the lease, or on the observer.
	ErrClosed = errors.New("lease: closed")
)

// Errors of calls.
var (
	// ErrInvalidConfig says that a Config has an invalid value. The message names the field.
	ErrInvalidConfig = errors.New("lease: invalid configuration")

	// ErrMalformed says that the value of a lease's key is not a lease. An observer treats it as a live lease that
	// it cannot read, which ends as any other: when its revision stays the same for too long.
	ErrMalformed = errors.New("lease: malformed value")

	// ErrNewerSchema says that the value of a lease's key was written by a newer
	// version of this library. Upgrade this program.
	ErrNewerSchema = errors.New("lease: value has a newer schema")
)
