// Package coalesce has lock operations carried out by one process for many: the owner of a shard
// takes operations over core NATS, and writes what it has of one key at a moment with one
// compare-and-set.
//
//	engine.Do -> Router -> engine of this process            the direct road
//	                    -> Client - frame -> Service -> engine of the owner's process
//
// # Parts
//
//	wire, frame, reply   messages, and their bounds
//	Service              the owner's side, of one shard and one term
//	Client               frames to the owner of this moment, and its replies
//	Router               which road an operation takes, and what it still owes on each
//
// A Router is an engine.Doer. An operation starts on the direct road: a free key costs one write. A
// key that turns out to be contended goes to the owner from then on, if there is one. Whenever the
// owner does not answer, says no, or is silent for long, the operation goes on directly, with the
// same id.
//
// # Guarantees
//
// An owner is never needed for safety. It writes by compare-and-set as everybody does, so two
// owners, none, or one that was deposed cost time. The id of an operation names it on all roads,
// and its outcome is the same on each.
//
// A term is the time of one owner, named by a number that rises with each owner. It stands in the
// subject of a frame, so no frame reaches an owner that it was not meant for. The owner takes the
// frames of a client in their order, drops what comes late, and asks right before every
// compare-and-set whether its own lease is still valid.
//
// An owner does not write an acquire if others have written the key since its client asked for it. So
// one committed release, of anybody, ends an acquire on all roads. An acquire that is not wanted any more
// is released that way, even if nothing of it is in the record.
//
// # Failure
//
// Messages can get lost, come late, twice, or from somebody else. A message is taken whole or
// dropped. A lost one is noticed by silence, at the latest after four beats of the owner.
package coalesce
