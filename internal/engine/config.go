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

// Store is the bucket that holds the records; *jskv.Bucket is one.
type Store interface {
	Get(ctx context.Context, key string) (jskv.Entry, error)
	Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error)
	Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error)
	CheckAt(ctx context.Context, key string, rev uint64) (at uint64, err error)
	MaxValue() int // size of the largest value that the server accepts at present
}

// Watcher delivers the newest committed entry of a key, now and after every change; jskv.Hub is one.
type Watcher interface {
	Watch(key string, fn func(jskv.Entry)) (stop func())
	// Follow is Watch for holds. No operation waits, so it may report a change later than Watch. It
	// must send no request for the key while nothing changes.
	Follow(key string, fn func(jskv.Entry)) (stop func())
}

// Observer reports leases that have a committed tombstone; lease.Observer is one.
type Observer interface {
	Observe(id string, ttl time.Duration, urgent bool, dead func(id string)) (stop func())
}

// Hints tell other processes over core NATS that an operation of theirs may have been granted. A hint
// only makes the process read the record, so it may get lost, come twice or late, or be wrong.
//
// While hints work and the queue moves, a waiting process neither watches the record nor observes the
// leases ahead: the process whose write grants it sends it a hint. So a handover costs one message and
// one read, however many wait. If two reads show the same holder, the process falls back until one of its
// operations is granted: it observes the leases ahead, and the first process in the queue watches
// the record. The processes behind the first still read the record from time to time.
type Hints interface {
	Work() bool                                   // reports whether hints are known to arrive
	Tell(leases []string, key string, rev uint64) // asks the processes of these leases to read key, which is at rev; must be quick
}

// DefaultMaxKept is the default of Config.MaxKept.
const DefaultMaxKept = 1024

// Config configures an engine. Store, Watcher and Observer are required.
type Config struct {
	Store    Store
	Watcher  Watcher
	Observer Observer
	Limits   record.Limits // a zero field means its default; never more bytes than Store takes
	// RTT says how long to wait for an answer, and the engine reports every answer to it. Leases on
	// the same connection share it. nil means an estimator of the engine's own.
	RTT *rtt.Estimator
	// Suspect is called when the bucket may not be the one that was opened: it is not found, no server answers for it,
	// or a key's revision went backwards, as after the bucket was created again or restored. The engine calls it with
	// locks held, each time it sees such a sign. It must return at once.
	Suspect func()
	// Evicted, if not nil, is called when a write of this engine that removed entries of dead leases is
	// acknowledged, and before any grant that followed from it is reported. It runs in the goroutine that wrote, with no
	// lock held, and must be quick. An eviction whose acknowledgement got lost is not reported.
	Evicted func(key string, leases []string, entries int)
	// Contended, if not nil, is called when other processes use a key, too: a write conflicted with a
	// newer record, or a request has to wait. It is called with locks held, often, and must return at once.
	Contended func(key string)
	// Orphan, if not nil, is called when a record has an entry whose id begins with Mine and that belongs to no request
	// or watched hold of this engine. It is called with locks held, often, and must return at once.
	Orphan func(key string, e *record.Entry)
	Mine   string
	// Hints, if not nil, sends hints to other processes when their operations are granted.
	Hints Hints
	// MaxKept bounds the kept entries that are unused at a time. KeepWait is how long requests wait in the
	// process for a kept entry before they queue in the record.
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
