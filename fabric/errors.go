package fabric

import (
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/kv"
)

// Errors of acquiring.
var (
	// ErrNotAcquired is true of every error of an acquire, a *NotAcquiredError with the key and the cause.
	ErrNotAcquired = errors.New("fabric: not acquired")

	// ErrHeld is returned by TryAcquire if a holder or a waiter is in the way. The error is a *HeldError that names it.
	// Try later, or use Acquire to queue.
	ErrHeld = errors.New("fabric: lock is held")

	// ErrAlreadyHeld is returned if the owner given with WithOwner already holds this lock or waits for it. The error
	// is a *HeldError. Use the existing handle of the owner, or another owner.
	ErrAlreadyHeld = errors.New("fabric: owner already holds or waits for this lock")

	// ErrQueueFull is returned if the lock's record has reached its limit of waiters or of bytes (512 KiB, or less if
	// max_payload requires it), which the message names. Only many processes can reach it, because at most 16 acquires of
	// one manager wait in the record. Try later.
	ErrQueueFull = errors.New("fabric: lock queue is full")

	// ErrWaitTooLong is returned with WithDeadlineCheck if the expected wait is longer than the time until the
	// deadline. The error is a *WaitTooLongError. Try later, or allow more time.
	ErrWaitTooLong = errors.New("fabric: expected wait exceeds the deadline")

	// ErrKindMismatch is returned if the name is in use as another kind, which the message names. Use another name, or
	// wait. Users that look dead stop counting after they were observed for their TTL and margin.
	ErrKindMismatch = errors.New("fabric: name is in use as another kind")
)

// Errors of records of other kinds than locks. Package primitives says where they occur.
var (
	// ErrTooLarge is returned for more permits than the semaphore has, more counts than a latch can take, or a value that
	// is too long. The message names the limit. Nothing waits, and nothing was changed. Ask for less, resize the
	// semaphore, or store a long value elsewhere.
	ErrTooLarge = errors.New("fabric: too large")

	// ErrSizeMismatch is returned if the name is in use with another size, see *SizeMismatchError.
	ErrSizeMismatch = errors.New("fabric: in use with another size")

	// ErrBroken is returned if a generation of a barrier was broken: a party gave up or died, the action failed, or
	// somebody reset the barrier. The error is a *BrokenError.
	ErrBroken = errors.New("fabric: barrier broken")

	// ErrStale is returned if the state on which a change is based has changed since. Nothing was done. Read again, and
	// decide again.
	ErrStale = errors.New("fabric: based on what has changed since")

	// ErrDeleted is returned if the record that was read was deleted since; it may exist again. Nothing was done.
	ErrDeleted = errors.New("fabric: deleted since it was read")

	// ErrFinished is returned if there is already a result, or a latch is already open, see *FinishedError.
	ErrFinished = errors.New("fabric: finished already")

	// ErrUncertain is returned if it is unknown whether the operation was done, and cannot be found out in time. Read the
	// state and decide.
	ErrUncertain = errors.New("fabric: not known whether it was done")
)

// Errors of holds.
var (
	// ErrLost is returned if the hold ended before it was released, see *LostError. Stop using the resource that the lock
	// protects. The fencing token stops writes that can't be stopped in time.
	ErrLost = errors.New("fabric: lock lost")

	// ErrMember is returned for a member of a [Set] that is to be released alone, or weakened below what the members
	// under it need. Release the set, or convert these first.
	ErrMember = errors.New("fabric: the hold is a member of a set")

	// ErrReleased is the error of a handle after Release.
	ErrReleased = errors.New("fabric: lock released")

	// ErrUnconfirmed is returned if a release, or a conversion to a weaker mode, was not confirmed in time. It
	// continues in the background. At the latest, the end of the lease frees the lock.
	ErrUnconfirmed = errors.New("fabric: not confirmed yet")
)

// Errors of conversions.
var (
	// ErrNotConverted is true of every error of Convert, a *ConvertError, which tells the mode that is held.
	ErrNotConverted = errors.New("fabric: hold not converted")

	// ErrConvertDeadlock is returned if this conversion would wait for a holder whose own conversion waits for this hold.
	// Release, or Convert to a weaker mode, and start again. Acquire Update instead of Shared if a conversion is likely.
	ErrConvertDeadlock = errors.New("fabric: conversion would deadlock")

	// ErrConverting is returned if another Convert of the same handle is running. Wait for it, or end its context.
	ErrConverting = errors.New("fabric: another conversion of this hold is under way")
)

