// Package primitives contains synchronization primitives between processes, in addition to the plain lock of package
// fabric. Each is a name in a manager's fabric that any number of processes can use:
//
//	[Mutex]          one holder at a time
//	[RWMutex]        many readers or one writer; an update lock can read and become the writer
//	[Cond]           wait for a signal from the holder of the mutex
//	[Semaphore]      at most a number of permits in use
//	[Latch]          wait until a number of events have happened
//	[Election]       one leader among candidates, each with a value
//	[Once]           run a function once and keep the result
//	[Barrier]        parties wait for each other, repeatedly
//	[DoubleBarrier]  parties enter together and leave together
//
// Each primitive is one record under the name, changed by compare-and-set, like a lock. Package fabric describes
// leases, tokens, and how a hold is lost. Constructors do no I/O: an invalid name or option is the error of the first
// call. A nil context panics, and a nil function is [fabric.ErrInvalidOption]. A name has one kind of use at a time: a mutex with its conditions, a reader-writer mutex
// and an election are all locks; the other primitives are other kinds, and get [fabric.ErrKindMismatch]. Users that
// have died do not keep a name from another kind or from being deleted, but a user that looks dead is observed for its
// TTL first.
//
// What is acquired is a single-use handle. It is invalid from the moment when its release is sent. Its release also
// works under a context that has ended, and it never releases another hold. The holder must watch [fabric.Hold.Lost],
// or work under [fabric.Hold.Context], and must pass the token to what it changes: only the token stops the writes of a
// process that was paused past its lease.
package primitives
