// Package rtt estimates how long the server takes to answer over the link that a process has, and from that how long
// to wait before a request is taken for lost.
//
// The estimate is that of TCP (RFC 6298): a smoothed mean of the round trips and a smoothed mean deviation, and a
// timeout of the mean plus four deviations. Two things differ. Each request has a reply subject of its own, so an
// answer always belongs to its request, also when an earlier one was repeated: every answered request is a valid
// sample, and Karn's rule, which TCP needs, is not; but a read, or the refusal of a write, counts only where it shows
// the link to be slower than thought. And a timeout does not change the estimate: whoever repeats a request counts by
// itself how often nobody answered, and waits longer, since silence about one key says nothing about the others.
//
// What is measured is all that a request waits for: the link, the replicas, the disk, and queues on both sides. A
// process that loads its server itself sees that as a slower link, and should.
//
// # Failure
//
// A timeout that is too short is safe, as every request can be repeated, and costs an unknown outcome that has to be
// found out. One that is too long delays the recovery from an answer that got lost. A link that is slower than every
// timeout gives no samples; [Estimator.Backoff] grows until one is answered, and that one sample is enough for the
// next request.
package rtt