// Reasons of a loss, in a LostError.
var (
	ErrExpired        = errors.New("fabric: the lease ran out before it could be renewed")
	ErrRenewalsUsedUp = errors.New("fabric: the renewals allowed by WithMaxRenewals are used up")
	ErrTakenOver      = errors.New("fabric: the lease was found dead or deleted by somebody else")
	ErrRevoked        = errors.New("fabric: revoked by an operator")
	ErrRemoved        = errors.New("fabric: the entry was removed from the record by an operator")
	ErrBucketGone     = errors.New("fabric: the bucket was deleted, created again or set back")
)

// Errors of a manager.
var (
	// ErrUnavailable is returned with WithFailFast if no leader answers. Otherwise calls retry until their context ends.
	ErrUnavailable = errors.New("fabric: cluster unavailable")

	// ErrClosed is returned if the manager was closed.
	ErrClosed = errors.New("fabric: manager is closed")

	// ErrConnectionClosed is returned by every call after the connection was closed permanently: by the program, after
	// its last attempt to reconnect, or because a server refused its credentials twice. Close the manager and create a
	// new one on a new connection, made with nats.MaxReconnects(-1).
	ErrConnectionClosed = errors.New("fabric: the connection was closed for good: make a new manager on a new connection")

	// ErrEventsDropped is returned by Close if the event hook was too slow. Everything else is closed.
	ErrEventsDropped = errors.New("fabric: the event hook is too slow, events were dropped")

	// ErrInvalidOption is returned if an option or an argument has an invalid value; the message names it. Nothing was done.
	ErrInvalidOption = errors.New("fabric: invalid option")

	// ErrStaleToken is returned if a larger fencing token was already seen: the holder was replaced. See *StaleTokenError.
	ErrStaleToken = errors.New("fabric: stale fencing token")

	// ErrMalformedRecord is returned if the value under the lock's key is not a record of this library. The value was
	// not changed. Look at it with 'nats kv get', and repair or delete it.
	ErrMalformedRecord = errors.New("fabric: unreadable lock record")

	// ErrNewerSchema is returned if a newer version of this library wrote the record or the buckets. Nothing was changed.
	// Upgrade this program.
	ErrNewerSchema = errors.New("fabric: written by a newer version")

	// ErrInvalidName: the name is empty, too long, too deep, not UTF-8, or contains control characters.
	ErrInvalidName = kv.ErrInvalidName
)

// NotAcquiredError is the error of every failed acquire.
type NotAcquiredError struct {
	Key   string
	Cause error // for example context.DeadlineExceeded, a *HeldError, ErrUnavailable
}

func (e *NotAcquiredError) Error() string {
	if e.Key == "" { // an invalid set
		return fmt.Sprintf("fabric: not acquired: %v", e.Cause)
	}
	return fmt.Sprintf("fabric: %q not acquired: %v", e.Key, e.Cause)
}

// Is makes errors.Is(err, ErrNotAcquired) true.
func (e *NotAcquiredError) Is(target error) bool { return target == ErrNotAcquired }

func (e *NotAcquiredError) Unwrap() error { return e.Cause }

// ConvertError is the error of every failed Convert.
type ConvertError struct {
	Key   string
	To    Mode  // the requested mode
	Held  Mode  // the mode that is held now; "" if the hold has ended
	Cause error // for example context.DeadlineExceeded, ErrConvertDeadlock, a *LostError
}

func (e *ConvertError) Error() string {
	held := "nothing"
	if e.Held != "" {
		held = string(e.Held)
	}
	return fmt.Sprintf("fabric: lock %q not converted to %s, %s is held: %v", e.Key, e.To, held, e.Cause)
}

// Is makes errors.Is(err, ErrNotConverted) true.
func (e *ConvertError) Is(target error) bool { return target == ErrNotConverted }

func (e *ConvertError) Unwrap() error { return e.Cause }

// HeldError describes the holder or waiter that is in the way.
type HeldError struct {
	Key      string
	Owner    string    // explicit owner, or the operation id of the hold
	Mode     Mode      // "" for kinds without modes
	Since    time.Time // when it requested the lock, by its own clock
	Token    uint64    // fencing token of a holder, ticket of a waiter
	Metadata map[string]string
	already  bool
}

