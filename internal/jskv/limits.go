package jskv

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

// Sizes of a bucket in an account that wants every stream to say how large it may
// become. Where nothing is wanted, a bucket has no limit of its own.
const (
	wantedBytes = 1 << 30
	leastBytes  = 16 << 20
)

// leastConsumers is how many consumers one process needs at least: one that waits and
// one that lists.
const leastConsumers = 2

// fit changes what is asked for a bucket so that it stays within the account's limits.
// buckets is how many are still to be created, this one included. It returns kv.ErrLimit,
// with the limit and its figure, where there is no room.
func fit(sc *jetstream.StreamConfig, info *jetstream.AccountInfo, buckets int) error {
	tier, copies := info.Tier, int64(sc.Replicas)
	if len(info.Tiers) > 0 {
		name := fmt.Sprintf("R%d", sc.Replicas)
		t, ok := info.Tiers[name]
		if !ok {
			return fmt.Errorf("%w: the account has no limits for %d replica(s) (tier %s)", kv.ErrLimit, sc.Replicas, name)
		}
		tier, copies = t, 1 // limits of a tier count a stream once
	}
	lim := tier.Limits
	if n := lim.MaxStreams; n > 0 && tier.Streams+buckets > n {
		return fmt.Errorf("%w: streams: the account may have %d and has %d; %d more needed", kv.ErrLimit, n, tier.Streams, buckets)
	}
	if n := lim.MaxConsumers; n > 0 {
		if n < leastConsumers {
			return fmt.Errorf("%w: consumers: the account may have %d for each stream; at least %d needed", kv.ErrLimit, n, leastConsumers)
		}
		sc.MaxConsumers = min(sc.MaxConsumers, n)
	}

	what, most, used, stream := "file storage", lim.MaxStore, max(tier.Store, tier.ReservedStore), lim.StoreMaxStreamBytes
	if sc.Storage == jetstream.MemoryStorage {
		what, most, used, stream = "memory storage", lim.MaxMemory, max(tier.Memory, tier.ReservedMemory), lim.MemoryMaxStreamBytes
	}
	room := int64(wantedBytes)
	if most >= 0 {
		room = min(room, (most-int64(used))/copies/int64(buckets))
	}
	if room <= 0 {
		return fmt.Errorf("%w: %s: the account may use %d bytes and has %d in use or reserved", kv.ErrLimit, what, most, used)
	}
	if !lim.MaxBytesRequired {
		return nil
	}
	if stream > 0 {
		room = min(room, stream)
	}
	if room < leastBytes {
		return fmt.Errorf("%w: %s: the account wants a size for each stream and leaves %d bytes for this one; at least %d needed", kv.ErrLimit, what, room, leastBytes)
	}
	sc.MaxBytes = room
	return nil
}

// limitCodes are refusals to create a stream for which a limit is the cause, with what
// is limited. The server gives no figures.
var limitCodes = map[jetstream.ErrorCode]string{
	codeAccountExceeded: "storage of the account",
	10005:               "servers for the replicas",
	10023:               "resources of the servers",
	10026:               "consumers of the account",
	10027:               "streams of the account",
	codeMemoryExceeded:  "memory storage",
	codeStorageExceeded: "file storage",
	10074:               "servers for the replicas: this one is alone",
	10113:               "the account wants a size for each stream",
	10120:               "the account has no limits for this many replicas",
	10122:               "size of a stream",
}

// limitError returns kv.ErrLimit for a refusal that a limit caused, else nil.
func limitError(err error) error {
	var refused *jetstream.APIError
	if !errors.As(err, &refused) || limitCodes[refused.ErrorCode] == "" {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", kv.ErrLimit, limitCodes[refused.ErrorCode], err)
}
