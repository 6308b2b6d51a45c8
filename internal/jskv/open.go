package jskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// apiLevel is the JetStream API level of nats-server 2.12, the first with atomic batches.
const apiLevel = 2

// apiTimeout bounds one administrative request, and openTimeout all repetitions of one.
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

// noteEvery is how many writes of locks may pass until their revision is noted.
const noteEvery = 1 << 16

// noteTimeout bounds one request for the fabric's note.
const noteTimeout = 2 * time.Second

// Buckets are the opened buckets of one fabric.
type Buckets struct {
	Locks  *Bucket
	Leases *Bucket

	// Quarantine is how long nothing may be granted, from the moment Open returned: 0 normally, the longest lease's
	// life when the locks bucket is not the one that was noted or was set back, because holders of the lost bucket's
	// locks may not know yet. Call ConfirmIncarnation afterwards.
	Quarantine time.Duration

	// Last is a revision of the locks bucket up to which all are certainly this bucket's; see Verify.
	Last uint64

	cfg Config
}

// meta is the fabric's note in the leases bucket.
type meta struct {
	Version     int    `json:"v"`
	Incarnation string `json:"incarnation"`
	LongestTTL  int64  `json:"longest_ttl"`      // milliseconds
	HighWater   uint64 `json:"high_water"`       // revision of the locks bucket
	Sweeps      uint64 `json:"sweeps,omitempty"` // how often dead entries were collected
}

// Open opens the buckets of a fabric and creates those that do not exist.
//
// They are created as streams with what the KV API does not offer: leader reads only, TTLs on single messages and on
// delete markers, atomic batches, no discarding of old records, a consumer limit above the server's default, and a
// first revision taken from the clock, so that revisions, which are fencing tokens, keep rising when a bucket is
// deleted and created again.
//
// A locks bucket whose revisions are below what was seen, because it was restored
// or replaced by hand, is emptied and its revisions are moved up.
//
// Errors: kv.ErrInvalidOption, kv.ErrUnsafeConfig (*kv.ConfigError), kv.ErrNewerSchema, kv.ErrLimit,
// kv.ErrNoBucket, kv.ErrNoJetStream, kv.ErrServerTooOld, kv.ErrUnavailable. Nothing is
// changed on error, except that the first bucket may already exist.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Buckets, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if n := nc.MaxPayload(); n > 0 && n < kv.MinPayload { // 0: was never connected
		return nil, fmt.Errorf("%w: max_payload is %d bytes for this connection; at least %d are needed", kv.ErrLimit, n, kv.MinPayload)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	for attempt := 1; ; attempt++ {
		b, err := openBuckets(ctx, nc, js, cfg)
		if !errors.Is(err, errMoved) || attempt == 5 {
			return b, err
		}
		pause.For(ctx, time.Duration(attempt)*20*time.Millisecond)
	}
}

