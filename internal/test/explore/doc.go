// Package explore holds an explicit-state model checker of the state machines in internal/record.
//
// It runs the real [record.Apply], Standing, Undo, Encode and Decode, one kind of record at a time,
// under a few small client programs, and visits every state that they can reach, the nearest first.
// So what it prints for a fault is a shortest way to it.
//
// A state is what the key holds (a record at a revision, a delete marker, or nothing), the operations
// in flight, where each client stands in its program and what it was told, and which leases are dead.
// Revisions are renumbered in their order before states are compared, which makes the space finite.
//
// What can happen:
//
//   - A client reads the record and sends the next operation of its program.
//   - An operation is applied, in one compare-and-set write. Its client gets the answer; or the answer is
//     lost, and it is applied again; or a copy of it stays in flight and arrives late, perhaps after
//     its client has got the answer, has given up, or is dead. Two operations may share one write.
//   - A client looks at the committed record, and finds that its operation waits no more.
//   - A client gives up. Then it sends what undoes the operation, and if that has to be proved, it
//     waits for it, and reads the outcome off the record that it was committed in.
//   - A lease dies: its client counts on nothing any more. Somebody evicts it, sooner or later, also
//     together with others.
//   - A client finds an entry of its own that it knows nothing of, and withdraws it.
//   - A delete marker expires, but not while an operation that is older is under way.
//
// The faults among these (lost answers, late copies, clients that give up, deaths) are counted, and each
// program says how many of each there are. Nothing else bounds the space: it is exhausted.
//
// What must hold in every kind: what a client was told it holds stands in the record, with its token; an
// operation whose client knows the outcome changes nothing any more, unless it is one of those that
// are harmless when late; a client is not forgotten; when nothing can happen any more, everybody is
// done and nothing is left behind. Each kind adds its own, see the file of the kind.
//
// Turns, by which a lock passes on before it is written, have a model of their own (turns_test.go): clients that hold in
// mode X, and owners that pass turns on. Nothing sends turns yet; the model is there before what it is of.
//
// Kept locks have one, too (kept_test.go): two processes of two goroutines each, which pass an entry on in memory by the
// rule that the engine asks, [record.Record.CanPassOn].
//
// What is left out: time, several keys, what a network or a server does (one write at a time is
// committed, see package internal/test/chaos for whether it is), and the limits of a record.
package explore
