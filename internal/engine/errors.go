package engine

import (
	"errors"
	"fmt"

	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

var (
	// ErrRefused says that the state of the resource forbids the operation. It
	// comes as a *RefusedError with the reason. The operation left nothing behind.
	ErrRefused = errors.New("engine: operation refused")

	// ErrGone says that a waiting operation's entry disappeared: its lease was
	// found dead, or somebody deleted the resource. Acquire again with a new id.
	ErrGone = errors.New("engine: entry is gone")

	// ErrUnavailable says that no leader answered. The operation was not done, or the engine undoes it in the background.
	ErrUnavailable = kv.ErrUnavailable

	// ErrUnconfirmed says that the caller's context ended before the operation
	// was confirmed. The engine goes on with it.
	ErrUnconfirmed = errors.New("engine: not confirmed in time")

	// ErrUncertain says that the caller's context ended and that the operation's outcome is not known,
	// since no answer came in time. The engine goes on undoing it.
	ErrUncertain = errors.New("engine: not known whether it was done")

	// ErrNotEntitled says of a guest that this process may not write for others any more.
	// An earlier write of the guest may still be committed.
	ErrNotEntitled = errors.New("engine: no longer entitled to write for others")

	// ErrOvertaken says of a guest that others have written the key since it was sent: it may have been done
	// by another process, and its entry removed. Nothing more is written for it. The outcome has the revision that is known.
	ErrOvertaken = errors.New("engine: others have written since")

	// ErrElsewhere is the cause for withdrawing a request that another process carries out, or has carried out.
	ErrElsewhere = errors.New("engine: carried out elsewhere")

	// ErrStopped says that the stop channel given with the operation was closed.
	ErrStopped = errors.New("engine: operation stopped")

	// ErrClosed says that the engine was closed.
	ErrClosed = errors.New("engine: engine closed")

	// ErrRevoked is the reason of a hold lost to a forced release.
	ErrRevoked = errors.New("engine: hold was revoked by an operator")

	// ErrRemoved is the reason of a hold whose entry is not in the record any
	// more: deleted by an operator, or evicted because its lease was found dead.
	ErrRemoved = errors.New("engine: hold was removed from the record")
)

// RefusedError is ErrRefused with its reason.
type RefusedError struct {
	record.Result
	Record *record.Record // the state that refused, or nil where there was none
	// Uncertain says that the outcome of an earlier attempt is not known: the operation may have been
	// done, and its record gone since.
	Uncertain bool
	Cause     error // why the caller gave the operation up, if it did before it was refused
}

func (e *RefusedError) Unwrap() error { return e.Cause }

func (e *RefusedError) Error() string { return fmt.Sprintf("engine: operation refused: %v", e.Verdict) }

// Is makes errors.Is(err, ErrRefused) true.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }
