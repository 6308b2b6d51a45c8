package jskv

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

// Names of the stream metadata that this package writes and checks.
const (
	metaSchema      = "lockfabric.schema"
	metaIncarnation = "lockfabric.incarnation"
	metaShards      = "lockfabric.shards" // absent means one

	fieldSchema = "metadata." + metaSchema
)

// maxConsumers replaces the server's default of 1,000 consumers for each stream,
// which many waiting processes would reach.
const maxConsumers = 100_000

// Config says which fabric to open and how to create its buckets.
type Config struct {
	// Fabric is the prefix of the buckets' names: 1 to 64 letters, digits, '-' and '_'.
	Fabric string
	// Replicas of each bucket. 0 means, for a new bucket, 3 on a cluster and 1 on a
	// single server; for an existing bucket, any number.
	Replicas int
	// Memory keeps the buckets in memory: faster, but all holds are lost when
	// the servers stop. The default is file storage.
	Memory bool
	// Shards is the number of locks buckets; 0 means the number of an existing fabric, and for a new one Again, or else 1.
	Shards, Again int
	// Seen is the highest revision of each locks bucket that the caller knows.
	Seen []uint64
	// Request replaces the request call of the connection, if not nil.
	Request Requester
}

var fabricName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Validate returns kv.ErrInvalidOption, with the field and a remedy, if Open would.
func (c Config) Validate() error {
	if !fabricName.MatchString(c.Fabric) {
		return fmt.Errorf("%w: fabric name %q: use 1 to 64 letters, digits, '-' or '_'", kv.ErrInvalidOption, c.Fabric)
	}
	if c.Replicas < 0 || c.Replicas > 5 {
		return fmt.Errorf("%w: %d replicas: use 1 to 5, or 0 for the default", kv.ErrInvalidOption, c.Replicas)
	}
	if c.Shards != 0 && !kv.ValidShards(c.Shards) {
		return fmt.Errorf("%w: %d shards: use 1 to %d", kv.ErrInvalidOption, c.Shards, kv.MaxShards)
	}
	return nil
}

// seen returns the highest revision that the caller knows of one of n locks buckets.
func (c Config) seen(s, n int) uint64 {
	if len(c.Seen) == n {
		return c.Seen[s]
	}
	return slices.Max(append([]uint64{0}, c.Seen...)) // the highest of any number of shards
}

// shardedSchema is the schema of the buckets of a fabric with several shards.
const shardedSchema = kv.Schema + 1

// streamConfig returns the configuration under which a bucket is created.
func (c Config) streamConfig(bucket, incarnation string, firstSeq uint64, replicas int) jetstream.StreamConfig {
	storage := jetstream.FileStorage
	if c.Memory {
		storage = jetstream.MemoryStorage
	}
	metadata := map[string]string{metaSchema: strconv.Itoa(kv.Schema), metaIncarnation: incarnation}
	if c.Shards > 1 { // keeps out programs that don't know shards
		metadata[metaSchema], metadata[metaShards] = strconv.Itoa(shardedSchema), strconv.Itoa(c.Shards)
	}
	return jetstream.StreamConfig{
		Name:              streamName(bucket),
		Description:       "lockfabric " + c.Fabric,
		Subjects:          []string{subjectPrefix(bucket) + ">"},
		MaxMsgsPerSubject: 1,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgSize:        -1,
		MaxConsumers:      maxConsumers,
		Discard:           jetstream.DiscardNew,
		Storage:           storage,
		Replicas:          replicas,
		Duplicates:        2 * time.Minute,
		DenyDelete:        true,
		AllowRollup:       true,
		// Followers answer direct gets, and may be behind.
		AllowDirect:            false,
		AllowMsgTTL:            true,
		SubjectDeleteMarkerTTL: MarkerTTL,
		AllowAtomicPublish:     true,
		FirstSeq:               firstSeq,
		Metadata:               metadata,
	}
}

// replicas returns the number of replicas for a new bucket on this connection.
func (c Config) replicas(nc *nats.Conn) int {
	switch {
	case c.Replicas > 0:
		return c.Replicas
	case nc.ConnectedClusterName() != "":
		return 3
	}
	return 1
}

// shardsOf returns the number of shards of a fabric, by the metadata of one of its buckets; 0 if that is invalid.
func shardsOf(sc jetstream.StreamConfig) int {
	text, several := sc.Metadata[metaShards]
	if !several {
		return 1
	}
	n, _ := strconv.Atoi(text)
	if !kv.ValidShards(n) {
		return 0
	}
	return n
}

