package record

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Verb says what an operation does.
type Verb uint8

// The verbs. The zero Verb is none of them, so that a forgotten field is BadOp.
const (
	_ Verb = iota

	// OpAcquire holds, or queues at the tail. Uses ID, Lease, Mode, TTL, and Owner, Since, Meta, Hold, Patience.
	OpAcquire
	// OpTry holds at once or leaves no trace. Uses what OpAcquire uses, except Patience; for locks also Base: if
	// it is not 0, the try succeeds only on this very revision of the record.
	OpTry
	// OpRelease removes ID from the holders or the waiters; for a waiter it is a cancel. Uses ID, Lease if given, Hold, and
	// Token for a hold that was handed out: without it, a signal that woke ID is passed on to another waiter. A waiter
	// with this very ticket held by a turn, so all entries before it are removed, too.
	OpRelease
	// OpEvict removes every entry of the dead leases in Leases. The caller has seen a
	// committed tombstone for each of them.
	OpEvict
	// OpRevoke marks the holder ID as revoked, or every holder if ID is "". A revoked entry still
	// blocks until its owner hears of it and releases it, or its lease dies. With ID "", set UpTo. A waiter that may hold by
	// a turn, in place of such a holder or as ID itself, is marked to let go if it does.
	OpRevoke
	// OpRemove removes the holder ID, or every holder if ID is "", whether or not its owner knows:
	// from then on only the fencing tokens protect the resource. With ID "", set UpTo. It never removes a waiter, since that could
	// accept a turn later.
	OpRemove
	// OpConvert changes the mode of the hold Holder to Mode: at once if no other holder is in the way, else
	// when those have let go, before everybody in the queue. Uses ID, which names the
	// conversion, Lease, Holder, Mode, and From for Undo. The outcome is in the holder: Convert.ID is ID while
	// it waits, Converted is ID after the grant. If it is neither, the conversion was cancelled.
	OpConvert
	// OpUnconvert undoes the conversion ID of the hold Holder, whether it waits, was granted or was
	// never written, and lowers the hold to Mode if that is less than its mode then. It does nothing if a conversion
	// with a higher sequence came later. Uses ID, Lease, Holder, Mode.
	OpUnconvert
	// OpStopWaiting removes the request, or the conversion, ID if it still waits. A granted one stays,
	// so the record shows which of the two it was. Uses ID, Lease.
	OpStopWaiting

	// OpAdvance makes ID, which holds by a turn, a holder in the record: all entries before it have ended and are removed.
	// It does nothing unless ID waits with the ticket Token. Uses ID, Lease, Token.
	OpAdvance

	// OpWait turns the hold Holder, of mode X and with Token, into a waiter for the condition Queue. In one
	// write the hold ends, and ID is in that queue until a signal. If the queue is full, the hold is
	// only renamed to ID: a holder ID that was not Signalled. Uses ID, Lease, Holder, Token, Queue, Hold.
	OpWait
	// OpCancelWait undoes the wait ID, signalled or not, and prevents it from taking effect later: afterwards ID waits for
	// the lock, or holds it. Uses ID, Lease, Holder, Token.
	OpCancelWait
	// OpSignal moves the first waiter for the condition Queue, or all with All, to the tail of the lock's
	// queue. Only a holder of X can signal. Uses ID, whose sequence tells a hold's signals apart, Lease, Holder,
	// Token, Queue, All.
	OpSignal
	// OpProclaim sets the value of the hold Holder of mode X, unless an OpProclaim of a higher sequence did. Uses ID,
	// Lease, Holder, Token, Value.
	OpProclaim

	// OpReduce leaves the holder Holder of a semaphore at most N permits. Uses ID, Lease, Holder, N.
	OpReduce
	// OpDrain takes all free permits, as a try. Uses what OpTry uses; the record sets N.
	OpDrain
	// OpResize makes N the size of a semaphore, if Base is still the revision at which its size was set.
	// Uses N, Limit, Base, Life.
	OpResize
	// OpArrive waits until all parties of the generation Gen have arrived. The outcome is in the generation: it
	// tripped, or was broken; no entry is left. Uses what OpAcquire uses except Mode, and Limit, Gen, Life;
	// Gen 0, of a caller that read no record, is the first generation.
	OpArrive
	// OpArriveToAct is OpArrive of a party with an action. If it is the last to arrive, it holds until OpTrip, before
	// the others are released: the action runs between the generations.
	OpArriveToAct
	// OpCancel undoes an arrival, or an enter, that has not led to anything. Uses ID, Lease, Limit,
	// Gen and Life of that operation.
	OpCancel
	// OpTrip ends the generation whose action ran, with Fail as a broken one. Uses ID, Lease, Holder, Token, Fail.
	OpTrip
	// OpReset breaks the generation Gen if an entry waits in it and it is not complete. Uses ID, Lease, Limit, Gen, Life.
	OpReset

	// OpEnter waits until all parties of a gate have entered. Uses what OpArrive uses.
	OpEnter
	// OpLeave ends the membership Holder and waits until all members have left. Uses ID, Lease, Holder, Token.
	OpLeave

	// OpDelete deletes a record without entries, whatever its body keeps. Uses Life.
	OpDelete
	// OpSweep deletes a record that was Outlived when it was read at revision Base. Uses Base.
	OpSweep

	// OpCount counts a latch down by N. Uses ID, Lease, TTL, N, Limit, Life, and Base, the revision at
	// which the record was read: an operation that read it after the last removal of marks can't have counted before.
	OpCount
	// OpAdd raises the count of a latch by N. Uses what OpCount uses.
	OpAdd
	// OpUncount prevents the OpCount or OpAdd with this ID if it was not done, and leaves it if it was.
	// Uses ID, Lease, Life and Base of that operation.
	OpUncount
	// OpAwait waits until a latch is open; its entry is gone then. Uses what OpAcquire uses, Limit and Life.
	OpAwait

	// OpFinish stores Value as the result of the runner, Holder, and ends all waits for it. With
	// Fail it stores nothing, and the next waiter runs. The result is Outlived after N seconds; 0 = never.
	// Uses ID, Lease, Holder, Token, Value, N, Fail, Life.
	OpFinish
)

