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
func WithoutVolunteering() ManagerOption {
	return func(c *config) error { c.noVolunteering = true; return nil }
}

// volunteers reports whether the process serves without being asked to.
func (c *config) volunteers() bool {
	return c.rank == 0 && !c.noVolunteering && (c.road == RoadAutomatic || c.road == RoadCoalesced)
}

// crowd is what a process that may volunteer knows of the others.
type crowd struct {
	unserved chan struct{}          // holds an element once nobody serves, though locks are contended
	key      atomic.Pointer[string] // that was contended last
	met      chan struct{}          // holds an element once that was
	meetings meetings
}

// meetings is how many conflicts there had been at a time, a second ago or longer.
type meetings struct {
	n  uint64
	at time.Time
}

// often reports whether others are met so often that an owner is of use, where there have been n conflicts by now.
func (m *meetings) often(n uint64, now time.Time) bool {
	passed := max(now.Sub(m.at), time.Second)
	often := float64(n-m.n) >= crowdConflicts*passed.Seconds()
	if now.Sub(m.at) >= time.Second {
		*m = meetings{n, now}
	}
	return often
}

// foreignAhead returns how many leases of others are ahead of what waits for the lock that was contended last.
func (sh *shard) foreignAhead() int {
	key := sh.crowd.key.Load()
	if key == nil {
		return 0
	}
	rec, _, _ := sh.engine.Known(*key)
	mine := func(id string) bool { live, _ := sh.s.leaseState(record.LeaseOf(id)); return live }
	all, _ := rec.Ahead(mine)
	leases := map[string]bool{}
	for id := range all {
		if live, _ := sh.s.leaseState(id); !live {
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
		c.awaitMeeting()
		met := c.engine.Stats().Conflicts
		crowded := c.crowd.meetings.often(met, time.Now()) || c.foreignAhead() >= crowdLeases
		if !crowded || !pause.For(c.s.ctx, againLeast+rand.N(againLeast)) || !c.stillMet(met) || !c.nobodyServes() {
			continue
		}
		rec, _, err := c.engine.Read(c.s.ctx, c.owner)
		if err == nil && (rec == nil || c.wanted(rec)) {
			return true
		}
	}
}

// awaitMeeting waits a second at most until others are met: an owner is looked for at the beginning of a use, too, when nothing
// of this process waits.
func (c *coalescer) awaitMeeting() {
	select {
	case <-c.crowd.met: // long ago, perhaps
	default:
	}
	select {
	case <-c.crowd.met:
	case <-time.After(time.Second):
	case <-c.s.ctx.Done():
	}
}

// stillMet reports whether others were met after so many conflicts.
func (c *coalescer) stillMet(conflicts uint64) bool {
	c.awaitMeeting()
	return c.engine.Stats().Conflicts > conflicts || c.foreignAhead() >= crowdLeases
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