func streamName(bucket string) string    { return "KV_" + bucket }
func subjectPrefix(bucket string) string { return "$KV." + bucket + "." }

// check compares an existing bucket with the settings that safe locking needs. It returns a
// *kv.ConfigError for the first wrong setting, or kv.ErrNewerSchema.
func (c Config) check(bucket string, sc jetstream.StreamConfig) error {
	faults, newer := c.faults(bucket, sc)
	if newer != nil {
		return newer
	}
	if len(faults) > 0 {
		return faults[0]
	}
	return nil
}

// faults returns all wrong settings. For a foreign bucket or one of a
// newer schema the right settings are not known, so it returns only that.
func (c Config) faults(bucket string, sc jetstream.StreamConfig) (faults []*kv.ConfigError, newer error) {
	// The command asks for confirmation, since the stream belongs to a KV bucket.
	edit := func(flags string) string { return "change it: nats stream edit " + streamName(bucket) + " " + flags }
	const recreate = "it can't be changed: use another fabric name, or delete the bucket while nobody holds a lock"
	bad := func(wrong bool, field string, value any, want, remedy string) {
		if wrong {
			faults = append(faults, &kv.ConfigError{Bucket: bucket, Field: field, Value: fmt.Sprint(value), Want: want, Remedy: remedy})
		}
	}
	schema := sc.Metadata[metaSchema]
	if schema == "" {
		bad(true, fieldSchema, "missing", strconv.Itoa(kv.Schema), "this bucket was not made by lockfabric: "+recreate)
		return faults, nil
	}
	v, _ := strconv.Atoi(schema) // 0 if it is not a number
	switch {
	case v < 1:
		bad(true, fieldSchema, schema, strconv.Itoa(kv.Schema), recreate)
		return faults, nil
	case v > shardedSchema:
		return nil, fmt.Errorf("%w: bucket %s has schema %d, this version knows %d", kv.ErrNewerSchema, bucket, v, shardedSchema)
	}
	subject := subjectPrefix(bucket) + ">"
	retention := edit("--retention=limits")
	if sc.Retention == jetstream.WorkQueuePolicy {
		retention = recreate // the only policy that can't be changed
	}
	bad(sc.Metadata[metaIncarnation] == "", "metadata."+metaIncarnation, "missing", "set", recreate)
	bad(!slices.Equal(sc.Subjects, []string{subject}), "subjects", sc.Subjects, subject, edit("--subjects='"+subject+"'"))
	bad(sc.Retention != jetstream.LimitsPolicy, "retention", sc.Retention, "limits", retention)
	bad(sc.MaxMsgsPerSubject != 1, "max_msgs_per_subject", sc.MaxMsgsPerSubject, "1", edit("--max-msgs-per-subject=1"))
	bad(sc.MaxAge != 0, "max_age", sc.MaxAge, "0: a live lock record must not expire", edit("--max-age=0"))
	bad(sc.Discard != jetstream.DiscardNew, "discard", sc.Discard, "new: old records must not be dropped", edit("--discard=new"))
	bad(sc.DiscardNewPerSubject, "discard_new_per_subject", true, "false", edit("--no-discard-per-subject"))
	bad(sc.MaxMsgs > 0, "max_msgs", sc.MaxMsgs, "-1: a release must always fit", edit("--max-msgs=-1"))
	bad(sc.MaxBytes > 0 && sc.MaxBytes < leastBytes, "max_bytes", sc.MaxBytes, "-1, or at least 16 MiB: a renewal must always fit", edit("--max-bytes=-1"))
	bad(sc.MaxMsgSize > 0, "max_msg_size", sc.MaxMsgSize, "-1", edit("--max-msg-size=-1"))
	bad(sc.AllowDirect, "allow_direct", true, "false: followers answer direct gets from the past", edit("--no-allow-direct"))
	bad(!sc.AllowMsgTTL, "allow_msg_ttl", false, "true", edit("--allow-msg-ttl"))
	bad(sc.SubjectDeleteMarkerTTL < 10*time.Minute, "subject_delete_marker_ttl", sc.SubjectDeleteMarkerTTL, "10m or more", edit("--subject-del-markers-ttl=15m"))
	bad(!sc.AllowRollup, "allow_rollup_hdrs", false, "true", edit("--allow-rollup"))
	bad(sc.DenyPurge, "deny_purge", true, "false", recreate)
	bad(!sc.AllowAtomicPublish, "allow_atomic", false, "true", edit("--allow-batch"))
	bad(sc.NoAck, "no_ack", true, "false", edit("--ack"))
	bad(sc.Sealed, "sealed", true, "false", recreate)
	if sc.Mirror != nil {
		bad(true, "mirror", sc.Mirror.Name, "none", recreate)
	}
	bad(len(sc.Sources) > 0, "sources", len(sc.Sources), "none", edit("--interactive, and remove the sources there"))
	bad(sc.SubjectTransform != nil, "subject_transform", "set", "none", edit("--no-transform"))
	bad(sc.PersistMode != jetstream.DefaultPersistMode, "persist_mode", sc.PersistMode, "default", recreate)
	bad(sc.Storage == jetstream.MemoryStorage && !c.Memory, "storage", "memory", "file, or open it with the memory option", recreate)
	bad(sc.Storage == jetstream.FileStorage && c.Memory, "storage", "file", "memory, as the memory option says", "open it without that option")
	bad(c.Replicas != 0 && sc.Replicas != c.Replicas, "num_replicas", sc.Replicas, strconv.Itoa(c.Replicas)+", as the replicas option says", edit("--replicas="+strconv.Itoa(c.Replicas)))
	return faults, nil
}

