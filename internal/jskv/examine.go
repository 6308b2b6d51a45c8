package jskv

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

const (
	apiStreamInfo  = "$JS.API.STREAM.INFO."
	apiStreamPurge = "$JS.API.STREAM.PURGE."
	apiMessageGet  = "$JS.API.STREAM.MSG.GET."
)

// Examiner examines a fabric without opening it: it creates nothing, writes
// nothing, and accepts buckets that Open refuses.
type Examiner struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	cfg Config
}

// NewExaminer returns an Examiner. It ignores Replicas and Memory of cfg:
// the state of a bucket shows them. The error is kv.ErrInvalidOption.
func NewExaminer(nc *nats.Conn, cfg Config) (*Examiner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kv.ErrInvalidOption, err)
	}
	return &Examiner{nc: nc, js: js, cfg: cfg}, nil
}

// Usage is how much of one resource is in use.
type Usage struct {
	Resource string // "file storage", "memory storage", "streams", "consumers" or "bytes"
	Used     int64  // bytes, or a number
	Limit    int64  // 0 or less = none
}

// AccountState is the JetStream state of the connection's account.
type AccountState struct {
	APILevel int
	TooOld   error // kv.ErrServerTooOld, or nil
	Usage    []Usage

	info *jetstream.AccountInfo
}

// Room returns kv.ErrLimit, with the limit and its figure, if the account has no room
// for this many new buckets, else nil.
func (x *Examiner) Room(s AccountState, buckets int) error {
	if buckets == 0 {
		return nil
	}
	sc := x.cfg.streamConfig(kv.LocksBucket(x.cfg.Fabric), "", 1, x.cfg.replicas(x.nc))
	return fitLimits(&sc, s.info, buckets)
}

// Account requests the account's state. Errors: kv.ErrNoJetStream, kv.ErrUnavailable, each with the context's error inside.
func (x *Examiner) Account(ctx context.Context) (AccountState, error) {
	info, err := x.js.AccountInfo(ctx)
	if err != nil {
		return AccountState{}, openError("account", err)
	}
	s := AccountState{APILevel: info.API.Level, info: info}
	if info.API.Level < apiLevel {
		s.TooOld = tooOld(info.API.Level)
	}
	add := func(t jetstream.Tier) {
		s.Usage = append(s.Usage,
			Usage{"file storage", int64(t.Store), t.Limits.MaxStore},
			Usage{"memory storage", int64(t.Memory), t.Limits.MaxMemory},
			Usage{"streams", int64(t.Streams), int64(t.Limits.MaxStreams)},
			Usage{"consumers", int64(t.Consumers), int64(t.Limits.MaxConsumers)})
	}
	if len(info.Tiers) == 0 {
		add(info.Tier)
	}
	for _, t := range info.Tiers {
		add(t)
	}
	return s, nil
}

// BucketState is the state of one bucket.
type BucketState struct {
	Bucket      string
	Exists      bool // the other fields are set only if it is true
	Newer       error
	Faults      []*kv.ConfigError // every setting that makes locking unsafe
	Memory      bool              // kept in memory, not in files
	Replicas    int
	Clustered   bool
	Leader      string                // "" = no leader, if Clustered
	Peers       []*jetstream.PeerInfo // the replicas without the leader
	Incarnation string
	Schema      int
	Shards      int    // of the fabric
	FirstSeq    uint64 // the first revision, as configured
	LastSeq     uint64
	Consumers   Usage // of the bucket's own limit
	Bytes       Usage // of the bucket's own limit
	// Clock is how far the clock of the server that answered is ahead of this host's,
	// with an error of at most ClockError, half of the round trip.
	Clock, ClockError time.Duration
}

// Foreign reports whether another program made the bucket, so that its content has no meaning here.
func (s *BucketState) Foreign() bool { return len(s.Faults) == 1 && s.Faults[0].Field == fieldSchema }

