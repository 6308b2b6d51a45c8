package jskv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// apiLevel is the JetStream API level of nats-server 2.12, the first with atomic batches.
const apiLevel = 2

// apiTimeout bounds one administrative request, openTimeout all repetitions of one.
const (
	apiTimeout  = 5 * time.Second
	openTimeout = 15 * time.Second
)

const (
	// codeStreamNameInUse answers a creation if the stream exists with another
	// configuration, or if only its leader is not elected yet.
	codeStreamNameInUse = 10058
	// codeClusterNotAvailable is the answer while the cluster has no leader.
	codeClusterNotAvailable = 10008
	// codeNotLeader and codeNotActive are answers of a server that is starting.
	codeNotLeader = 10009
	codeNotActive = 10006
	// codeNoPeers is the answer when there are too few servers for the replicas.
	codeNoPeers = 10005
)

// Buckets are the opened buckets of one fabric.
type Buckets struct {
	Locks  []*Bucket // one for each shard
	Leases *Bucket

	// Quarantine is how long nothing may be granted after Open returned: normally 0. It is the longest lease's
	// life if a locks bucket is not the noted one or was set back, because holders of locks in the lost bucket
	// may not know it yet. Call ConfirmIncarnation afterwards.
	Quarantine time.Duration

	cfg Config
}