func (e *HeldError) Error() string {
	what := "held"
	if e.already {
		what = "already held or awaited"
	}
	mode := ""
	if e.Mode != "" {
		mode = fmt.Sprintf(" (%s)", e.Mode)
	}
	return fmt.Sprintf("%s by %s%s since %s", what, e.Owner, mode, e.Since.Format(time.RFC3339))
}

// Is makes errors.Is true for ErrAlreadyHeld or for ErrHeld, depending on the refusal.
func (e *HeldError) Is(target error) bool {
	return target == ErrHeld && !e.already || target == ErrAlreadyHeld && e.already
}

// SizeMismatchError tells both sizes.
type SizeMismatchError struct {
	Key        string
	Kind       string // KindSemaphore, KindBarrier, KindGate or KindLatch
	Have, Want int    // the number in the record, and the given number: permits, parties or counts
}

func (e *SizeMismatchError) Error() string {
	counted := "parties"
	switch e.Kind {
	case KindSemaphore:
		counted = "permits"
	case KindLatch:
		counted = "counts"
	}
	return fmt.Sprintf("fabric: %s %q has %d %s, not %d", e.Kind, e.Key, e.Have, counted, e.Want)
}

func (e *SizeMismatchError) Unwrap() error { return ErrSizeMismatch }

// BrokenError tells why a generation of a barrier was broken.
type BrokenError struct {
	Key string
	Gen uint64
	Why string // "" if it is no longer known
	Who string // the party, or its lease, that caused it
}

func (e *BrokenError) Error() string {
	text := fmt.Sprintf("fabric: generation %d of barrier %q broken", e.Gen, e.Key)
	if e.Why != "" {
		text += ": " + e.Why
	}
	if e.Who != "" {
		text += " by " + e.Who
	}
	return text
}

func (e *BrokenError) Unwrap() error { return ErrBroken }

// FinishedError contains the existing result.
type FinishedError struct {
	Key    string
	Result []byte // nil for a latch
	By     string // id of the hold that stored the result, "" for a latch
}

func (e *FinishedError) Error() string {
	if e.By == "" {
		return fmt.Sprintf("fabric: latch %q is open already, for good: delete it, or use another name", e.Key)
	}
	return fmt.Sprintf("fabric: %q has a result already", e.Key)
}

func (e *FinishedError) Unwrap() error { return ErrFinished }

// WaitTooLongError tells the expected wait.
type WaitTooLongError struct {
	Key      string
	Expected time.Duration
	Allowed  time.Duration // the time until the deadline
	Position int           // number of waiters
	Owner    string        // of the blocking holder: explicit owner, or the operation id of the hold
}

func (e *WaitTooLongError) Error() string {
	return fmt.Sprintf("expected wait of %v, behind %s and %d waiting, exceeds the %v that are left",
		e.Expected.Round(time.Millisecond), e.Owner, e.Position, e.Allowed.Round(time.Millisecond))
}

func (e *WaitTooLongError) Unwrap() error { return ErrWaitTooLong }

// LostError is the ErrLost of one hold.
type LostError struct {
	Key    string
	Token  uint64
	Reason error // ErrExpired, ErrRenewalsUsedUp, ErrTakenOver, ErrRevoked, ErrRemoved, ErrBucketGone or ErrClosed
}

func (e *LostError) Error() string {
	if e.Token == 0 {
		return fmt.Sprintf("fabric: %q: the wait for it is lost: %v", e.Key, e.Reason)
	}
	return fmt.Sprintf("fabric: %q (token %d) lost: %v", e.Key, e.Token, e.Reason)
}

// Is makes errors.Is(err, ErrLost) true.
func (e *LostError) Is(target error) bool { return target == ErrLost }

func (e *LostError) Unwrap() error { return e.Reason }

// StaleTokenError is the refusal of a token.
type StaleTokenError struct {
	Token   uint64 // the refused token
	Highest uint64 // the largest token that was seen before
}

func (e *StaleTokenError) Error() string {
	return fmt.Sprintf("fabric: fencing token %d is stale: %d has been seen", e.Token, e.Highest)
}

func (e *StaleTokenError) Unwrap() error { return ErrStaleToken }
