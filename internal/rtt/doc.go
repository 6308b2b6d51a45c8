// Package rtt estimates how long the server takes to answer over this process's link, and so how long
// to wait before a request counts as lost.
//
// The estimate is that of TCP (RFC 6298): a smoothed mean of the round trips and a smoothed mean deviation, and a
// timeout of the mean plus four deviations. Two things differ. First, each request has a reply subject of its own, so an
// answer always belongs to its request, even after a repetition. So every answered request is a valid
// sample, and Karn's rule, which TCP needs, is not needed. But a read, or the refusal of a write, counts only if it is
// slower than the mean. Second, a timeout does not change the estimate: a caller that repeats a request counts
// its timeouts itself, and waits longer, since a timeout for one key says nothing about other keys.
//
// A sample includes all that a request waits for: the link, the replicas, the disk, and queues on both sides. So a
// process that loads its server itself sees a slower link, which is intended.
//
// # Failure
//
// A timeout that is too short is safe, since every request can be repeated, but costs an unknown outcome that has to be
// found out. A timeout that is too long delays the recovery from a lost answer. A link that is slower than every
// timeout gives no samples; [Estimator.Backoff] grows until a request is answered, and that one sample is enough for the
// next request.
package rtt
