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

// Names of the stream metadata this package writes and checks.
const (
	metaSchema      = "lockfabric.schema"
	metaIncarnation = "lockfabric.incarnation"
	metaShards      = "lockfabric.shards" // absent: one

	fieldSchema = "metadata." + metaSchema
)

// maxConsumers lifts the server's default of 1,000 consumers for each stream,
// which a fleet of waiting processes would reach.
const maxConsumers = 100_000

// Config says which fabric to open and how its buckets are created.
type Config struct {
	// Fabric is the name that the buckets' names start with: letters, digits, '-' and '_', at most 64 of them.
	Fabric string
	// Replicas of each bucket; 0 means 3 on a clustered server and 1 on a
	// single one when the bucket is created, and whatever it has when it exists.
	Replicas int
	// Memory keeps the buckets in memory: faster, and every hold is void when
	// the servers stop. The default is file storage.
	Memory bool
	// Shards is the number of locks buckets; 0 means as many as there are, and Again, or 1, where they are made.
	Shards, Again int
	// Seen is the highest revision of each locks bucket that the caller knows of.
	Seen []uint64
	// Trip replaces the connection's own request call; nil means that call.
	Trip RoundTripper
}

var fabricName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Validate returns kv.ErrInvalidOption, with the field and what to use, when Open would.
func (c Config) Validate() error {
	if !fabricName.MatchString(c.Fabric) {
		return fmt.Errorf("%w: fabric name %q: use 1 to 64 letters, digits, '-' or '_'", kv.ErrInvalidOption, c.Fabric)
	}
	if c.Replicas < 0 || c.Replicas > 5 {
		return fmt.Errorf("%w: %d replicas: use 1 to 5, or 0 for the default", kv.ErrInvalidOption, c.Replicas)
	}
	if c.Shards < 0 || c.Shards > kv.MaxShards {
		return fmt.Errorf("%w: %d shards: use 1 to %d", kv.ErrInvalidOption, c.Shards, kv.MaxShards)
	}
	return nil
}

// seen is what the caller knows of one of n locks buckets.
func (c Config) seen(s, n int) uint64 {
	if len(c.Seen) == n {
		return c.Seen[s]
	}
	return slices.Max(append([]uint64{0}, c.Seen...)) // any of those that there were
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
	if c.Shards > 1 { // programs that know of no shards stay away
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
		// Direct gets are answered by followers, which may be behind.
		AllowDirect:            false,
		AllowMsgTTL:            true,
		SubjectDeleteMarkerTTL: MarkerTTL,
		AllowAtomicPublish:     true,
		FirstSeq:               firstSeq,
		Metadata:               metadata,
	}
}

// replicas is how many a bucket gets that is created on this connection.
func (c Config) replicas(nc *nats.Conn) int {
	switch {
	case c.Replicas > 0:
		return c.Replicas
	case nc.ConnectedClusterName() != "":
		return 3
	}
	return 1
}

// shardsOf is how many shards a fabric has, as a bucket of it says; 0 for what makes no sense.
func shardsOf(sc jetstream.StreamConfig) int {
	text, several := sc.Metadata[metaShards]
	if !several {
		return 1
	}
	n, _ := strconv.Atoi(text)
	if n > kv.MaxShards {
		return 0
	}
	return n
}

func streamName(bucket string) string    { return "KV_" + bucket }
func subjectPrefix(bucket string) string { return "$KV." + bucket + "." }

// check compares an existing bucket with what safe locking needs and returns a
// *kv.ConfigError for the first setting that is wrong, or kv.ErrNewerSchema.
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

// faults finds all settings that are wrong. What a foreign bucket or one of a
// newer schema should look like is not known: then there is nothing else to say.
func (c Config) faults(bucket string, sc jetstream.StreamConfig) (faults []*kv.ConfigError, newer error) {
	// The command asks back, as the stream is that of a KV bucket.
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
	v, _ := strconv.Atoi(schema) // 0 for what is no number
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
		retention = recreate // the only one that can't be left
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

// checkKey is the key that CheckAt writes. No lock's name is encoded so, and no list
// shows it, since all that is ever stored there is a delete marker.
const checkKey = "=v"

// headerExpectedSubject names the subject whose revision is compared, where it is not the one that is written.
const headerExpectedSubject = "Nats-Expected-Last-Subject-Sequence-Subject"

// CheckAt proves that the key's last revision is rev, without writing the key: no error says that it was, at an
// instant between the call and its return. Unlike a read it can't come from a leader that was deposed: a marker is
// written to another key of the bucket, under the condition that this one stands at rev, and it is acknowledged when
// a quorum has it. It returns the marker's revision, which is that instant. The key can be that of a record or of a
// delete marker. Absence, revision 0, can't be proved: it comes back when a marker expires.
//
// Errors: a *ConflictError (ErrConflict) says that the key is or was at another revision, for the leader that
// answered. After ErrBusy, ErrUnknown and ErrNotSent nothing is known. The check may then still be stored, which
// changes nothing: ask again. On a replicated bucket checks of a key exclude each other and writes of the key; who
// loses gets ErrBusy, so check rarely what others write. kv.ErrRejected is a key with wildcards, or revision 0.
func (b *Bucket) CheckAt(ctx context.Context, key string, rev uint64) (at uint64, err error) {
	if !validKey(key) || rev == 0 {
		return 0, fmt.Errorf("%w: check of %q at %d: needs the revision of one key", kv.ErrRejected, key, rev)
	}
	reply, err := b.trip(ctx, &nats.Msg{Subject: b.prefix + checkKey, Header: nats.Header{
		headerExpectedRevision: {strconv.FormatUint(rev, 10)},
		headerExpectedSubject:  {b.prefix + key},
		headerOperation:        {"PURGE"},
	}})
	if err != nil {
		return 0, publishError(err)
	}
	return b.parseAck(reply.Data, key, rev)
}

// Sizes of a bucket in an account that wants every stream to say how large it may
// become. Where nothing is wanted, a bucket has no limit of its own.
const (
	wantedBytes = 1 << 30
	leastBytes  = 16 << 20
)

// leastConsumers is how many consumers one process needs at least: one that waits and one that lists.
const leastConsumers = 2

// fit changes what is asked for a bucket so that it stays within the account's limits. buckets is how many are still
// to be created, this one included. It returns kv.ErrLimit, with the limit and its figure, where there is no room.
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
