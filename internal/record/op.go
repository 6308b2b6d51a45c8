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
	// OpTry holds at once or leaves no trace. Uses what OpAcquire uses, but Patience; and of locks Base, if
	// it is not 0: it holds only over the very revision that the caller knows.
	OpTry
	// OpRelease removes ID wherever it stands; for a waiter this is cancel. Uses ID, Lease if it is given, Hold, and
	// Token of a hold that was handed out: without it, a signal that brought ID here is passed on to another. A waiter
	// with this very ticket held by a turn, so all before it are removed, too.
	OpRelease
	// OpEvict removes every entry of the dead leases named in Leases. The caller has seen a
	// committed tombstone for each of them.
	OpEvict
	// OpRevoke marks the holder ID as revoked, or every holder if ID is "". A revoked entry still
	// blocks: its owner releases when it is told, or its lease dies. With ID "", set UpTo. Waiters who may hold by a
	// turn, in place of such a holder or as ID itself, are told to let go if they do.
	OpRevoke
	// OpRemove removes the holder ID, or every holder if ID is "", whether or not its owner knows:
	// from then on safety rests on the fencing tokens alone. With ID "", set UpTo. A waiter is never removed: it could
	// accept a turn later.
	OpRemove
	// OpConvert changes the mode of the hold Holder to Mode: at once if nobody is in the way, else
	// when those in the way have let go, before everybody in the queue. Uses ID, which names the
	// conversion, Lease, Holder, Mode, and for Undo From. Look at the holder: Convert.ID is ID while
	// it waits, Converted is ID when it was granted. If it is neither the conversion was cancelled.
	OpConvert
	// OpUnconvert takes the conversion ID of the hold Holder back, whether it waits, was granted or was
	// never written, and lowers the hold to Mode if that is less than it has then; unless a conversion
	// with a higher sequence came after it. Uses ID, Lease, Holder, Mode.
	OpUnconvert
	// OpStopWaiting removes the request, or the conversion, ID if it still waits. What was granted stays as
	// it is, so whoever asks learns from the record which of the two it was. Uses ID, Lease.
	OpStopWaiting

	// OpAdvance has ID hold in the record, which holds by a turn: all before it have ended, and are removed. It
	// does nothing unless ID waits with the ticket Token. Uses ID, Lease, Token.
	OpAdvance

	// OpWait turns the hold Holder, of mode X and with Token, into a waiter for the condition Queue: in one
	// write it holds no more, and ID stands in that queue until a signal. Where the queue is full the hold is
	// only renamed to ID: a holder ID that was not Signalled. Uses ID, Lease, Holder, Token, Queue, Hold.
	OpWait
	// OpCancelWait takes the wait ID back, signalled or not, and shuts it out if it comes late: ID waits for
	// the lock, or holds. Uses ID, Lease, Holder, Token.
	OpCancelWait
	// OpSignal moves the first of those who wait for the condition Queue, or All, to the tail of the lock's
	// queue. Only who holds X can signal. Uses ID, whose sequence tells a hold's signals apart, Lease, Holder,
	// Token, Queue, All.
	OpSignal
	// OpProclaim sets the value of the hold Holder of mode X, unless one of a higher sequence was set. Uses ID,
	// Lease, Holder, Token, Value.
	OpProclaim

	// OpReduce leaves the holder Holder of a semaphore with at most N permits. Uses ID, Lease, Holder, N.
	OpReduce
	// OpDrain takes all permits that are free, as a try. Uses what OpTry uses; N is set by the record.
	OpDrain
	// OpResize makes N the size of a semaphore, if Base is still the revision at which its size was set.
	// Uses N, Limit, Base, Life.
	OpResize
	// OpArrive waits until all parties are there for the generation Gen. Look at the generation: it
	// tripped, or was broken; no entry is left. Uses what OpAcquire uses but Mode, and Limit, Gen, Life;
	// Gen 0, of who read no record, is the first generation.
	OpArrive
	// OpArriveToAct is OpArrive of one who, if it is the last to come, holds before the others are let
	// go, until OpTrip: there is something to be done between the generations.
	OpArriveToAct
	// OpCancel takes an arrival, or an enter, back that has not led to anything. Uses ID, Lease, Limit,
	// Gen and Life, those of the operation.
	OpCancel
	// OpTrip ends the generation whose action ran, with Fail as a broken one. Uses ID, Lease, Holder, Token, Fail.
	OpTrip
	// OpReset breaks the generation Gen if somebody waits in it and it is not complete. Uses ID, Lease, Limit, Gen, Life.
	OpReset

	// OpEnter waits until all parties of a gate are there. Uses what OpArrive uses.
	OpEnter
	// OpLeave ends the membership Holder and waits until all members have left. Uses ID, Lease, Holder, Token.
	OpLeave

	// OpDelete takes away a record in which nobody stands, whatever is kept in it. Uses Life.
	OpDelete
	// OpSweep takes away a record that was Outlived when it was read at revision Base. Uses Base.
	OpSweep

	// OpCount counts a latch down by N. Uses ID, Lease, TTL, N, Limit, Life, and Base, the revision at
	// which the record was read: what was read after the last marks went can't have counted before.
	OpCount
	// OpAdd raises the count of a latch by N. Uses what OpCount uses.
	OpAdd
	// OpUncount shuts out the OpCount or OpAdd with this ID if it was not done, and leaves it if it was.
	// Uses ID, Lease, Life and Base, those of the operation.
	OpUncount
	// OpAwait waits until a latch is open; its entry is gone then. Uses what OpAcquire uses, Limit and Life.
	OpAwait

	// OpFinish stores Value as the result of the one who runs, Holder, and ends all waits for it; with
	// Fail it stores nothing, and the next one runs. The result is Outlived after N seconds; 0 = never.
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

