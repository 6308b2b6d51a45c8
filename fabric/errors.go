package fabric

import (
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/kv"
)

// Errors of acquiring.
var (
	// ErrNotAcquired is true of every error that an acquire returns: nothing is
	// held. It comes as a *NotAcquiredError with the key and the cause.
	ErrNotAcquired = errors.New("fabric: not acquired")

	// ErrHeld says that TryAcquire met a holder or a queue. It comes as a
	// *HeldError that names who is in the way. Try later, or use Acquire to queue.
	ErrHeld = errors.New("fabric: lock is held")

	// ErrAlreadyHeld says that the owner given with WithOwner holds this very lock, or waits for it, already. It
	// comes as a *HeldError. Use the handle that the owner has, or another owner.
	ErrAlreadyHeld = errors.New("fabric: owner already holds or waits for this lock")

	// ErrQueueFull says that the lock's record is at its limit of waiters or of bytes, by many processes: of one
	// manager's acquires only 16 wait in it, the others in the process. The message says which limit, and its figure.
	// Bytes are 512 KiB, or what the server's max_payload leaves. Try later.
	ErrQueueFull = errors.New("fabric: lock queue is full")

	// ErrWaitTooLong says that the wait was expected to last beyond the deadline, which WithDeadlineCheck asks to
	// find out at once. It comes as a *WaitTooLongError. Try later, or allow more time.
	ErrWaitTooLong = errors.New("fabric: expected wait exceeds the deadline")

	// ErrKindMismatch says that the name is in use as something else; the message says as what. Use another name, or wait
	// until nobody uses it: one whose users look dead is free once they were observed for their TTL and margin.
	ErrKindMismatch = errors.New("fabric: name is in use as another kind")
)

// Errors of records that are no locks. Package primitives says where they occur.
var (
	// ErrTooLarge says that more permits were asked for than the semaphore has, more counts than a latch can take, or
	// that a value is longer than can be kept; the message says the bound. Nothing waits, and nothing was changed. Ask
	// for less, or resize; keep a long value elsewhere, and here where it is.
	ErrTooLarge = errors.New("fabric: too large")

	// ErrSizeMismatch says that the name is in use with another size, number of parties
	// or initial count than the one given. It comes as a *SizeMismatchError.
	ErrSizeMismatch = errors.New("fabric: in use with another size")

	// ErrBroken says that a generation of a barrier was broken: one of its parties gave
	// up or died, its action failed, or somebody reset it. It comes as a *BrokenError.
	ErrBroken = errors.New("fabric: barrier broken")

	// ErrStale says that what a change was based on, as the stamp of WithStamp, has changed since.
	// Nothing was done: read again, and decide again.
	ErrStale = errors.New("fabric: based on what has changed since")

	// ErrDeleted says that the record is not the one that was read: it was deleted, and
	// perhaps made again. Nothing was done.
	ErrDeleted = errors.New("fabric: deleted since it was read")

	// ErrFinished says that there is a result already, or that a latch is open. It comes as
	// a *FinishedError, which has the result.
	ErrFinished = errors.New("fabric: finished already")

	// ErrUncertain says that it is not known, and can't be found out any more or not in
	// time, whether the operation was done. Read the state and decide.
	ErrUncertain = errors.New("fabric: not known whether it was done")
)

// Errors of holding.
var (
	// ErrLost says that the hold ended before it was released. It comes as a *LostError with the reason. Stop
	// touching what the lock protects; what cannot be stopped is caught by the fencing token.
	ErrLost = errors.New("fabric: lock lost")

	// ErrMember says that a hold is a member of a [Set] and can't be released alone, nor weakened below what the
	// members under it need. Release the set, or convert the members under it first.
	ErrMember = errors.New("fabric: the hold is a member of a set")

	// ErrReleased is the state of a handle after Release.
	ErrReleased = errors.New("fabric: lock released")

	// ErrUnconfirmed says that a release, or a conversion to a weaker mode, was not confirmed in time. It goes on in
	// the background; at the latest the end of the lease frees the lock.
	ErrUnconfirmed = errors.New("fabric: not confirmed yet")
)

// Errors of converting.
var (
	// ErrNotConverted is true of every error that Convert returns. It comes as a
	// *ConvertError that says which mode is held.
	ErrNotConverted = errors.New("fabric: hold not converted")

	// ErrConvertDeadlock says that another holder waits to convert until this hold gives way, and that this
	// conversion would wait for that one: neither would ever be granted. Release, or Convert to a weaker mode, and
	// start over. Take Update instead of Shared where converting to Exclusive is likely.
	ErrConvertDeadlock = errors.New("fabric: conversion would deadlock")

	// ErrConverting says that another Convert of the same handle is under way. Wait for it, or end its context.
	ErrConverting = errors.New("fabric: another conversion of this hold is under way")
)

