package engine

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Store is the bucket the records live in; *jskv.Bucket is one.
type Store interface {
	Get(ctx context.Context, key string) (jskv.Entry, error)
	Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error)
	Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error)
	CheckAt(ctx context.Context, key string, rev uint64) (at uint64, err error)
	MaxValue() int // size of the largest value that can be written at present
}

// Watcher delivers the newest committed entry of a key, now and after every change; jskv.Hub is one.
type Watcher interface {
	Watch(key string, fn func(jskv.Entry)) (stop func())
	// Follow is Watch for holds: nobody waits, so the change may be found later, and
	// nothing may be asked for the key while nothing changes.
	Follow(key string, fn func(jskv.Entry)) (stop func())
}

// Observer reports leases whose tombstone is committed; lease.Observer is one.
type Observer interface {
	Observe(id string, ttl time.Duration, urgent bool, dead func(id string)) (stop func())
}

// Hints tell other processes over core NATS that what they wait for may have happened. A hint only
// makes its process look at the record, so it may get lost, come twice or late, or be wrong.
//
// While hints work, a process that waits neither watches the record nor observes the leases ahead
// as long as the queue moves: it is told by whoever lets it in. So a handover costs one message and
// one read, however many wait. Where two looks show the same holder the wait goes on as without
// hints, until one of the process's operations is let in: leases ahead are observed, and the first
// in the queue watches the record. Those behind it go on reading it now and then.
type Hints interface {
	Work() bool                                   // whether they are known to arrive
	Tell(leases []string, key string, rev uint64) // the processes of these leases to look at key, which has rev; must be quick
}

// DefaultMaxKept is how many kept entries may be unused at a time.
const DefaultMaxKept = 1024

// Config is what an engine is made of. Store, Watcher and Observer are needed.
type Config struct {
	Store    Store
	Watcher  Watcher
	Observer Observer
	Limits   record.Limits // a zero field means its default; never more bytes than Store takes
	// RTT says how long to wait for an answer, and is told of every one; leases on
	// the same connection share it. nil is one of its own.
	RTT *rtt.Estimator
	// Suspect is called when the bucket may not be the one that was opened: it is not found, nobody answers for it,
	// or a key's revision went backwards, as it does when the bucket was created again or restored. It is called with
	// locks held, as often as that is seen, and must return at once.
	Suspect func()
	// Evicted is called, if it is not nil, when a write of this engine that removed entries of dead leases is
	// acknowledged, before anybody is told of a grant that this led to. It runs in the goroutine that wrote, with no
	// lock held, and must be quick. An eviction whose acknowledgement got lost is not reported.
	Evicted func(key string, leases []string, entries int)
	// Contended is called, if it is not nil, when this process is not alone on a key: a write met a
	// newer record, or a request has to wait. It is called with locks held, often, and must return at once.
	Contended func(key string)
	// Stray is called, if it is not nil, when a record has an entry whose id begins with Mine, and that no request or watched
	// hold of this engine is about. It is called with locks held, often, and must return at once.
	Stray func(key string, e *record.Entry)
	Mine  string
	// Hints, if it is not nil, tells other processes when they are let in.
	Hints Hints
	// MaxKept is how many kept entries may be unused at a time, KeepWait how long requests wait for one in the
	// process until they queue in the record.
	MaxKept  int
	KeepWait time.Duration
	Logger   *slog.Logger
}

func (cfg Config) withDefaults() Config {
	cfg.RTT = cmp.Or(cfg.RTT, new(rtt.Estimator))
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	if cfg.Suspect == nil {
		cfg.Suspect = func() {}
	}
	cfg.KeepWait = cmp.Or(max(cfg.KeepWait, 0), time.Second)
	cfg.MaxKept = cmp.Or(max(cfg.MaxKept, 0), DefaultMaxKept)
	if cfg.Contended == nil {
		cfg.Contended = func(string) {}
	}
	return cfg
}