var opNames = [...]string{OpAcquire: "acquire", OpTry: "try", OpRelease: "release", OpEvict: "evict", OpRevoke: "revoke", OpRemove: "remove",
	OpConvert: "convert", OpUnconvert: "unconvert", OpStopWaiting: "stop-waiting", OpAdvance: "advance",
	OpWait: "wait", OpCancelWait: "cancel-wait", OpSignal: "signal", OpProclaim: "proclaim",
	OpReduce: "reduce", OpDrain: "drain", OpResize: "resize",
	OpArrive: "arrive", OpArriveToAct: "arrive-to-act", OpCancel: "cancel", OpTrip: "trip", OpReset: "reset", OpEnter: "enter", OpLeave: "leave",
	OpCount: "count", OpAdd: "add", OpUncount: "uncount", OpAwait: "await", OpFinish: "finish",
	OpDelete: "delete", OpSweep: "sweep"}

// VerbNamed is the inverse of String; 0 for an unknown name.
func VerbNamed(name string) Verb { return Verb(max(slices.Index(opNames[:], name), 0)) }

func (k Verb) String() string {
	if k == 0 || int(k) >= len(opNames) {
		return fmt.Sprintf("Verb(%d)", uint8(k))
	}
	return opNames[k]
}

// Op is one operation on a record. Each verb says which fields it uses; it ignores the others.
type Op struct {
	Kind   Kind // the kind of record it is for; "" with a common verb is any kind
	Verb   Verb
	ID     string            // "<lease>.<sequence>"
	Lease  string            // the requester's lease: equal to LeaseOf(ID)
	Mode   Mode              // locks: a valid mode
	Holder string            // the id of the hold that the operation is about; under the same lease as ID
	From   Mode              // the mode that the holder relies on having before a conversion; see Undo
	Owner  string            // explicit identity, or ""
	TTL    time.Duration     // of the lease; above 0, rounded up to whole milliseconds
	Since  time.Time         // for people; cut to milliseconds, dropped if before 1970
	Meta   map[string]string // read-only
	Leases []string          // dead leases

	// Hold is, for OpRelease, how long the hold lasted. For a request it is the requester's estimate of
	// the hold time, for a record that knows none; 0 = not known.
	Hold time.Duration
	// Patience, if above 0, refuses an OpAcquire whose expected wait is longer. An
	// entry that is already in the queue stays there.
	Patience time.Duration

	// UpTo makes OpRevoke and OpRemove of every holder idempotent: they affect only holders with a
	// token of at most UpTo, the greatest that the operator saw. With 0 they affect
	// every holder, and a retry after an unknown outcome hits holders that were granted meanwhile.
	UpTo uint64

	// Of other kinds than plain locks; each verb says which it uses.

	N     int    // permits, counts, seconds
	Limit int    // the size, number of parties or initial count that the caller assumes
	Life  uint64 // Record.Life as the caller read it; 0 = the key was absent, without a delete marker
	Gen   uint64 // the generation that the caller read
	Base  uint64 // the revision that the caller read, on which the operation is based
	Token uint64 // of Holder
	Queue string // a condition's name
	All   bool   // of a signal: to all waiters; of a latch's delete: together with the waiters
	Fail  bool   // of an end: it failed
	Value Value
}

