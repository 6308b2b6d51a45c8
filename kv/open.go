package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// apiLevel is the JetStream API level of nats-server 2.12, the first with
// atomic batches.
const apiLevel = 2

// MinServer is the oldest nats-server that has what safe locking needs.
const MinServer = "2.12.0"

// apiTimeout bounds one administrative request, and openTimeout all repetitions
// of one.
const (
	apiTimeout  = 5 * time.Second
	openTimeout = 15 * time.Second
)

const (
	// codeStreamNameInUse answers a creation when the stream exists with another
	// configuration, be it only that its leader is not elected yet.
	codeStreamNameInUse = 10058
	// codeClusterNotAvailable is the answer while the cluster has no leader.
	codeClusterNotAvailable = 10008
	// codeNotLeader and codeNotActive are given by a server that is starting.
	codeNotLeader = 10009
	codeNotActive = 10006
)

// noteTimeout bounds one request for the fabric's note.
const noteTimeout = 2 * time.Second

// MetaKey is the key in the leases bucket under which the fabric's own note is
// kept. No lease has this name.
const MetaKey = "_fabric"

// Buckets are the opened buckets of one fabric.
type Buckets struct {
	Locks  *Bucket
	Leases *Bucket

	// Quarantine is how long nothing may be granted, from the moment Open
	// returned: 0 normally, the longest lease's life when the locks bucket is
	// not the one that was noted, because holders of the lost bucket's locks
	// may not know yet. Call ConfirmIncarnation afterwards.
	Quarantine time.Duration
}

// meta is the fabric's note in the leases bucket.
type meta struct {
	Version     int    `json:"v"`
	Incarnation string `json:"incarnation"`
	LongestTTL  int64  `json:"longest_ttl"` // milliseconds
	HighWater   uint64 `json:"high_water"`  // revision of the locks bucket
}

// Open opens the buckets of a fabric and creates those that do not exist.
//
// They are created as streams with what the KV API does not offer: leader reads
// only, TTLs on single messages and on delete markers, atomic batches, no
// discarding of old records, a consumer limit above the server's default, and a
// first revision taken from the clock, so that revisions, which are fencing
// tokens, keep rising when a bucket is deleted and created again.
//
// Errors: ErrInvalidOption, ErrUnsafeConfig (*ConfigError), ErrNewerSchema, ErrLimit,
// ErrNoBucket, ErrNoJetStream, ErrServerTooOld, ErrUnavailable. Nothing is
// changed on error, except that the first bucket may already exist.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Buckets, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if n := nc.MaxPayload(); n > 0 && n < MinPayload { // 0: was never connected
		return nil, fmt.Errorf("%w: max_payload is %d bytes for this connection; at least %d are needed", ErrLimit, n, MinPayload)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	l := &link{clustered: nc.ConnectedClusterName() != ""}
	noFloor := func(context.Context) (uint64, error) { return 0, nil }
	leases, err := openBucket(ctx, l, nc, js, cfg, LeasesBucket(cfg.Fabric), noFloor)
	if err != nil {
		return nil, err
	}
	floor := func(ctx context.Context) (uint64, error) { return highWater(ctx, leases) }
	locks, err := openBucket(ctx, l, nc, js, cfg, LocksBucket(cfg.Fabric), floor)
	if err != nil {
		return nil, err
	}
	b := &Buckets{Locks: locks, Leases: leases}
	m, known, err := b.note(ctx, func(m *meta) bool {
		if m.Incarnation != "" {
			return false
		}
		m.Incarnation = locks.incarnation
		return true
	})
	if err != nil {
		return nil, err
	}
	if known && m.Incarnation != locks.incarnation {
		b.Quarantine = m.quarantine()
	}
	return b, nil
}

// ConfirmIncarnation notes the present locks bucket as the fabric's, after the
// quarantine has been waited out. Errors are those of a write.
func (b *Buckets) ConfirmIncarnation(ctx context.Context) error {
	_, _, err := b.note(ctx, func(m *meta) bool {
		changed := m.Incarnation != b.Locks.incarnation
		m.Incarnation = b.Locks.incarnation
		return changed
	})
	return err
}

// NoteTTL notes that leases of this length are in use. It writes only when ttl
// is longer than every one before. Errors are those of a write.
func (b *Buckets) NoteTTL(ctx context.Context, ttl time.Duration, seen uint64) error {
	ms := (ttl + time.Millisecond - 1).Milliseconds()
	_, _, err := b.note(ctx, func(m *meta) bool {
		if ms <= m.LongestTTL {
			return false
		}
		m.LongestTTL = ms
		m.HighWater = max(m.HighWater, seen)
		return true
	})
	return err
}

