// Package kv describes the NATS KV buckets of a fabric, for programs that read them or grant permissions on them: the
// names of the buckets, the keys of locks, and the errors of the buckets.
//
// The buckets are ordinary NATS KV buckets. Every KV client and the stock nats command can read them. Do not write to
// them: a lock needs settings and headers that the KV API does not offer.
package kv