// Open opens the buckets of a fabric and creates those that do not exist.
//
// It creates streams with settings that the KV API does not offer: leader reads only, TTLs on single messages and on
// delete markers, atomic batches, no discarding of old records, a consumer limit above the server's default, and a
// first revision taken from the clock. Because of the last one, revisions, which are fencing tokens, keep rising when a
// bucket is deleted and created again.
//
// If the revisions of a locks bucket are below those that were seen, because it was restored
// or replaced by hand, Open empties it and moves its revisions up.
//
// Errors: kv.ErrInvalidOption, kv.ErrUnsafeConfig (*kv.ConfigError), kv.ErrShards, kv.ErrNewerSchema, kv.ErrLimit,
// kv.ErrNoBucket, kv.ErrNoJetStream, kv.ErrServerTooOld, kv.ErrUnavailable. After an error nothing is
// changed, except that the first bucket may already exist.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Buckets, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if n := nc.MaxPayload(); n > 0 && n < kv.MinPayload { // 0: it was never connected
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
	wanted := cfg.Shards
	cfg.Shards = cmp.Or(wanted, cfg.Again, 1)
	leases, err := openBucket(ctx, l, nc, js, cfg, kv.LeasesBucket(cfg.Fabric), 1+cfg.Shards, noFloor)
	if err != nil {
		return nil, err
	}
	if err := leases.checkShards(cmp.Or(wanted, leases.shards)); err != nil {
		return nil, err
	}
	n := leases.shards
	cfg.Shards = n
	b := &Buckets{Leases: leases, cfg: cfg}
	for s, name := range kv.LocksBuckets(cfg.Fabric, n) {
		floor := func(ctx context.Context) (uint64, error) {
			noted, seen, err := highWater(ctx, leases, s)
			return max(noted, seen, cfg.seen(s, n)), err
		}
		locks, err := openBucket(ctx, l, nc, js, cfg, name, n-s, floor)
		if err == nil {
			err = locks.checkShards(n)
		}
		if err != nil {
			return nil, err
		}
		b.Locks = append(b.Locks, locks)
	}
	if b.Locks[n-1].wasEmpty {
		// Created with the others, if possible: a process that needs it later may not be allowed to create it.
		_, _ = pause.Within(ctx, 2*time.Second, b.Waits)
	}
	m, known, err := b.note(ctx, func(m *meta) (changed bool) {
		for s, locks := range b.Locks {
			o := m.shard(s)
			if o.Incarnation == "" {
				o.Incarnation, changed = locks.incarnation, true
			}
			if o.Incarnation == locks.incarnation && locks.last > o.HighWater+noteEvery {
				o.HighWater, changed = locks.last, true
			}
		}
		return changed
	})
	if err != nil {
		return nil, err
	}
	for s := range b.Locks {
		if err := b.examine(ctx, s, m, known); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// checkShards returns kv.ErrShards unless the bucket belongs to a fabric of n shards.
func (b *Bucket) checkShards(n int) error {
	if b.shards == n && n > 0 {
		return nil
	}
	return fmt.Errorf("%w: bucket %s is of a fabric of %d, not of %d: ask for that number, or for none; it can't be changed but by ending "+
		"all programs that use the fabric and deleting all its buckets", kv.ErrShards, b.name, b.shards, n)
}

// examine finds out whether a locks bucket was replaced or set back since it was noted. If its revisions are below
// those that were seen, it moves them up.
func (b *Buckets) examine(ctx context.Context, s int, m meta, known bool) error {
	locks, o := b.Locks[s], m.shard(s)
	seen := o.HighWater
	if o.Incarnation == setBackIncarnation {
		seen-- // this is the target of a move, which nobody has seen yet
	}
	seen = max(seen, b.cfg.seen(s, len(b.Locks)))
	if replaced := known && o.Incarnation != locks.incarnation; !replaced && locks.last >= seen {
		return nil
	}
	b.Quarantine = m.quarantine()
	_, byLeases, err := highWater(ctx, b.Leases, s)
	if err != nil {
		return err
	}
	if seen = max(seen, byLeases); locks.last < seen {
		return b.moveAbove(ctx, s, seen)
	}
	return nil
}

// noFloor is the floor of a bucket whose revisions need not rise when it is created again.
func noFloor(context.Context) (uint64, error) { return 0, nil }

// openBucket opens a bucket, or creates it with revisions above floor, which is called only then. missing is how many
// buckets may have to be created, with this one.
func openBucket(ctx context.Context, l *link, nc *nats.Conn, js jetstream.JetStream, cfg Config, name string, missing int, floor func(context.Context) (uint64, error)) (*Bucket, error) {
	info, err := ensureStream(ctx, l, nc, js, cfg, name, missing, floor)
	if err != nil {
		return nil, err
	}
	if err := cfg.check(name, info.Config); err != nil {
		return nil, err
	}
	view, err := retryUnanswered(ctx, l, func(ctx context.Context) (jetstream.KeyValue, error) {
		view, err := js.KeyValue(ctx, name)
		if errors.Is(err, jetstream.ErrBucketNotFound) {
			err = context.DeadlineExceeded // it exists: the server that answered will know it soon
		}
		return view, err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", kv.ErrUnavailable, name, err)
	}
	b := newBucket(nc, js, view, name, cfg.Request)
	b.link, b.incarnation, b.atomic = l, info.Config.Metadata[metaIncarnation], info.Config.AllowAtomicPublish
	b.shards = shardsOf(info.Config)
	b.batches = b.atomic && info.Config.Replicas > 1
	b.last = max(info.State.LastSeq, info.Config.FirstSeq-min(info.Config.FirstSeq, 1))
	b.wasEmpty = info.State.LastSeq < info.Config.FirstSeq
	return b, nil
}

func newBucket(nc *nats.Conn, js jetstream.JetStream, view jetstream.KeyValue, name string, request Requester) *Bucket {
	if request == nil {
		request = nc.RequestMsgWithContext
	}
	return &Bucket{
		nc: nc, js: js, kv: view,
		name:    name,
		stream:  streamName(name),
		prefix:  subjectPrefix(name),
		getAPI:  apiMessageGet + streamName(name),
		request: request,
		link:    new(link),
	}
}

// ensureStream returns the info of the bucket's stream, and creates the stream if it does not exist.
func ensureStream(ctx context.Context, l *link, nc *nats.Conn, js jetstream.JetStream, cfg Config, name string, missing int, floor func(context.Context) (uint64, error)) (*jetstream.StreamInfo, error) {
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
	// Without permission for this request no answer comes, so don't wait for long.
	account, err := pause.Within(ctx, apiTimeout, func(ctx context.Context) (*jetstream.AccountInfo, error) {
		return retryUnanswered(ctx, l, js.AccountInfo)
	})
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
		first = max(first, high+revisionGap)
	}
	want := cfg.streamConfig(name, nuid.Next(), first, cfg.replicas(nc))
	if err := fitLimits(&want, account, missing); err != nil {
		return nil, fmt.Errorf("%w (bucket %s)", err, name)
	}
	// The same request again creates the same stream. Another process may have created it meanwhile, with
	// another first revision; that one counts. On a cluster it may take a moment until it is found.
	create := func(ctx context.Context) (*jetstream.StreamInfo, error) {
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
	}
	cctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err = retryUnanswered(cctx, l, create)
	if l.clustered && lacksServers(err) { // answered, so it is permitted; servers tell each other of themselves each 10 s
		info, err = retryUnanswered(ctx, l, create)
	}
	if err == nil {
		return info, nil
	}
	if limit := limitError(err); limit != nil {
		return nil, fmt.Errorf("%w (bucket %s with %d replica(s))", limit, name, want.Replicas)
	}
	if info, again := retryUnanswered(ctx, l, existing); again == nil {
		return info, nil // it may not be created here, but another process just has
	} else if !errors.Is(again, jetstream.ErrStreamNotFound) {
		// It is not known whether it exists, for example since a server went away. Missing permissions are not the cause.
		return nil, openError(name, again)
	}
	return nil, fmt.Errorf("%w: bucket %s with %d replica(s): %w", kv.ErrNoBucket, name, want.Replicas, err)
}

// retryUnanswered repeats a request while no answer comes. A stream that was created a moment ago, or has just lost its
// leader, does not answer, and never answers a request that came at that time. In a cluster a refusal for want of
// servers is repeated, too, while there is time for one more answer: servers may still join it.
func retryUnanswered[T any](ctx context.Context, l *link, request func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	begun := time.Now()
	end, _ := ctx.Deadline()
	for wait := l.wait(); ; wait = min(2*wait, apiTimeout) {
		sent := time.Now()
		actx, cancel := context.WithTimeout(ctx, wait)
		got, err := request(actx)
		again := unanswered(err) || l.starting(begun) && errors.Is(err, nats.ErrNoResponders) ||
			l.clustered && lacksServers(err) && time.Until(end) > wait+l.wait()
		if !again {
			l.took.Store(int64(time.Since(sent)))
		}
		if err == nil || ctx.Err() != nil || !again {
			cancel()
			return got, err
		}
		<-actx.Done() // an early error must not make this spin
		cancel()
	}
}

func unanswered(err error) bool {
	var refused *jetstream.APIError
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.As(err, &refused) && (refused.ErrorCode == codeClusterNotAvailable || refused.ErrorCode == codeNotLeader || refused.ErrorCode == codeNotActive)
}

// lacksServers reports whether a stream was refused since too few servers of the cluster are known. Other
// causes have the same code and stand in the text: these are the storage and the tags of servers.
func lacksServers(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && refused.ErrorCode == codeNoPeers &&
		!strings.Contains(refused.Description, "storage") && !strings.Contains(refused.Description, "tag")
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
