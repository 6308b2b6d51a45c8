package fabric

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// shard is what a session has for the locks of one bucket. kv.Shard says which locks these are.
type shard struct {
	s         *session
	n         int
	owner     string // key of the lock that the shard's coalescer holds
	bucket    *jskv.Bucket
	hub       *jskv.Hub
	engine    *engine.Engine
	doer      doer             // carries out claims, posts and releases
	router    *coalesce.Router // the doer, unless the engine alone is
	crowd     crowd
	serving   atomic.Uint64 // the term in which this process is the shard's coalescer; 0: it is not
	confirmed atomic.Uint64 // all revisions up to this one certainly belong to the opened bucket
	noted     uint64        // revision that the fabric's note contains at least; only housekeeping uses it
}

func (s *session) addShard(b *jskv.Bucket, hub []jskv.HubOption) error {
	m, n := s.m, len(s.shards)
	sh := &shard{s: s, n: n, owner: kv.CoalescerOf(n), bucket: b, hub: jskv.NewHub(b, hub...), noted: b.Last()}
	s.shards = append(s.shards, sh)
	sh.confirmed.Store(b.Last())
	sh.crowd.unserved, sh.crowd.met = make(chan struct{}, 1), make(chan struct{}, 1)
	sh.engine = engine.New(engine.Config{
		Store: b, Watcher: sh.hub, Observer: s.observer,
		Suspect: s.suspect,
		Evicted: func(enc string, leases []string, entries int) {
			m.report(Event{Type: EventEvicted, Time: time.Now(), Key: nameOf(enc), Leases: leases, Entries: entries})
		},
		RTT:   &m.rtt,
		Hints: m.hints, Contended: sh.contended,
		Orphan: s.reportOrphan, Mine: m.hints.id + "-",
		MaxKept: m.cfg.maxKept, KeepWait: m.cfg.detectAfter,
		Logger: m.cfg.logger,
	})
	return sh.route()
}

// close ends a shard whose hub is closed, or whose session does not begin.
func (sh *shard) close() {
	if sh.router != nil {
		sh.router.Close()
	}
	sh.engine.Close()
}

// shard returns the shard of a lock, by its encoded name.
func (s *session) shard(enc string) *shard {
	if len(s.shards) > 1 && strings.HasPrefix(enc, kv.CoalescerPrefix) {
		n, _ := strconv.Atoi(enc[len(kv.CoalescerPrefix):]) // the name may come from a message, so it may be anything
		return s.shards[max(0, n)%len(s.shards)]
	}
	return s.shards[kv.Shard(enc, len(s.shards))]
}

// doAll is engine.DoAll for calls of any shards. Calls of different shards run at the same time.
func (s *session) doAll(ctx context.Context, calls []*engine.Call, opt engine.Options) {
	parts := map[*shard][]*engine.Call{}
	for _, c := range calls {
		sh := s.shard(c.Key)
		parts[sh] = append(parts[sh], c)
	}
	together(slices.Collect(maps.Keys(parts)), func(sh *shard) { engine.DoAll(ctx, sh.doer, parts[sh], opt) })
}