// VerbNamed is the inverse of String; 0 for a name of no verb.
func VerbNamed(name string) Verb { return Verb(max(slices.Index(opNames[:], name), 0)) }

func (k Verb) String() string {
	if k == 0 || int(k) >= len(opNames) {
		return fmt.Sprintf("Verb(%d)", uint8(k))
	}
	return opNames[k]
}

// Op is one operation on a record. See the verbs for the fields each uses; the others are ignored.
type Op struct {
	Kind   Kind // of the record that it works on; "", of a verb that every kind has, is whatever there is
	Verb   Verb
	ID     string            // "<lease>.<sequence>"
	Lease  string            // the lease the requester lives under: what LeaseOf(ID) must say
	Mode   Mode              // locks: a valid mode
	Holder string            // the id of the hold that the operation is of; under the same lease as ID
	From   Mode              // what the holder of a conversion counts on holding before it; see Undo
	Owner  string            // explicit identity, or ""
	TTL    time.Duration     // of the lease; above 0, rounded up to whole milliseconds
	Since  time.Time         // for people; cut to milliseconds, dropped if before 1970
	Meta   map[string]string // not to be modified any more
	Leases []string          // dead leases

	// Hold is, for OpRelease, how long the hold lasted, and for a request what the requester takes for
	// the hold time of a record that doesn't know; 0 = not known.
	Hold time.Duration
	// Patience, if above 0, refuses an OpAcquire that would wait longer than that, as far as can be
	// told. Whoever stands in the queue stays there.
	Patience time.Duration

	// UpTo makes OpRevoke and OpRemove of every holder idempotent: they touch only holders whose
	// token is at most UpTo, the greatest among those that the operator saw. With 0 they touch
	// whoever holds, and a retry after an unknown outcome hits those who were granted meanwhile.
	UpTo uint64

	// Of other kinds than plain locks; each verb says which it uses.

	N     int    // permits, counts, seconds
	Limit int    // what the caller takes for the size, the number of parties or the initial count
	Life  uint64 // Record.Life as the caller read it; 0 = the key was absent and without a delete marker
	Gen   uint64 // the generation that the caller read
	Base  uint64 // the revision that the caller read, on which the operation is based
	Token uint64 // of Holder
	Queue string // a condition's name
	All   bool   // of a signal: to everybody who waits; of a latch's delete: with those who wait
	Fail  bool   // of an end: without success
	Value Value
}