// Verify returns ErrBucketGone when a bucket is not the one that was opened, or does
// not exist any more, and ErrUnavailable when nothing was found out.
func (b *Buckets) Verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for _, bucket := range []*Bucket{b.Locks, b.Leases} {
		s, err := insist(ctx, bucket.link, func(ctx context.Context) (jetstream.Stream, error) { return bucket.js.Stream(ctx, bucket.stream) })
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %s", ErrBucketGone, bucket.name)
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUnavailable, bucket.name, err)
		}
		if s.CachedInfo().Config.Metadata[metaIncarnation] != bucket.incarnation {
			return fmt.Errorf("%w: %s was created again", ErrBucketGone, bucket.name)
		}
	}
	return nil
}

// note reads the fabric's note, lets edit change it, and writes it back by CAS
// until that succeeds or edit has nothing to change. known is false when there
// was no note before.
func (b *Buckets) note(ctx context.Context, edit func(*meta) bool) (m meta, known bool, err error) {
	for attempt := 0; ; attempt++ {
		e, err := insist(ctx, b.Leases.link, func(ctx context.Context) (Entry, error) { return b.Leases.Get(ctx, MetaKey) })
		if err != nil {
			return meta{}, false, err
		}
		m = meta{Version: Schema}
		if known = !e.Deleted; known {
			if m, err = b.Leases.parseNote(e); err != nil {
				return meta{}, false, err
			}
		}
		if !edit(&m) {
			return m, known, nil
		}
		value, err := json.Marshal(m)
		if err != nil {
			return meta{}, false, err
		}
		wctx, cancel := context.WithTimeout(ctx, min(b.Leases.link.wait()<<attempt, noteTimeout))
		_, err = b.Leases.Update(wctx, MetaKey, value, e.Revision, 0)
		cancel()
		if err == nil {
			return m, known, nil
		}
		// Every outcome but success is settled by reading again: the edit is
		// idempotent.
		if attempt >= 20 || ctx.Err() != nil || errors.Is(err, ErrRejected) {
			return meta{}, false, err
		}
		pause(ctx, time.Duration(attempt+1)*2*time.Millisecond)
	}
}

func (b *Bucket) parseNote(e Entry) (meta, error) {
	m := meta{Version: Schema}
	if err := json.Unmarshal(e.Value, &m); err != nil {
		return meta{}, &ConfigError{Bucket: b.name, Field: MetaKey, Value: "unreadable", Want: "JSON",
			Remedy: "restore it, or delete the key while nobody holds a lock"}
	}
	if m.Version > Schema {
		return meta{}, fmt.Errorf("%w: %s in bucket %s has version %d", ErrNewerSchema, MetaKey, b.name, m.Version)
	}
	return m, nil
}

// quarantine is how long nothing is granted in a locks bucket that was not noted.
func (m meta) quarantine() time.Duration {
	longest := time.Duration(m.LongestTTL) * time.Millisecond
	return longest + longest/20 + time.Second
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// highWater returns the highest revision of the locks bucket that the leases
// bucket knows of: in the fabric's note, or seen by any lease's owner. It reads all
// leases and tombstones, a day's worth: too much for every opening.
func highWater(ctx context.Context, leases *Bucket) (uint64, error) {
	var high uint64
	err := leases.Entries(ctx, ">", func(e Entry) bool {
		var seen struct {
			Seen      uint64 `json:"seen"`
			HighWater uint64 `json:"high_water"`
		}
		if json.Unmarshal(e.Value, &seen) == nil {
			high = max(high, seen.Seen, seen.HighWater)
		}
		return true
	})
	return high, err
}

// openBucket opens a bucket, or creates it with revisions above floor, which is
// asked only then.
func openBucket(ctx context.Context, l *link, nc *nats.Conn, js jetstream.JetStream, cfg Config, name string, floor func(context.Context) (uint64, error)) (*Bucket, error) {
	sc, err := ensureStream(ctx, l, nc, js, cfg, name, floor)
	if err != nil {
		return nil, err
	}
	if err := cfg.check(name, sc); err != nil {
		return nil, err
	}
	view, err := insist(ctx, l, func(ctx context.Context) (jetstream.KeyValue, error) { return js.KeyValue(ctx, name) })
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", ErrUnavailable, name, err)
	}
	b := newBucket(nc, js, view, name, cfg.Trip)
	b.link, b.incarnation = l, sc.Metadata[metaIncarnation]
	return b, nil
}

