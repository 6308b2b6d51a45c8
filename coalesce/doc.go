// Package coalesce lets one process carry out lock operations for many. Clients send operations over core NATS to
// the coalescer of a shard. The coalescer writes all operations that it has for one key at a moment with one
// compare-and-set.
//
// The protocol and this package call the coalescer of a shard the shard's owner: it holds the shard's lock for one term.
//
//	engine.Doer -> Router -> engine of this process              the direct road
//	                      -> Client - frame -> Service -> engine of the owner's process   the coalesced road
//
// # Parts
//
//	wire, frame, reply    messages and their bounds
//	Service               the owner of one shard for one term
//	Client                sends frames to the present owner and takes its replies
//	Router                chooses the road of an operation, and keeps the operations that are not over on either road
//
// A Router is an engine.Doer. The first operations on a key take the direct road: a free key costs one write. Once a
// key turns out to be contended, its operations go to the owner, if there is one. If the
// owner does not answer, refuses, or is silent for too long, the operation also takes the direct road, with the
// same id.
//
// # Guarantees
//
// Safety never depends on an owner. It writes by compare-and-set like every other process. So two
// owners, no owner, or an owner that was deposed only cost time. An operation has the same id on both roads,
// and its outcome is the same on each.
//
// A term is the time of one owner. Its number rises with each owner. The subject of a frame
// contains the number, so a frame never reaches the owner of another term. The owner takes the
// frames of a client in their order and drops late ones. Right before every
// compare-and-set it checks that its own lease is still valid.
//
// An owner does not write an acquire if others have written the key since its client sent it. So
// one committed release, by any process, ends an acquire on both roads. A client that no longer needs an acquire
// releases it that way, even if the record does not contain its entry.
//
// # Turns
//
// A turn passes a lock on before the write: when a hold ends, the owner tells the next waiter that its turn has come, and
// writes the release later. The waiter then holds by the turn. Package record says why this is safe.
//
// # Failure
//
// A message can get lost, come late or twice, or come from an unknown sender. A receiver takes a message as a whole or
// drops it. A client notices a lost message by silence: at the latest after four beats of the owner.
package coalesce
