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

// When a process volunteers to serve: it had crowdConflicts conflicts in a second, or crowdLeases leases of others were
// ahead of its waiters, and twice no process served.
const (
	crowdConflicts = 20
	crowdLeases    = 3
	againLeast     = 200 * time.Millisecond // between the two times; up to twice as long, so that few volunteer at once
	volunteerFor   = 2                      // clients at least, or its term ends as unused
	// A process that had too few clients does not volunteer for unusedRest, and one that may not serve for unheardRest.
	unusedRest  = time.Minute
	unheardRest = 10 * time.Minute
)

// WithoutVolunteering has the manager never serve as the fabric's coalescer. Otherwise, a manager with [RoadAutomatic] or
// [RoadCoalesced] does so while its locks are contended and no other process serves. Use it in programs that run for a short
// time: when a serving program ends, its clients have to move to another coalescer.
func WithoutVolunteering() ManagerOption {
	return func(c *config) error { c.noVolunteering = true; return nil }
}

// volunteers reports whether this process may serve without [WithCoalescer].
func (c *config) volunteers() bool {
	return c.rank == 0 && !c.noVolunteering && (c.road == RoadAutomatic || c.road == RoadCoalesced)
}

// crowd is what a process that may volunteer knows about other processes.
type crowd struct {
	unserved chan struct{}          // holds an element once locks were contended and no process served
	key      atomic.Pointer[string] // the key that was contended last
	met      chan struct{}          // holds an element once a key was contended
	meetings meetings
}

// meetings is the number n of conflicts until the time at, which is about a second ago or longer.
type meetings struct {
	n  uint64
	at time.Time
}

// often reports whether conflicts are so frequent that an owner helps. n is the number of conflicts until now.
func (m *meetings) often(n uint64, now time.Time) bool {
	passed := max(now.Sub(m.at), time.Second)
	often := float64(n-m.n) >= crowdConflicts*passed.Seconds()
	if now.Sub(m.at) >= time.Second {
		*m = meetings{n, now}
	}
	return often
}

// foreignAhead returns how many leases of other processes are ahead of this process's waiters on the lock that was contended last.
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

// volunteer returns true once this process should queue for the shard's lock, and false when the session ends.
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

// awaitMeeting waits until a key is contended, but at most a second. An owner is also looked for when a process begins to use locks, and then
// none of its operations may wait.
func (c *coalescer) awaitMeeting() {
	select {
	case <-c.crowd.met: // this contention may be long past
	default:
	}
	select {
	case <-c.crowd.met:
	case <-time.After(time.Second):
	case <-c.s.ctx.Done():
	}
}

// stillMet reports whether there were more conflicts than this number, or many leases of others are ahead.
func (c *coalescer) stillMet(conflicts uint64) bool {
	c.awaitMeeting()
	return c.engine.Stats().Conflicts > conflicts || c.foreignAhead() >= crowdLeases
}

// nobodyServes sends a hello, and reports whether the server says that no process is subscribed to it.
func (c *coalescer) nobodyServes() bool {
	ctx, cancel := context.WithTimeout(c.s.ctx, time.Second)
	defer cancel()
	_, err := c.s.m.nc.RequestWithContext(ctx, coalesce.HelloSubject(c.s.m.cfg.buckets.Fabric, c.n), nil)
	return errors.Is(err, nats.ErrNoResponders)
}

// restOf returns how long a process does not volunteer after a term that ended for this reason.
func restOf(why error) time.Duration {
	switch {
	case errors.Is(why, coalesce.ErrUnheard):
		return unheardRest
	case errors.Is(why, errNobodyAsks):
		return unusedRest
	}
	return 0
}