// checkKey is the key that CheckAt writes. No lock's name is encoded to it, and no list
// shows it, since only delete markers are ever stored there.
const checkKey = "=v"

// headerExpectedSubject names the subject whose revision is compared, if it is not the one that is written.
const headerExpectedSubject = "Nats-Expected-Last-Subject-Sequence-Subject"

// CheckAt proves that the key's last revision is rev, without writing the key: nil as error means that it was, at an
// instant between the call and its return. Unlike a read, the proof can't come from a deposed leader: CheckAt writes a
// marker to another key of the bucket, under the condition that this key is at rev, and a quorum has the marker when it is
// acknowledged. It returns the marker's revision, which is that instant. rev can be the revision of a record or of a
// delete marker. Absence, revision 0, can't be proved, since a key is absent again when its marker expires.
//
// Errors: a *ConflictError (ErrConflict) says that the key is or was at another revision, by the leader that
// answered. After ErrBusy, ErrUnknown and ErrNotSent nothing is known. The check may then still be stored, which
// changes nothing: try again. On a replicated bucket, checks of a key exclude each other and writes of the key; the
// loser gets ErrBusy, so rarely check keys that others write. kv.ErrRejected means a key with wildcards, or revision 0.
func (b *Bucket) CheckAt(ctx context.Context, key string, rev uint64) (at uint64, err error) {
	if !validKey(key) || rev == 0 {
		return 0, fmt.Errorf("%w: check of %q at %d: needs the revision of one key", kv.ErrRejected, key, rev)
	}
	reply, err := b.request(ctx, &nats.Msg{Subject: b.prefix + checkKey, Header: nats.Header{
		headerExpectedRevision: {strconv.FormatUint(rev, 10)},
		headerExpectedSubject:  {b.prefix + key},
		headerOperation:        {"PURGE"},
	}})
	if err != nil {
		return 0, publishError(err)
	}
	return b.parseAck(reply.Data, key, rev)
}

// Sizes of a bucket in an account that requires a maximum size for every stream.
// In other accounts a bucket has no limit of its own.
const (
	wantedBytes = 1 << 30
	leastBytes  = 16 << 20
)

// leastConsumers is how many consumers one process needs at least: one for waiting and one for a list.
const leastConsumers = 2

// fitLimits adapts the configuration of a new bucket to the account's limits. buckets is how many are still
// to be created, with this one. It returns kv.ErrLimit, with the limit and its figure, if there is no room.
func fitLimits(sc *jetstream.StreamConfig, info *jetstream.AccountInfo, buckets int) error {
	tier, copies := info.Tier, int64(sc.Replicas)
	if len(info.Tiers) > 0 {
		name := fmt.Sprintf("R%d", sc.Replicas)
		t, ok := info.Tiers[name]
		if !ok {
			return fmt.Errorf("%w: the account has no limits for %d replica(s) (tier %s)", kv.ErrLimit, sc.Replicas, name)
		}
		tier, copies = t, 1 // a tier's limits count a stream once
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

// limitCodes are the error codes for which a limit prevents the creation of a stream, with what
// is limited. The server gives no figures.
var limitCodes = map[jetstream.ErrorCode]string{
	codeAccountExceeded: "storage of the account",
	codeNoPeers:         "servers for the replicas",
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

// limitError returns kv.ErrLimit if a limit caused the error, else nil.
func limitError(err error) error {
	var refused *jetstream.APIError
	if !errors.As(err, &refused) || limitCodes[refused.ErrorCode] == "" {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", kv.ErrLimit, limitCodes[refused.ErrorCode], err)
}
