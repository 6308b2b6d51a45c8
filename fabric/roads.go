package fabric

import (
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Road is the way in which the operations of a manager are written.
type Road string

// The roads. Locks exclude each other with every combination of roads. If a coalescer does not answer, operations are
// written without it.
const (
	// RoadDirect: this process always writes its operations itself.
	RoadDirect Road = "direct"
	// RoadAutomatic is the default. This process writes its operations itself, except for locks that other processes
	// want at the same time: if the fabric has a coalescer, it writes these. If there is none, this process may become
	// the coalescer; see [WithoutVolunteering].
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
// default, it first grants an exclusive lock to the next waiter, if that waiter's manager also uses turns. Many
// handoffs then cost one write, and the record follows some milliseconds later. See docs/coalescing.md.
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

// roads returns the counters of what the session has sent to coalescers.
func (s *session) roads() (st coalesce.ClientStats) {
	for _, sh := range s.shards {
		if sh.router != nil {
			one := sh.router.Stats()
			one.Term, one.Held, one.RTT = max(one.Term, st.Term), one.Held+st.Held, max(one.RTT, st.RTT)
			st = one.Plus(st)
		}
	}
	return st
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
