package kv

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Schema is the version of the buckets' layout that this package writes.
const Schema = 1

// Names of the stream metadata this package writes and checks.
const (
	metaSchema      = "lockfabric.schema"
	metaIncarnation = "lockfabric.incarnation"
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
	// Trip replaces the connection's own request call; nil means that call.
	Trip RoundTripper
}

var fabricName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Validate returns ErrInvalidOption, with the field and what to use, when Open
// would.
func (c Config) Validate() error {
	if !fabricName.MatchString(c.Fabric) {
		return fmt.Errorf("%w: fabric name %q: use 1 to 64 letters, digits, '-' or '_'", ErrInvalidOption, c.Fabric)
	}
	if c.Replicas < 0 || c.Replicas > 5 {
		return fmt.Errorf("%w: %d replicas: use 1 to 5, or 0 for the default", ErrInvalidOption, c.Replicas)
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
			metaSchema:      strconv.Itoa(Schema),
			metaIncarnation: incarnation,
		},
	}
}

func streamName(bucket string) string    { return "KV_" + bucket }
func subjectPrefix(bucket string) string { return "$KV." + bucket + "." }

// check compares an existing bucket with what safe locking needs and returns a
// *ConfigError for the first setting that is wrong.
func (c Config) check(bucket string, sc jetstream.StreamConfig) error {
	const edit = "change it with 'nats stream edit'"
	const recreate = "it can't be changed: use another fabric name, or delete the bucket while nobody holds a lock"
	bad := func(field string, value any, want, remedy string) error {
		return &ConfigError{Bucket: bucket, Field: field, Value: fmt.Sprint(value), Want: want, Remedy: remedy}
	}
	schema := sc.Metadata[metaSchema]
	if schema == "" {
		return bad("metadata."+metaSchema, "missing", strconv.Itoa(Schema), "this bucket was not made by lockfabric: "+recreate)
	}
	if v, err := strconv.Atoi(schema); err != nil || v < 1 {
		return bad("metadata."+metaSchema, schema, strconv.Itoa(Schema), recreate)
	} else if v > Schema {
		return fmt.Errorf("%w: bucket %s has schema %d, this version knows %d", ErrNewerSchema, bucket, v, Schema)
	}
	subject := subjectPrefix(bucket) + ">"
	switch {
	case sc.Metadata[metaIncarnation] == "":
		return bad("metadata."+metaIncarnation, "missing", "set", recreate)
	case !slices.Equal(sc.Subjects, []string{subject}):
		return bad("subjects", sc.Subjects, subject, edit)
	case sc.Retention != jetstream.LimitsPolicy:
		return bad("retention", sc.Retention, "limits", recreate)
	case sc.MaxMsgsPerSubject != 1:
		return bad("max_msgs_per_subject", sc.MaxMsgsPerSubject, "1", edit)
	case sc.MaxAge != 0:
		return bad("max_age", sc.MaxAge, "0: a live lock record must not expire", edit)
	case sc.Discard != jetstream.DiscardNew:
		return bad("discard", sc.Discard, "new: old records must not be dropped", edit)
	case sc.DiscardNewPerSubject:
		return bad("discard_new_per_subject", true, "false", edit)
	case sc.MaxMsgs > 0:
		return bad("max_msgs", sc.MaxMsgs, "-1: a release must always fit", edit)
	case sc.MaxBytes > 0:
		return bad("max_bytes", sc.MaxBytes, "-1: a release must always fit", edit)
	case sc.MaxMsgSize > 0:
		return bad("max_msg_size", sc.MaxMsgSize, "-1", edit)
	case sc.AllowDirect:
		return bad("allow_direct", true, "false: followers answer direct gets from the past", edit)
	case !sc.AllowMsgTTL:
		return bad("allow_msg_ttl", false, "true", edit)
	case sc.SubjectDeleteMarkerTTL < 10*time.Minute:
		return bad("subject_delete_marker_ttl", sc.SubjectDeleteMarkerTTL, "10m or more", edit)
	case !sc.AllowRollup:
		return bad("allow_rollup_hdrs", false, "true", edit)
	case sc.DenyPurge:
		return bad("deny_purge", true, "false", recreate)
	case !sc.AllowAtomicPublish:
		return bad("allow_atomic", false, "true", edit)
	case sc.NoAck:
		return bad("no_ack", true, "false", edit)
	case sc.Sealed:
		return bad("sealed", true, "false", recreate)
	case sc.Mirror != nil:
		return bad("mirror", sc.Mirror.Name, "none", recreate)
	case len(sc.Sources) > 0:
		return bad("sources", len(sc.Sources), "none", edit)
	case sc.SubjectTransform != nil:
		return bad("subject_transform", "set", "none", edit)
	case sc.PersistMode != jetstream.DefaultPersistMode:
		return bad("persist_mode", sc.PersistMode, "default", recreate)
	case sc.Storage == jetstream.MemoryStorage && !c.Memory:
		return bad("storage", "memory", "file, or open it with the memory option", recreate)
	case sc.Storage == jetstream.FileStorage && c.Memory:
		return bad("storage", "file", "memory, as the memory option says", "open it without that option")
	case c.Replicas != 0 && sc.Replicas != c.Replicas:
		return bad("num_replicas", sc.Replicas, strconv.Itoa(c.Replicas)+", as the replicas option says", edit)
	}
	return nil
}
