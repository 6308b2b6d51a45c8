package kv

// Schema is the version of the buckets' layout that this version writes.
const Schema = 1

// What the servers have to be like.
const (
	// MinServer is the oldest nats-server that has what safe locking needs.
	MinServer = "2.12.0"

	// MinPayload is the least max_payload, in bytes: it has room for a few holds with all
	// that they may say of themselves.
	MinPayload = 16 << 10
)

// MetaKey is the key in the leases bucket under which the fabric's own note is
// kept. No lease has this name.
const MetaKey = "_fabric"

// CoalescerKey is the key in the locks bucket of the lock that the fabric's coalescer holds. No name
// of a lock encodes to it.
const CoalescerKey = "=coalescer.0"

// LocksBucket returns the name of the bucket that a fabric keeps its records in.
func LocksBucket(fabric string) string { return fabric + "-locks" }

// LeasesBucket returns the name of the bucket that a fabric keeps its leases in.
func LeasesBucket(fabric string) string { return fabric + "-leases" }

// WaitsBucket returns the name of the bucket in which a fabric's units of work say what they hold while
// they wait for long. Where it is missing, deadlocks are not detected.
func WaitsBucket(fabric string) string { return fabric + "-waits" }
