// Package faultproxy stands between NATS clients and a server, on loopback, and
// makes the network misbehave on purpose: it delays, stalls, cuts, and, because
// it reads the protocol, drops, duplicates or holds back single messages. It is
// for tests only.
//
// The important faults for a lock service are those that leave an outcome
// unknown. Each of them has a method:
//
//   - the write was committed, but its acknowledgement is lost: [Proxy.DropRepliesTo]
//   - the write never arrived, though it was sent: [Proxy.DropRequests]
//   - the write arrives late, maybe after its client has gone:
//     [Proxy.HoldRequests] and [Rule.Release]
//   - the write arrives twice: [Proxy.DuplicateRequests]
//   - nothing moves, but the connection stays open: [Proxy.Stall]
//   - the connection is gone: [Proxy.Cut]
//
// Rules see messages in the order in which they were sent. Of the rules that match, the one that was
// added first decides. A rule counts how often it has
// matched, so that a test can wait for the fault instead of sleeping.
//
// Messages of one direction keep their order, except those that a rule holds back.
// The proxy removes the addresses of other servers from the server's INFO, so that a client stays on
// the proxy. It does not support TLS or servers that ask for signed nonces.
package faultproxy
