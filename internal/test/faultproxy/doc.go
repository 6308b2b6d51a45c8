// Package faultproxy stands between NATS clients and a server, on loopback, and
// makes the network misbehave on purpose: it delays, stalls, cuts, and, because
// it reads the protocol, drops, duplicates or holds back single messages. It is
// for tests only.
//
// The faults that matter to a lock service are those that leave an outcome
// unknown, and each has its switch:
//
//   - the write was committed, its acknowledgement is lost: [Proxy.DropRepliesTo]
//   - the write never arrived, though it was sent: [Proxy.DropRequests]
//   - the write arrives late, maybe after its client has gone:
//     [Proxy.HoldRequests] and [Rule.Release]
//   - the write arrives twice: [Proxy.DuplicateRequests]
//   - nothing moves, but the connection stands: [Proxy.Stall]
//   - the connection is gone: [Proxy.Cut]
//
// Rules see messages in the order they were sent and the first one that matches
// decides, in the order in which rules were added. A rule tells how often it has
// matched, so that a test can wait for the fault instead of sleeping.
//
// Order within a direction is kept, except for messages that a rule holds back.
// The server's hints to other addresses are taken out, so that a client stays on
// the proxy. TLS and servers that ask for signed nonces are not supported.
package faultproxy