// targets reports whether OpRevoke or OpRemove applies to this holder.
func (op *Op) targets(e *Entry) bool {
	if op.ID != "" {
		return e.ID == op.ID
	}
	return op.UpTo == 0 || e.Token != 0 && e.Token <= op.UpTo // 0: granted by this very write
}

// common reports whether op has a verb that every kind supports.
func (op *Op) common() bool {
	switch op.Verb {
	case OpRelease, OpEvict, OpRevoke, OpRemove, OpSweep:
		return true
	}
	return false
}

// check returns Applied for an operation that can be applied to some record.
func (op *Op) check() Verdict {
	k := op.Kind.rules()
	switch {
	case k == nil && (op.Kind != "" || !op.common()):
		return BadOp
	case op.Verb == OpRelease:
		return op.checkID(op.Lease != "")
	case op.Verb == OpEvict && slices.Contains(op.Leases, ""):
		return BadOp
	case op.Verb == OpEvict, op.Verb == OpSweep, op.common() && op.ID == "":
		return Applied
	case op.common():
		return op.checkID(false)
	}
	return op.rule().check(op)
}

// checkID refuses an id under another lease than the requester's: if it were queued under one
// lease, granted, retried under a second and evicted through the first, it would be held twice.
func (op *Op) checkID(underLease bool) Verdict {
	switch lease := LeaseOf(op.ID); {
	case lease == "":
		return BadOp
	case underLease && lease != op.Lease:
		return LeaseMismatch
	}
	return Applied
}

// maxCount is the largest number of permits or counts.
const maxCount = 1<<31 - 1

func validCount(n int) bool { return n >= 1 && n <= maxCount }

// Limits bound a record. A field that is zero or less means its default.
type Limits struct {
	MaxHolders int // entries; further compatible requests queue
	MaxWaiters int // entries, in all queues together; above the constant MaxWaiters only for a record that is not written
	MaxBytes   int // of the encoding, with room reserved for later changes of the entries
}

// DefaultLimits are 1,024 holders, 2,047 waiters and 512 KiB, half of a server's usual limit of a message.
func DefaultLimits() Limits {
	return Limits{MaxHolders: 1024, MaxWaiters: MaxWaiters, MaxBytes: 512 << 10}
}