// Bucket returns the state of one of the fabric's buckets. A missing bucket is no
// error. Errors: kv.ErrNoJetStream, kv.ErrUnavailable.
func (x *Examiner) Bucket(ctx context.Context, name string) (BucketState, error) {
	s := BucketState{Bucket: name}
	asked := time.Now()
	stream, err := x.js.Stream(ctx, streamName(name))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return s, nil
	}
	if err != nil {
		return s, openError("bucket "+name, err)
	}
	info := stream.CachedInfo()
	s.Exists = true
	s.ClockError = time.Since(asked) / 2
	s.Clock = info.TimeStamp.Sub(asked.Add(s.ClockError))
	s.Memory = info.Config.Storage == jetstream.MemoryStorage
	s.Faults, s.Newer = Config{Fabric: x.cfg.Fabric, Memory: s.Memory}.faults(name, info.Config)
	s.Replicas = info.Config.Replicas
	s.Schema, _ = strconv.Atoi(info.Config.Metadata[metaSchema])
	s.Shards = shardsOf(info.Config)
	s.Incarnation = info.Config.Metadata[metaIncarnation]
	s.FirstSeq, s.LastSeq = info.Config.FirstSeq, info.State.LastSeq
	s.Consumers = Usage{"consumers", int64(info.State.Consumers), int64(info.Config.MaxConsumers)}
	s.Bytes = Usage{"bytes", int64(info.State.Bytes), info.Config.MaxBytes}
	if info.Cluster != nil && info.Cluster.Name != "" {
		s.Clustered, s.Leader, s.Peers = true, info.Cluster.Leader, info.Cluster.Replicas
	}
	return s, nil
}

// Note is the fabric's own note of one shard, with data from the leases.
type Note struct {
	Exists      bool
	Incarnation string        // of the noted locks bucket
	Quarantine  time.Duration // how long a process that opens another locks bucket grants nothing
	HighWater   uint64        // the highest noted revision of the locks bucket
}

// Note reads the fabric's note of a shard. Errors: kv.ErrUnsafeConfig if it can't be read,
// kv.ErrNewerSchema, kv.ErrUnavailable.
func (x *Examiner) Note(ctx context.Context, s int) (Note, error) {
	b, err := x.Open(ctx, kv.LeasesBucket(x.cfg.Fabric))
	if err != nil {
		return Note{}, err
	}
	noted, seen, err := highWater(ctx, b, s)
	if err != nil {
		return Note{}, err
	}
	high := max(noted, seen)
	e, err := b.Get(ctx, kv.MetaKey)
	if err != nil || e.Deleted {
		return Note{HighWater: high}, err
	}
	m, err := b.parseNote(e)
	if err != nil {
		return Note{HighWater: high}, err
	}
	return Note{Exists: true, Incarnation: m.shard(s).Incarnation, Quarantine: m.quarantine(), HighWater: high}, nil
}

// Open returns an existing bucket for reading, whatever its configuration. Don't
// write to it. Errors: kv.ErrUnavailable.
func (x *Examiner) Open(ctx context.Context, name string) (*Bucket, error) {
	view, err := x.js.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", kv.ErrUnavailable, name, err)
	}
	return newBucket(x.nc, x.js, view, name, x.cfg.Request), nil
}

// headerUpdate lists the last updates of a key, the message's own first, as "id@base": base is the
// revision that the update replaced. So an update without an answer can be found below later ones.
const headerUpdate = "Lockfabric-Update"

// maxListed is how many updates a message lists.
const maxListed = 8

// ErrUnsuitable says that values in this bucket can't be updated safely.
var ErrUnsuitable = errors.New("kv: unsuitable bucket")

var bucketName = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// UserBucket is a KV bucket of the user whose values are updated by compare-and-set.
type UserBucket struct {
	b             *Bucket
	markersExpire bool // delete markers expire, so revision 0 comes back
}

// OpenUser opens an existing bucket. Errors: ErrUnsuitable; kv.ErrUnavailable if nobody answers, or
// the credentials don't allow it.
func OpenUser(ctx context.Context, nc *nats.Conn, request Requester, name string) (*UserBucket, error) {
	if !bucketName.MatchString(name) {
		return nil, fmt.Errorf("%w: %q is no name of one", ErrUnsuitable, name)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	s, err := retryUnanswered(ctx, new(link), func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, streamName(name)) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: %s does not exist", ErrUnsuitable, name)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", kv.ErrUnavailable, name, err)
	}
	cfg := s.CachedInfo().Config
	switch {
	case cfg.Metadata[metaIncarnation] != "" || cfg.Metadata[metaSchema] != "":
		return nil, fmt.Errorf("%w: %s has the locks' own records", ErrUnsuitable, name)
	case cfg.Mirror != nil:
		return nil, fmt.Errorf("%w: %s is a mirror: use the bucket that it mirrors", ErrUnsuitable, name)
	case cfg.MaxAge > 0:
		return nil, fmt.Errorf("%w: the values of %s expire (max age %v)", ErrUnsuitable, name, cfg.MaxAge)
	case cfg.Discard != jetstream.DiscardNew && (cfg.MaxBytes > 0 || cfg.MaxMsgs > 0):
		return nil, fmt.Errorf("%w: %s drops its oldest values when it is full", ErrUnsuitable, name)
	}
	return &UserBucket{b: newBucket(nc, js, nil, name, request), markersExpire: cfg.AllowMsgTTL}, nil
}