// targets reports whether OpRevoke or OpRemove means this holder.
func (op *Op) targets(e *Entry) bool {
	if op.ID != "" {
		return e.ID == op.ID
	}
	return op.UpTo == 0 || e.Token != 0 && e.Token <= op.UpTo // 0: granted by the write at hand
}

// common reports whether op's verb is one that every kind has.
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
	return k.check(op)
}

// unless is BadOp for nonsense, and else v.
func unless(nonsense bool, v Verdict) Verdict {
	if nonsense {
		return BadOp
	}
	return v
}

// checkID refuses an id that exists under another lease than the requester's: queued under one
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
	MaxWaiters int // entries, in all queues together; above the constant MaxWaiters only of what is not written
	MaxBytes   int // of the encoding, with room for what may still happen to its entries
}

// DefaultLimits are 1,024 holders, 2,047 waiters and 512 KiB, half of a server's usual limit of a message.
func DefaultLimits() Limits {
	return Limits{MaxHolders: 1024, MaxWaiters: MaxWaiters, MaxBytes: 512 << 10}
}

// Within returns l for records that have to fit n bytes.
func (l Limits) Within(n int) Limits {
	l = l.orDefaults()
	l.MaxBytes = min(l.MaxBytes, max(n, 1))
	return l
}

// Crowded reports whether a record of that many waiters and bytes is three quarters full.
func (l Limits) Crowded(waiters, bytes int) bool {
	return waiters > l.MaxWaiters/4*3 || bytes > l.MaxBytes/4*3
}

// Foreseen returns l for a record with up to n waiters that is not written.
func (l Limits) Foreseen(n int) Limits {
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

// Verdict is what became of an operation. Every verdict but Applied means that the operation changed nothing.
type Verdict uint8

// The verdicts. The zero Verdict is none of them.
const (
	_             Verdict = iota
	Applied               // done, now or by an earlier attempt, or there was nothing to do: look the id up in the record
	Held                  // a try that can't be granted now; Blocker stands in the way
	AlreadyHeld           // Owner holds or waits already under another id, that of Blocker
	QueueFull             // the record is at its limits
	WaitTooLong           // the expected wait, Wait, is longer than Patience; Blocker stands in the way
	LeaseMismatch         // ID belongs to another lease than Lease
	WrongKind             // the record is of another kind
	BadOp                 // nonsense: unknown kind or mode, bad id, TTL of 0 or less, text that is no UTF-8

	ConvertPending  // the hold waits for another conversion already
	ConvertDeadlock // Blocker, itself converting, waits for this hold, perhaps over others: neither would ever get it
	ConvertRevoked  // the hold was revoked: it is to let go

	// Of other kinds than plain locks.

	TooLarge     // asks for more than the size, Have
	SizeMismatch // the record's size, parties or initial count is Have, and Limit is another
	Stale        // what it is based on has changed: read, and ask again
	Forgotten    // whether it was done before is not known any more
	OtherLife    // the record is not the one that was read: it was deleted, and perhaps made again
	InUse        // somebody stands in the record; Blocker is one of them
	NotHolder    // Holder doesn't hold, or not with Token
	Broken       // its generation of a barrier was broken
	Finished     // there is a result already
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

// Result answers one operation.
type Result struct {
	Verdict Verdict
	Have    int   // for TooLarge and SizeMismatch
	Blocker Entry // for Held, AlreadyHeld, WaitTooLong and ConvertDeadlock the entry that stands in the way, a holder first, else a waiter

	Limit    string        // for QueueFull: the limit that is reached, as "1024 waiters"
	Wait     time.Duration // for WaitTooLong: how long it would take
	Position int           // for WaitTooLong: how many wait before it
}
