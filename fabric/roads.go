package fabric

import (
	"context"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Road is how a manager has its operations carried out.
type Road string

// The roads. Whatever is chosen, the same locks exclude each other, and a coalescer that does not
// answer is done without.
const (
	// RoadDirect is always by this process itself.
	RoadDirect Road = "direct"
	// RoadAutomatic is the default: by this process itself, and by the fabric's coalescer, if there is one, for
	// locks that others want at the same time. If there is none the process may become it, see
	// [WithoutVolunteering].
	RoadAutomatic Road = "automatic"
	// RoadCoalesced is by the coalescer, while there is one, also for locks that nobody else wants.
	RoadCoalesced Road = "coalesced"
	// RoadBoth is by this process and by the coalescer at once, for tests: it costs more than either.
	RoadBoth Road = "both"
)

// WithRoad chooses how operations are carried out; the default is RoadAutomatic.
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

// WithoutTurns has a coalescer write each handoff of this manager's locks before the next one holds. Otherwise it passes
// an exclusive lock on to the next in its queue first, if that one's manager takes turns, too: many handoffs cost one
// write, and the record follows some milliseconds later. docs/coalescing.md tells more.
func WithoutTurns() ManagerOption {
	return func(c *config) error { c.noTurns = true; return nil }
}

// doer carries out what claims, posts and releases ask for: a *coalesce.Router, or the engine alone.
type doer interface {
	engine.Doer
	Look(key string, rev uint64)
	ReleaseInBackground(key, lease, id string, atLeast uint64)
	UndoInBackground(key string, op record.Op, atLeast uint64)
	Unresolved(lease string) time.Duration
	DropLease(lease string)
}

// route makes the shard's doer.
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
		LeaseDead: s.leaseDead, Always: cfg.road == RoadCoalesced, Belt: cfg.road == RoadBoth,
	})
	sh.doer = sh.router
	return nil
}

// roads counts what the session has sent to coalescers.
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

// contended is told by the engine that this process is not alone on a key.
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

// leaseDead reports whether a lease's tombstone is committed.
func (s *session) leaseDead(ctx context.Context, id string) (bool, error) {
	st, err := s.observer.Check(ctx, id, ownerTTL)
	return st.Dead, err
}