// UserEntry is the state of a user's key.
type UserEntry struct {
	Value    []byte // nil if there is none
	Revision uint64
	updates  []listedUpdate
}

// listedUpdate is an update in the list of a message.
type listedUpdate struct {
	id   string
	base uint64 // the revision that it replaced
	rev  uint64 // the revision that it made
}

// Get reads the key from the stream's leader. Errors are those of [Bucket.Get], and kv.ErrRejected for an invalid key.
func (u *UserBucket) Get(ctx context.Context, key string) (UserEntry, error) {
	if !validKey(key) {
		return UserEntry{}, fmt.Errorf("%w: %q is no key", kv.ErrRejected, key)
	}
	e, header, err := u.b.get(ctx, key)
	if err != nil {
		return UserEntry{}, err
	}
	if e.Value == nil && !e.Deleted {
		e.Value = []byte{}
	}
	return UserEntry{Value: e.Value, Revision: e.Revision, updates: parseListed(header, e.Revision)}, nil
}

// parseListed reads the list from a stored message's header block. It stops at the first invalid element.
func parseListed(header []byte, rev uint64) (all []listedUpdate) {
	h, err := nats.DecodeHeadersMsg(header)
	if err != nil {
		return nil
	}
	for f := range strings.FieldsSeq(h.Get(headerUpdate)) {
		id, text, ok := strings.Cut(f, "@")
		base, err := strconv.ParseUint(text, 10, 64)
		if !ok || id == "" || err != nil || base >= rev {
			break
		}
		all = append(all, listedUpdate{id, base, rev})
		rev = base
	}
	return all[:min(len(all), maxListed)]
}

// Replace writes value over the entry that was read, as the update id. Errors are those of [Bucket.Update]. After an error the write may
// be, or may become, committed, even after ErrConflict and ErrBusy, which can come from a deposed leader: see [UserBucket.Outcome].
// The exceptions are kv.ErrRejected of the first attempt, and ErrNotSent without ErrConnectionClosed.
func (u *UserBucket) Replace(ctx context.Context, key string, value []byte, id string, over UserEntry) (uint64, error) {
	list := make([]string, 1, maxListed)
	list[0] = id + "@" + strconv.FormatUint(over.Revision, 10)
	for _, l := range over.updates[:min(len(over.updates), maxListed-1)] {
		list = append(list, l.id+"@"+strconv.FormatUint(l.base, 10))
	}
	m := newMessage()
	m.Header[headerUpdate] = []string{strings.Join(list, " ")}
	return u.b.write(ctx, m, nil, key, value, over.Revision)
}

// Outcome is what a later read shows of an update.
type Outcome int

// The outcomes.
const (
	UpdateOpen   Outcome = iota // it may still be written; a repetition can't write it twice
	UpdateDone                  // it was written
	UpdateBeaten                // another update has replaced its base: it will never be written
	UpdateHidden                // unknown: somebody else wrote, or there were 8 updates since
)

// Outcome returns the outcome of the update id of revision base, by an entry that was read after Replace, and the
// revision that the update made.
func (u *UserBucket) Outcome(now UserEntry, id string, base uint64) (o Outcome, rev uint64) {
	i := slices.IndexFunc(now.updates, func(l listedUpdate) bool { return l.base == base })
	switch {
	case i >= 0 && now.updates[i].id == id:
		return UpdateDone, now.updates[i].rev
	case base == 0 && u.markersExpire:
		return UpdateHidden, 0 // it may have been written and deleted since
	case i >= 0:
		return UpdateBeaten, 0
	case now.Revision <= base:
		return UpdateOpen, 0
	}
	return UpdateHidden, 0
}