// Reasons of a loss, found in a LostError.
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
	// ErrUnavailable says that no leader answers. With WithFailFast it is
	// returned at once, otherwise calls retry until their context ends.
	ErrUnavailable = errors.New("fabric: cluster unavailable")

	// ErrClosed says that the manager was closed.
	ErrClosed = errors.New("fabric: manager is closed")

	// ErrConnectionClosed says that the connection was closed for good: by whoever made it, after its last attempt to
	// reconnect, or because a server refused its credentials twice. It ends every call. Close the manager and make a
	// new one on a new connection, made with nats.MaxReconnects(-1).
	ErrConnectionClosed = errors.New("fabric: the connection was closed for good: make a new manager on a new connection")

	// ErrEventsDropped says that Close gave up before the event hook had taken all events. Everything else is closed.
	// Make the hook quicker, or have it only count.
	ErrEventsDropped = errors.New("fabric: the event hook is too slow, events were dropped")

	// ErrInvalidOption says that an option has a value that makes no sense; the message names it. Nothing was done.
	ErrInvalidOption = errors.New("fabric: invalid option")

	// ErrStaleToken says that a fencing token is older than one that was seen
	// already: its holder has been replaced. It comes as a *StaleTokenError.
	ErrStaleToken = errors.New("fabric: stale fencing token")

	// ErrMalformedRecord says that the value under the lock's key is no record of this library. It was left as it is.
	// Look at it with 'nats kv get', and repair or delete it.
	ErrMalformedRecord = errors.New("fabric: unreadable lock record")

	// ErrNewerSchema says that a newer version of this library wrote the record under the lock's key, or the buckets:
	// of a schema or of a kind that this one doesn't know. It was left as it is. Upgrade this program.
	ErrNewerSchema = errors.New("fabric: written by a newer version")

	// ErrInvalidName says that a lock name is empty, too long, too deep, not UTF-8, or contains control characters.
	ErrInvalidName = kv.ErrInvalidName
)

// NotAcquiredError is the error of every acquire that failed.
type NotAcquiredError struct {
	Key   string
	Cause error // for example context.DeadlineExceeded, a *HeldError, ErrUnavailable
}

func (e *NotAcquiredError) Error() string {
	if e.Key == "" { // a set that makes no sense
		return fmt.Sprintf("fabric: not acquired: %v", e.Cause)
	}
	return fmt.Sprintf("fabric: %q not acquired: %v", e.Key, e.Cause)
}

// Is makes errors.Is(err, ErrNotAcquired) true.
func (e *NotAcquiredError) Is(target error) bool { return target == ErrNotAcquired }

func (e *NotAcquiredError) Unwrap() error { return e.Cause }

// ConvertError is the error of every Convert that failed.
type ConvertError struct {
	Key   string
	To    Mode  // what was asked for
	Held  Mode  // what is held now; "" if the hold has ended
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

// HeldError says who is in the way.
type HeldError struct {
	Key      string
	Owner    string    // explicit owner, or the operation id of the hold
	Mode     Mode      // "" where the kind has none
	Since    time.Time // when the other one asked, by its own clock
	Token    uint64    // its fencing token, or its ticket if it waits
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

// Is makes errors.Is true for ErrHeld or ErrAlreadyHeld, whichever it is.
func (e *HeldError) Is(target error) bool {
	return target == ErrHeld && !e.already || target == ErrAlreadyHeld && e.already
}

// SizeMismatchError says what the name is in use with.
type SizeMismatchError struct {
	Key        string
	Kind       string // KindSemaphore and its like
	Have, Want int    // what the record says, and what was given: permits, parties, or counts
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

// BrokenError says how a generation of a barrier was broken.
type BrokenError struct {
	Key string
	Gen uint64
	Why string // "" if it is not known any more
	Who string // the party, or its lease, because of which
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

// FinishedError has what is there already.
type FinishedError struct {
	Key    string
	Result []byte // nil for a latch
	By     string // the id that gave it, "" for a latch
}

func (e *FinishedError) Error() string {
	if e.By == "" {
		return fmt.Sprintf("fabric: latch %q is open already, for good: delete it, or use another name", e.Key)
	}
	return fmt.Sprintf("fabric: %q has a result already", e.Key)
}

func (e *FinishedError) Unwrap() error { return ErrFinished }

// WaitTooLongError says how long a wait was expected to last.
type WaitTooLongError struct {
	Key      string
	Expected time.Duration
	Allowed  time.Duration // what was left until the deadline
	Position int           // how many wait already
	Owner    string        // who is in the way: explicit owner, or the operation id of the hold
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
	Token   uint64 // the one that was offered
	Highest uint64 // the one that was seen before
}

func (e *StaleTokenError) Error() string {
	return fmt.Sprintf("fabric: fencing token %d is stale: %d has been seen", e.Token, e.Highest)
}

func (e *StaleTokenError) Unwrap() error { return ErrStaleToken }