func newBucket(nc *nats.Conn, js jetstream.JetStream, view jetstream.KeyValue, name string, trip RoundTripper) *Bucket {
	if trip == nil {
		trip = nc.RequestMsgWithContext
	}
	return &Bucket{
		nc: nc, js: js, kv: view,
		name:   name,
		stream: streamName(name),
		prefix: subjectPrefix(name),
		getAPI: apiMessageGet + streamName(name),
		trip:   trip,
	}
}

// ensureStream returns the configuration of the bucket's stream, creating it
// if it does not exist.
func ensureStream(ctx context.Context, l *link, nc *nats.Conn, js jetstream.JetStream, cfg Config, name string, floor func(context.Context) (uint64, error)) (jetstream.StreamConfig, error) {
	var none jetstream.StreamConfig
	existing := func(ctx context.Context) (jetstream.StreamConfig, error) {
		s, err := js.Stream(ctx, streamName(name))
		if err != nil {
			return none, err
		}
		return s.CachedInfo().Config, nil
	}
	sc, err := insist(ctx, l, existing)
	if err == nil {
		return sc, nil
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return none, openError(name, err)
	}
	// Who may not ask hears nothing: that is no reason to wait for long.
	actx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err := insist(actx, l, js.AccountInfo)
	if err != nil {
		return none, openError("account", err)
	}
	if info.API.Level < apiLevel {
		return none, tooOld(info.API.Level)
	}
	high, err := floor(ctx)
	if err != nil {
		return none, err
	}
	first := max(uint64(time.Now().UnixMicro()), high) + 1
	want := cfg.streamConfig(name, nuid.Next(), first, cfg.replicas(nc))
	buckets := 1
	if name == LeasesBucket(cfg.Fabric) {
		buckets = 2 // the other one comes after it
	}
	if err := fit(&want, info, buckets); err != nil {
		return none, fmt.Errorf("%w (bucket %s)", err, name)
	}
	cctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	// Asked again with the same words, it is the same stream. Somebody else may have
	// created it in the meantime, with another first revision; theirs counts. On a
	// cluster it may take a moment until it is found.
	sc, err = insist(cctx, l, func(ctx context.Context) (jetstream.StreamConfig, error) {
		s, err := js.CreateStream(ctx, want)
		if err == nil {
			return s.CachedInfo().Config, nil
		}
		var refused *jetstream.APIError
		if !errors.As(err, &refused) || refused.ErrorCode != codeStreamNameInUse {
			return none, err
		}
		sc, err := existing(ctx)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			err = context.DeadlineExceeded // not yet
		}
		return sc, err
	})
	if err == nil {
		return sc, nil
	}
	if limit := limitError(err); limit != nil {
		return none, fmt.Errorf("%w (bucket %s with %d replica(s))", limit, name, want.Replicas)
	}
	if sc, again := insist(ctx, l, existing); again == nil {
		return sc, nil // we may not create it, and somebody else just did
	} else if !errors.Is(again, jetstream.ErrStreamNotFound) {
		// Nobody knows: a server that went away meanwhile, for example. It is not
		// for want of credentials.
		return none, openError(name, again)
	}
	return none, fmt.Errorf("%w: bucket %s with %d replica(s): %w", ErrNoBucket, name, want.Replicas, err)
}

// insist repeats a request while nobody answers it: a stream that was created a
// moment ago, or has just lost its leader, does not answer, and a request that
// met it then is never answered.
func insist[T any](ctx context.Context, l *link, request func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	begun := time.Now()
	for wait := l.wait(); ; wait = min(2*wait, apiTimeout) {
		sent := time.Now()
		actx, cancel := context.WithTimeout(ctx, wait)
		got, err := request(actx)
		again := unanswered(err) || l.starting(begun) && errors.Is(err, nats.ErrNoResponders)
		if !again {
			l.answered(time.Since(sent))
		}
		if err == nil || ctx.Err() != nil || !again {
			cancel()
			return got, err
		}
		<-actx.Done() // an error that came early must not make this spin
		cancel()
	}
}

func unanswered(err error) bool {
	var refused *jetstream.APIError
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.As(err, &refused) && (refused.ErrorCode == codeClusterNotAvailable || refused.ErrorCode == codeNotLeader || refused.ErrorCode == codeNotActive)
}

func tooOld(level int) error {
	return fmt.Errorf("%w: its JetStream API level is %d, needed is %d (nats-server 2.12 or newer)", ErrServerTooOld, level, apiLevel)
}

func openError(what string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: %s: %w", ErrNoJetStream, what, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, what, err)
}