// followAll is jskv.Bucket.Follow for all shards. It calls fn in the caller's goroutine.
func (s *session) followAll(ctx context.Context, filter string, fn func(sh *shard, entries []jskv.Entry, complete bool) error) error {
	type news struct {
		sh       *shard
		entries  []jskv.Entry
		complete bool
	}
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	come, ended := make(chan news), make(chan error, len(s.shards))
	for _, sh := range s.shards {
		all.Go(func() {
			ended <- sh.bucket.Follow(ctx, filter, func(entries []jskv.Entry, complete bool) error {
				select {
				case come <- news{sh, entries, complete}:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}
	complete := map[*shard]bool{}
	for {
		select {
		case n := <-come:
			if n.complete {
				complete[n.sh] = true
			}
			if err := fn(n.sh, n.entries, len(complete) == len(s.shards)); err != nil {
				return err
			}
		case err := <-ended:
			return err
		}
	}
}

// seen returns the highest revision of each locks bucket that this session knows.
func (s *session) seen() (all []uint64) {
	for _, sh := range s.shards {
		all = append(all, sh.seen())
	}
	return all
}

// seen returns the highest revision of the bucket that this session knows.
func (sh *shard) seen() uint64 { return max(sh.engine.Seen(), sh.confirmed.Load()) }

// noteSeen writes the bucket's newest revision into the fabric's note, once seenEvery revisions after the last time.
func (sh *shard) noteSeen() {
	seen := sh.seen()
	if seen < sh.noted+seenEvery {
		return
	}
	ctx, cancel := context.WithTimeout(sh.s.ctx, closeTimeout)
	defer cancel()
	if sh.s.buckets.NoteSeen(ctx, sh.n, seen) == nil {
		sh.noted = seen
	}
}

// confirm returns nil once it is certain that a grant is in the bucket of this session, and newer than what the session
// had seen before. A write that expects no record fits any bucket. So if the revision is far above the known ones, or
// there is a doubt, confirm has the bucket verified.
func (sh *shard) confirm(ctx context.Context, out engine.Outcome, before uint64) error {
	s := sh.s
	for {
		known, low := sh.confirmed.Load(), out.Entry != nil && record.RevisionOf(out.Entry.Token) <= before
		if !low && (out.Revision <= known || out.Revision <= known+jskv.MaxStep && !s.doubts.pending()) {
			raiseTo(&sh.confirmed, out.Revision)
			return nil
		}
		n := s.doubts.raise()
		wctx, done := both(ctx, s.ctx)
		err := s.doubts.wait(wctx, n)
		done()
		switch {
		case s.ctx.Err() != nil || s.endReason() != nil:
			return s.endReason()
		case err != nil:
			return ctx.Err()
		case low:
			return errAgain // the revisions have passed it through writes of others
		}
	}
}

func raiseTo(v *atomic.Uint64, n uint64) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// Road is the way in which the operations of a manager are written.
type Road string

// The roads. Locks exclude each other with every combination of roads. If a coalescer does not answer, operations are
// written without it.
const (
	// RoadDirect: this process always writes its operations itself.
	RoadDirect Road = "direct"
	// RoadAutomatic is the default: this process writes its operations itself, except for locks that others want at the
	// same time, if the fabric has a coalescer. If there is none, this process may become it; see [WithoutVolunteering].
	RoadAutomatic Road = "automatic"
	// RoadCoalesced: while there is a coalescer, it writes all operations, also for locks that nobody else wants.
	RoadCoalesced Road = "coalesced"
	// RoadBoth: this process and the coalescer both write every operation. It is for tests and costs more than each
	// road alone.
	RoadBoth Road = "both"
)

// WithRoad sets the road. The default is RoadAutomatic.
func WithRoad(r Road) ManagerOption {
	return func(c *config) error {
		switch r {
		case RoadAutomatic, RoadDirect, RoadCoalesced, RoadBoth:
			c.road = r
			return nil
		}
		return fmt.Errorf("%w: road %q: use %q, %q or %q", ErrInvalidOption, r, RoadAutomatic, RoadDirect, RoadCoalesced)
	}
}

// WithoutTurns makes a coalescer write each handoff of this manager's locks before the next holder is notified. By
// default, an exclusive lock is first granted to the next waiter, if its manager also uses turns, so that many handoffs
// cost one write, and the record follows some milliseconds later. See docs/coalescing.md.
func WithoutTurns() ManagerOption {
	return func(c *config) error { c.turns = false; return nil }
}

// doer executes claims, posts and releases: it is a *coalesce.Router, or only the engine.
type doer interface {
	engine.Doer
	Look(key string, rev uint64)
	ReleaseInBackground(key, lease, id string, atLeast uint64)
	UndoInBackground(key string, op record.Op, atLeast uint64)
	Unresolved(lease string) time.Duration
	DropLease(lease string)
}

// route creates the shard's doer.
func (sh *shard) route() error {
	s, cfg := sh.s, &sh.s.m.cfg
	sh.doer = sh.engine
	if cfg.road == RoadDirect {
		return nil
	}
	client, err := coalesce.NewClient(coalesce.ClientConfig{
		Conn: s.m.nc, Fabric: cfg.buckets.Fabric, Shard: sh.n, Manager: s.m.hints.id, Stamp: sh.stamp(), Logger: cfg.logger,
		Unserved: func() { pause.Wake(sh.crowd.unserved) },
	})
	if err != nil {
		return err
	}
	sh.router = coalesce.NewRouter(sh.engine, client, coalesce.RouterConfig{
		Always: cfg.road == RoadCoalesced, Belt: cfg.road == RoadBoth,
	})
	sh.doer = sh.router
	return nil
}

// contended is called by the engine when another process uses a key at the same time.
func (sh *shard) contended(key string) {
	if sh.router != nil && key != sh.owner {
		if sh.s.m.cfg.rank == rankVolunteer {
			last := key
			sh.crowd.key.Store(&last)
			pause.Wake(sh.crowd.met)
		}
		sh.router.Contended(key)
	}
}