// Within returns l for records of at most n bytes.
func (l Limits) Within(n int) Limits {
	l = l.orDefaults()
	l.MaxBytes = min(l.MaxBytes, max(n, 1))
	return l
}

// NearlyFull reports whether a record with so many waiters and bytes is three quarters full.
func (l Limits) NearlyFull(waiters, bytes int) bool {
	return waiters > l.MaxWaiters/4*3 || bytes > l.MaxBytes/4*3
}

// ForPrediction returns l for a record with up to n waiters that is never written.
func (l Limits) ForPrediction(n int) Limits {
	l.MaxWaiters, l.MaxBytes = n, 1<<30
	return l
}

func (l Limits) orDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		MaxHolders: cmp.Or(max(l.MaxHolders, 0), d.MaxHolders),
		MaxWaiters: cmp.Or(max(l.MaxWaiters, 0), d.MaxWaiters),
		MaxBytes:   cmp.Or(max(l.MaxBytes, 0), d.MaxBytes),
	}
}

// Verdict is the answer to an operation. Every verdict but Applied means that the operation changed nothing.
type Verdict uint8

// The verdicts. The zero Verdict is none of them.
const (
	_             Verdict = iota
	Applied               // done, now or by an earlier attempt, or there was nothing to do: look up the id in the record
	Held                  // a try that can't be granted now; Blocker is in the way
	AlreadyHeld           // Owner already holds or waits under another id, that of Blocker
	QueueFull             // the record is at its limits
	WaitTooLong           // the expected wait, Wait, is longer than Patience; Blocker is in the way
	LeaseMismatch         // ID belongs to another lease than Lease
	WrongKind             // the record is of another kind
	BadOp                 // invalid: unknown kind or mode, bad id, TTL of 0 or less, text that is not UTF-8

	ConvertPending  // the hold already waits for another conversion
	ConvertDeadlock // Blocker, itself converting, waits for this hold, perhaps indirectly: neither would ever be granted
	ConvertRevoked  // the hold was revoked: its owner has to release it

	// Of other kinds than plain locks.

	TooLarge     // asks for more than the size, Have
	SizeMismatch // the record's size, parties or initial count is Have, and Limit differs
	Stale        // the state that it is based on has changed: read, and try again
	Forgotten    // the record does not know any more whether it was done before
	OtherLife    // the record is not the one that was read: it was deleted, and perhaps made again
	InUse        // the record has entries; Blocker is one of them
	NotHolder    // Holder doesn't hold, or not with Token
	Broken       // its generation of a barrier was broken
	Finished     // there is already a result
)

var verdictNames = [...]string{Applied: "applied", Held: "held", AlreadyHeld: "already held", QueueFull: "queue full", WaitTooLong: "wait too long",
	LeaseMismatch: "lease mismatch", WrongKind: "wrong kind", BadOp: "bad operation",
	ConvertPending: "conversion pending", ConvertDeadlock: "conversion would deadlock", ConvertRevoked: "hold is revoked",
	TooLarge: "too large", SizeMismatch: "size mismatch", Stale: "stale", Forgotten: "forgotten", OtherLife: "other life", InUse: "in use",
	NotHolder: "not the holder", Broken: "broken", Finished: "finished"}

func (v Verdict) String() string {
	if v == 0 || int(v) >= len(verdictNames) {
		return fmt.Sprintf("Verdict(%d)", uint8(v))
	}
	return verdictNames[v]
}

// Result is the answer to one operation.
type Result struct {
	Verdict Verdict
	Have    int   // for TooLarge and SizeMismatch
	Blocker Entry // for Held, AlreadyHeld, WaitTooLong and ConvertDeadlock the entry in the way: a holder if there is one, else a waiter

	Limit    string        // for QueueFull: the limit that is reached, as "1024 waiters"
	Wait     time.Duration // for WaitTooLong: the expected wait
	Position int           // for WaitTooLong: number of waiters before it
}