func openBuckets(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, cfg Config) (*Buckets, error) {
	l := &link{clustered: nc.ConnectedClusterName() != ""}
	leases, err := openBucket(ctx, l, nc, js, cfg, kv.LeasesBucket(cfg.Fabric), noFloor)
	if err != nil {
		return nil, err
	}
	floor := func(ctx context.Context) (uint64, error) {
		noted, seen, err := highWater(ctx, leases)
		return max(noted, seen, cfg.Seen), err
	}
	locks, err := openBucket(ctx, l, nc, js, cfg, kv.LocksBucket(cfg.Fabric), floor)
	if err != nil {
		return nil, err
	}
	b := &Buckets{Locks: locks, Leases: leases, Last: locks.last, cfg: cfg}
	if locks.unused {
		// Together with the others, if that works: whoever needs it later may not be allowed to make it.
		wctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, _ = b.Waits(wctx)
		cancel()
	}
	m, known, err := b.note(ctx, func(m *meta) bool {
		first := m.Incarnation == ""
		if first {
			m.Incarnation = locks.incarnation
		}
		if m.Incarnation != locks.incarnation || b.Last <= m.HighWater+noteEvery {
			return first
		}
		m.HighWater = b.Last
		return true
	})
	if err != nil {
		return nil, err
	}
	seen := m.HighWater
	if m.Incarnation == setBack {
		seen-- // where it is to be moved up to: seen by nobody yet
	}
	seen = max(seen, cfg.Seen)
	if replaced := known && m.Incarnation != locks.incarnation; replaced || b.Last < seen {
		b.Quarantine = m.quarantine()
		_, byLeases, err := highWater(ctx, leases)
		if err != nil {
			return nil, err
		}
		if seen = max(seen, byLeases); b.Last < seen {
			if err := b.raise(ctx, seen); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// NoteSeen notes a revision of the locks bucket, so that whoever opens the fabric
// knows whether it was set back. Errors are those of a write.
func (b *Buckets) NoteSeen(ctx context.Context, seen uint64) error {
	_, _, err := b.note(ctx, func(m *meta) bool {
		if m.Incarnation != b.Locks.incarnation || seen < m.HighWater+noteEvery {
			return false // of another bucket, or noted by somebody else
		}
		m.HighWater = seen
		return true
	})
	return err
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

// note reads the fabric's note, lets edit change it, and writes it back by CAS until that succeeds or edit has
// nothing to change. known is false when there was no note before.
func (b *Buckets) note(ctx context.Context, edit func(*meta) bool) (m meta, known bool, err error) {
	for attempt := 0; ; attempt++ {
		e, err := retryUnanswered(ctx, b.Leases.link, func(ctx context.Context) (Entry, error) { return b.Leases.Get(ctx, kv.MetaKey) })
		if err != nil {
			return meta{}, false, err
		}
		m = meta{Version: kv.Schema}
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
		_, err = b.Leases.Update(wctx, kv.MetaKey, value, e.Revision, 0)
		cancel()
		if err == nil {
			return m, known, nil
		}
		// Every outcome but success is settled by reading again: the edit is idempotent.
		if attempt >= 20 || ctx.Err() != nil || errors.Is(err, kv.ErrRejected) {
			return meta{}, false, err
		}
		pause.For(ctx, time.Duration(attempt+1)*2*time.Millisecond)
	}
}

func (b *Bucket) parseNote(e Entry) (meta, error) {
	m := meta{Version: kv.Schema}
	if err := json.Unmarshal(e.Value, &m); err != nil {
		return meta{}, &kv.ConfigError{Bucket: b.name, Field: kv.MetaKey, Value: "unreadable", Want: "JSON",
			Remedy: "restore it, or delete the key while nobody holds a lock"}
	}
	if m.Version > kv.Schema {
		return meta{}, fmt.Errorf("%w: %s in bucket %s has version %d", kv.ErrNewerSchema, kv.MetaKey, b.name, m.Version)
	}
	return m, nil
}

// quarantine is how long nothing is granted in a locks bucket that was not noted.
func (m meta) quarantine() time.Duration {
	longest := time.Duration(m.LongestTTL) * time.Millisecond
	return longest + longest/20 + time.Second
}

// highWater returns the highest revision of the locks bucket that is in the fabric's note, and the highest that any
// lease's owner has seen. It reads all leases and tombstones, a day's worth: too much for every opening.
func highWater(ctx context.Context, leases *Bucket) (noted, seen uint64, err error) {
	err = leases.Entries(ctx, ">", func(e Entry) bool {
		var high struct {
			Seen  uint64 `json:"seen"`
			Noted uint64 `json:"high_water"`
		}
		if json.Unmarshal(e.Value, &high) == nil {
			noted, seen = max(noted, high.Noted), max(seen, high.Seen)
		}
		return true
	})
	return noted, seen, err
}

// noFloor is that of a bucket whose revisions need not rise when it is made again.
func noFloor(context.Context) (uint64, error) { return 0, nil }

// openBucket opens a bucket, or creates it with revisions above floor, which is asked only then.
func openBucket(ctx context.Context, l *link, nc *nats.Conn, js jetstream.JetStream, cfg Config, name string, floor func(context.Context) (uint64, error)) (*Bucket, error) {
	info, err := ensureStream(ctx, l, nc, js, cfg, name, floor)
	if err != nil {
		return nil, err
	}
	if err := cfg.check(name, info.Config); err != nil {
		return nil, err
	}
	view, err := retryUnanswered(ctx, l, func(ctx context.Context) (jetstream.KeyValue, error) {
		view, err := js.KeyValue(ctx, name)
		if errors.Is(err, jetstream.ErrBucketNotFound) {
			err = context.DeadlineExceeded // it was there: another server that answers knows it soon
		}
		return view, err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", kv.ErrUnavailable, name, err)
	}
	b := newBucket(nc, js, view, name, cfg.Trip)
	b.link, b.incarnation, b.atomic = l, info.Config.Metadata[metaIncarnation], info.Config.AllowAtomicPublish
	b.batches = b.atomic && info.Config.Replicas > 1
	b.last = max(info.State.LastSeq, info.Config.FirstSeq-min(info.Config.FirstSeq, 1))
	b.unused = info.State.LastSeq < info.Config.FirstSeq
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

// ensureStream returns what is known of the bucket's stream, creating it if it does not exist.
func ensureStream(ctx context.Context, l *link, nc *nats.Conn, js jetstream.JetStream, cfg Config, name string, floor func(context.Context) (uint64, error)) (*jetstream.StreamInfo, error) {
	existing := func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := js.Stream(ctx, streamName(name))
		if err != nil {
			return nil, err
		}
		return s.CachedInfo(), nil
	}
	info, err := retryUnanswered(ctx, l, existing)
	if err == nil {
		return info, nil
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, openError(name, err)
	}
	// Who may not ask hears nothing: that is no reason to wait for long.
	actx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	account, err := retryUnanswered(actx, l, js.AccountInfo)
	if err != nil {
		return nil, openError("account", err)
	}
	if account.API.Level < apiLevel {
		return nil, tooOld(account.API.Level)
	}
	high, err := floor(ctx)
	if err != nil {
		return nil, err
	}
	first := uint64(time.Now().UnixMicro()) + 1
	if high > 0 {
		first = max(first, high+gap)
	}
	want := cfg.streamConfig(name, nuid.Next(), first, cfg.replicas(nc))
	buckets := 1
	if name == kv.LeasesBucket(cfg.Fabric) {
		buckets = 2 // the other one comes after it
	}
	if err := fit(&want, account, buckets); err != nil {
		return nil, fmt.Errorf("%w (bucket %s)", err, name)
	}
	cctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	// Asked again with the same words, it is the same stream. Somebody else may have created it in the meantime, with
	// another first revision; theirs counts. On a cluster it may take a moment until it is found.
	info, err = retryUnanswered(cctx, l, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := js.CreateStream(ctx, want)
		if err == nil {
			return s.CachedInfo(), nil
		}
		var refused *jetstream.APIError
		if !errors.As(err, &refused) || refused.ErrorCode != codeStreamNameInUse {
			return nil, err
		}
		info, err := existing(ctx)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			err = context.DeadlineExceeded // not yet
		}
		return info, err
	})
	if err == nil {
		return info, nil
	}
	if limit := limitError(err); limit != nil {
		return nil, fmt.Errorf("%w (bucket %s with %d replica(s))", limit, name, want.Replicas)
	}
	if info, again := retryUnanswered(ctx, l, existing); again == nil {
		return info, nil // we may not create it, and somebody else just did
	} else if !errors.Is(again, jetstream.ErrStreamNotFound) {
		// Nobody knows: a server that went away meanwhile, for example. It is not for want of credentials.
		return nil, openError(name, again)
	}
	return nil, fmt.Errorf("%w: bucket %s with %d replica(s): %w", kv.ErrNoBucket, name, want.Replicas, err)
}

// retryUnanswered repeats a request while nobody answers it: a stream that was created a moment ago, or has just lost its
// leader, does not answer, and a request that met it then is never answered.
func retryUnanswered[T any](ctx context.Context, l *link, request func(context.Context) (T, error)) (T, error) {
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
	return fmt.Errorf("%w: its JetStream API level is %d, needed is %d (nats-server 2.12 or newer)", kv.ErrServerTooOld, level, apiLevel)
}

func openError(what string, err error) error {
	kind := kv.ErrUnavailable
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) || errors.Is(err, nats.ErrNoResponders) {
		kind = kv.ErrNoJetStream
	}
	return fmt.Errorf("%w: %s: %w", kind, what, err)
}
