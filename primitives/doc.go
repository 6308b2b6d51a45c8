// Package primitives has ways to coordinate processes beyond the plain lock of package fabric. Each is a
// name in a manager's fabric, used by any number of processes:
//
//	[Mutex]     one at a time
//	[RWMutex]   many readers or one writer, and an update lock that reads and becomes the writer
//	[Cond]      wait for a signal from whoever holds the mutex
//	[Semaphore] at most so many permits out at a time
//	[Latch]     wait until so many things have happened
//	[Election]  one leader among candidates, each with a value
//	[Once]      done once, with a result
//	[Barrier]   parties that wait for each other, again and again
//	[DoubleBarrier]  parties that go in together and come out together
//
// All of them work on one record of the name, by compare-and-set, as locks do: see package fabric for
// leases, tokens, and how a hold is lost. Constructors do no I/O; what is wrong with a name or an option is
// the error of the first call, and a nil context panics. A name has one kind of use at a time: a mutex and its conditions,
// a reader-writer mutex and an election are all locks, the others are not, and get [fabric.ErrKindMismatch]. Users that
// have died keep a name neither from another kind nor from being deleted: what looks dead is observed first, for its TTL.
//
// What is held is a handle for one use. It is invalid from the moment its release is sent, its release works
// under a context that has ended, and it can't release the hold of anybody else. Whoever holds
// has to watch [fabric.Hold.Lost], or work under [fabric.Hold.Context], and to hand the token to what it
// changes: nothing else keeps a process that was stopped past its lease from writing.
package primitives
