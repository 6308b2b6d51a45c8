// Package kv says how a fabric lies in its NATS KV buckets, for whoever looks into them
// or gives rights to them: their names, the keys of locks, and the errors that come of them.
//
// The buckets are ordinary NATS KV buckets that any KV client and the stock nats command can read. Read them, but
// leave writing to this module: a lock needs settings and headers that the KV API does not offer.
package kv
