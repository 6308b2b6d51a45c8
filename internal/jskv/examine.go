package jskv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

const (
	apiStreamInfo = "$JS.API.STREAM.INFO."
	apiMessageGet = "$JS.API.STREAM.MSG.GET."
)

// Examiner looks at a fabric without opening it: it creates nothing, writes
// nothing, and copes with buckets that Open refuses.
type Examiner struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	cfg Config
}

// NewExaminer returns an Examiner. Of cfg, Replicas and Memory are not used:
// what a bucket has is told by its state. The error is kv.ErrInvalidOption.
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

// Usage is how much of one resource an account has in use.
type Usage struct {
	Resource string // "file storage", "memory storage", "streams", "consumers" or "bytes"
	Used     int64  // bytes, or a number
	Limit    int64  // 0 or less = none
}

// AccountState is what JetStream tells about the connection's account.
type AccountState struct {
	APILevel int
	TooOld   error // kv.ErrServerTooOld, or nil
	Usage    []Usage

	info *jetstream.AccountInfo
}

// Room returns kv.ErrLimit, with the limit and its figure, when the account has no room
// for this many new buckets, and else nil.
func (x *Examiner) Room(s AccountState, buckets int) error {
	if buckets == 0 {
		return nil
	}
	sc := x.cfg.streamConfig(kv.LocksBucket(x.cfg.Fabric), "", 1, x.cfg.replicas(x.nc))
	return fit(&sc, s.info, buckets)
}

// Account asks for the account's state. Errors: kv.ErrNoJetStream, kv.ErrUnavailable,
// and the context's within them.
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

// BucketState is what is known of one bucket.
type BucketState struct {
	Bucket      string
	Exists      bool // the other fields are set only then
	Newer       error
	Faults      []*kv.ConfigError // every setting under which locking is not safe
	Memory      bool              // kept in memory, not in files
	Replicas    int
	Clustered   bool
	Leader      string                // "" = there is none, when Clustered
	Peers       []*jetstream.PeerInfo // the replicas but the leader
	Incarnation string
	FirstSeq    uint64 // the first revision, as configured
	LastSeq     uint64
	Consumers   Usage // of the bucket's own limit
	Bytes       Usage // of the bucket's own limit
	// Clock is how far the clock of the server that answered is ahead of this host's,
	// right to within ClockError, half of the round trip.
	Clock, ClockError time.Duration
}

// Foreign reports whether the bucket was made by something else than this
// package, so that its content means nothing.
func (s *BucketState) Foreign() bool {
	return len(s.Faults) == 1 && s.Faults[0].Field == fieldSchema
}

// Bucket returns the state of one of the fabric's buckets. That it does not exist is no
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
	s.Incarnation = info.Config.Metadata[metaIncarnation]
	s.FirstSeq, s.LastSeq = info.Config.FirstSeq, info.State.LastSeq
	s.Consumers = Usage{"consumers", int64(info.State.Consumers), int64(info.Config.MaxConsumers)}
	s.Bytes = Usage{"bytes", int64(info.State.Bytes), info.Config.MaxBytes}
	if info.Cluster != nil && info.Cluster.Name != "" {
		s.Clustered, s.Leader, s.Peers = true, info.Cluster.Leader, info.Cluster.Replicas
	}
	return s, nil
}

// Note is the fabric's own note, and what leases add to it.
type Note struct {
	Exists      bool
	Incarnation string        // of the locks bucket that was noted
	Quarantine  time.Duration // how long nothing is granted by whoever opens another one
	HighWater   uint64        // the highest revision of the locks bucket that anybody noted
}

// Note reads the fabric's note. Errors: kv.ErrUnsafeConfig when it can't be read,
// kv.ErrNewerSchema, kv.ErrUnavailable.
func (x *Examiner) Note(ctx context.Context) (Note, error) {
	b, err := x.Open(ctx, kv.LeasesBucket(x.cfg.Fabric))
	if err != nil {
		return Note{}, err
	}
	noted, seen, err := highWater(ctx, b)
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
	return Note{Exists: true, Incarnation: m.Incarnation, Quarantine: m.quarantine(), HighWater: high}, nil
}

// Open returns an existing bucket for reading, whatever its configuration. Don't
// write to it. Errors: kv.ErrUnavailable.
func (x *Examiner) Open(ctx context.Context, name string) (*Bucket, error) {
	view, err := x.js.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", kv.ErrUnavailable, name, err)
	}
	return newBucket(x.nc, x.js, view, name, x.cfg.Trip), nil
}
