package fabric

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// When a process volunteers to serve: so many writes of it met others in a second, or so many leases of others were
// ahead of a wait, and twice nobody was there who serves.
const (
	crowdConflicts = 20
	crowdLeases    = 3
	againLeast     = 200 * time.Millisecond // between the two times; up to twice as long, lest many volunteer at once
	volunteerFor   = 2                      // clients that it serves at least
	// unusedRest is for how long a process does not volunteer that had too few clients, and unheardRest one that may not serve.
	unusedRest  = time.Minute
	unheardRest = 10 * time.Minute
)

// WithoutVolunteering has the manager never serve as the fabric's coalescer. Otherwise one with [RoadAutomatic] or
// [RoadCoalesced] does while its locks are contended and nobody else serves. For programs that run for a short
// time: what they serve has to move when they end.
func WithoutVolunteering() ManagerOption { return func(c *config) error { c.aloof = true; return nil } }

// volunteers reports whether the process serves without being asked to.
func (c *config) volunteers() bool {
	return c.rank == 0 && !c.aloof && (c.road == RoadAutomatic || c.road == RoadCoalesced)
}

// crowd is what a process that may volunteer knows of the others.
type crowd struct {
	unserved chan struct{}          // holds an element once nobody serves, though locks are contended
	key      atomic.Pointer[string] // that was contended last
	met      uint64                 // conflicts until looked
	looked   time.Time
}

// crowded reports whether others are met so often that an owner is of use.
func (c *coalescer) crowded() bool {
	cr := &c.crowd
	n, now := c.engine.Stats().Conflicts, time.Now()
	often := float64(n-cr.met) >= crowdConflicts*max(now.Sub(cr.looked), time.Second).Seconds()
	cr.met, cr.looked = n, now
	return often || c.foreignAhead() >= crowdLeases
}

// foreignAhead returns how many leases of others are ahead of what waits for the lock that was contended last.
func (sh *shard) foreignAhead() int {
	key := sh.crowd.key.Load()
	if key == nil {
		return 0
	}
	rec, _, _ := sh.engine.Known(*key)
	mine := func(id string) bool { live, _ := sh.s.own(record.LeaseOf(id)); return live }
	all, _ := rec.Ahead(mine)
	leases := map[string]bool{}
	for id := range all {
		if live, _ := sh.s.own(id); !live {
			leases[id] = true
		}
	}
	return len(leases)
}

// volunteer returns true once this process is to wait for the lock of the owner, and false when the session ends.
func (c *coalescer) volunteer() bool {
	for {
		select {
		case <-c.s.ctx.Done():
			return false
		case <-c.crowd.unserved:
		}
		if !c.crowded() || !pause.For(c.s.ctx, againLeast+rand.N(againLeast)) || !c.stillMet() || !c.nobodyServes() {
			continue
		}
		rec, _, err := c.engine.Read(c.s.ctx, c.owner)
		if err == nil && (rec == nil || c.wanted(rec)) {
			return true
		}
	}
}

// stillMet reports whether others were met since the last look.
func (c *coalescer) stillMet() bool {
	return c.engine.Stats().Conflicts > c.crowd.met || c.foreignAhead() >= crowdLeases
}

// nobodyServes asks for an owner, and reports whether the server says that there is none who could hear it.
func (c *coalescer) nobodyServes() bool {
	ctx, cancel := context.WithTimeout(c.s.ctx, time.Second)
	defer cancel()
	_, err := c.s.m.nc.RequestWithContext(ctx, coalesce.HelloSubject(c.s.m.cfg.buckets.Fabric, c.n), nil)
	return errors.Is(err, nats.ErrNoResponders)
}

// restOf is for how long a process does not volunteer after a term that ended so.
func restOf(why error) time.Duration {
	switch {
	case errors.Is(why, coalesce.ErrUnheard):
		return unheardRest
	case errors.Is(why, errNobodyAsks):
		return unusedRest
	}
	return 0
}
