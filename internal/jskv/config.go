package jskv

import (
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

	fieldSchema = "metadata." + metaSchema
)

// maxConsumers lifts the server's default of 1,000 consumers for each stream,
// which a fleet of waiting processes would reach.
const maxConsumers = 100_000

// Config says which fabric to open and how its buckets are created.
type Config struct {
	// Fabric is the name that the buckets' names start with: letters, digits,
	// '-' and '_', at most 64 of them.
	Fabric string
	// Replicas of each bucket; 0 means 3 on a clustered server and 1 on a
	// single one when the bucket is created, and whatever it has when it exists.
	Replicas int
	// Memory keeps the buckets in memory: faster, and every hold is void when
	// the servers stop. The default is file storage.
	Memory bool
	// Seen is the highest revision of the locks bucket that the caller knows of.
	Seen uint64
	// Trip replaces the connection's own request call; nil means that call.
	Trip RoundTripper
}

var fabricName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Validate returns kv.ErrInvalidOption, with the field and what to use, when Open
// would.
func (c Config) Validate() error {
	if !fabricName.MatchString(c.Fabric) {
		return fmt.Errorf("%w: fabric name %q: use 1 to 64 letters, digits, '-' or '_'", kv.ErrInvalidOption, c.Fabric)
	}
	if c.Replicas < 0 || c.Replicas > 5 {
		return fmt.Errorf("%w: %d replicas: use 1 to 5, or 0 for the default", kv.ErrInvalidOption, c.Replicas)
	}
	return nil
}

// streamConfig returns the configuration under which a bucket is created.
func (c Config) streamConfig(bucket, incarnation string, firstSeq uint64, replicas int) jetstream.StreamConfig {
	storage := jetstream.FileStorage
	if c.Memory {
		storage = jetstream.MemoryStorage
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
		Metadata: map[string]string{
			metaSchema:      strconv.Itoa(kv.Schema),
			metaIncarnation: incarnation,
		},
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
	case v > kv.Schema:
		return nil, fmt.Errorf("%w: bucket %s has schema %d, this version knows %d", kv.ErrNewerSchema, bucket, v, kv.Schema)
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
