package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// DefaultSweepInterval is the shortest time between two sweeps of a fabric, for any number of managers.
const DefaultSweepInterval = 5 * time.Minute

// How much a sweep does at the same time, and from how many locks one background sweep evicts.
const (
	sweepAtOnce = 32
	sweepLocks  = 10_000
)

// WithSweepInterval sets how often this manager helps to remove entries of dead processes for which nobody waits: by
// default DefaultSweepInterval, 0 = never. In each interval, one of the fabric's managers sweeps, and each other one makes
// one read. Values between 0 and one second are ErrInvalidOption.
func WithSweepInterval(d time.Duration) ManagerOption {
	return func(c *config) error {
		return set(&c.sweep, d, d == 0 || d >= time.Second, "sweep interval %v: use at least 1s, or 0 for none", d)
	}
}

// Collected is the result of Collect.
type Collected struct {
	Locks   int `json:"locks"`   // locks in use under the prefix
	Leases  int `json:"leases"`  // leases in their records, without those of this process
	Dead    int `json:"dead"`    // of these, dead leases; with DryRun, leases that look dead
	Freed   int `json:"freed"`   // locks from which entries were removed, or would be
	Entries int `json:"entries"` // entries that were removed, or would be
	Swept   int `json:"swept"`   // records without entries that were not used for a long time and were removed, or would be
}

// CollectOption configures Collect.
type CollectOption func(*collect)

type collect struct {
	prefix string // of the names
	dryRun bool
	most   int           // maximum number of locks to change; 0 = no limit
	later  time.Duration // added to the present time, for tests
}

// DryRun makes Collect change nothing. The result then counts what looks dead by the time stamps of the server, not
// what is known to be dead.
func DryRun() CollectOption { return func(c *collect) { c.dryRun = true } }

// Collect removes the entries of dead processes from all locks whose names start with prefix, even if nobody waits for
// the lock. A lease that looks dead is first observed for its TTL and margin, so Collect takes that long. Errors are
// those of List; the work done before the error is returned with it.
func (m *Manager) Collect(ctx context.Context, prefix string, opts ...CollectOption) (Collected, error) {
	c := collect{prefix: prefix}
	for _, o := range opts {
		o(&c)
	}
	filter, err := kv.EncodePrefix(prefix)
	if err != nil {
		return Collected{}, err
	}
	var got Collected
	err = m.inSession(ctx, func(ctx context.Context, s *session) (err error) {
		if !c.dryRun {
			err = s.awaitReady(ctx, false)
		}
		if err == nil {
			got, err = s.collect(ctx, filter, c)
		}
		return err
	})
	if err != nil {
		return got, fmt.Errorf("collect %q: %w", prefix, err)
	}
	return got, nil
}

// foreignLock is a lock with those leases in its record that belong to other processes.
type foreignLock struct {
	key    string
	rec    *record.Record
	leases []string
}

type survey struct {
	locks    int
	others   []foreignLock            // locks with entries of other processes
	ttls     map[string]time.Duration // TTLs of their leases
	longHeld map[string][]string      // locks with waiters, by the leases that have been in these locks for a long time
	orphaned []string                 // locks with orphans of this process
	unused   []jskv.Entry             // records that nobody has used for a long time, without their values
}

func (v *survey) add(ctx context.Context, sh *shard, filter string, c collect) error {
	s := sh.s
	state, err := sh.bucket.State(ctx)
	if err != nil {
		return err
	}
	now := state.Now.Add(c.later) // the clock that has also set the times of the records
	return sh.bucket.Entries(ctx, filter, func(e jskv.Entry) bool {
		if name, err := kv.DecodeKey(e.Key); err != nil || !strings.HasPrefix(name, c.prefix) {
			return true // the filter matches more names than the prefix
		}
		rec, err := record.Decode(e.Value)
		if err != nil {
			return true // not a record of ours, so it must not be changed
		}
		st := foreignLock{key: e.Key, rec: rec}
		for id, ttl := range rec.Leases() { // this includes marks
			if live, _ := s.leaseState(id); !live && !slices.Contains(st.leases, id) {
				st.leases = append(st.leases, id)
				v.ttls[id] = ttl
			}
		}
		for op, state := range rec.States() {
			entry := state.Entry
			if entry == nil || entry.ID != op {
				continue
			}
			id := entry.Lease()
			switch live, _ := s.leaseState(id); {
			case live:
				if s.isOrphan(entry) && !slices.Contains(v.orphaned, e.Key) {
					v.orphaned = append(v.orphaned, e.Key)
				}
			case len(rec.Waiters) > 0 && time.Since(entry.Since) > s.m.cfg.sweep && !slices.Contains(v.longHeld[id], e.Key):
				v.longHeld[id] = append(v.longHeld[id], e.Key)
			}
		}
		if rec.Outlived(now.Sub(e.Created)) {
			v.unused = append(v.unused, jskv.Entry{Key: e.Key, Revision: e.Revision})
			return true
		}
		v.locks++
		if len(st.leases) > 0 { // saves memory: locks of this process only are not needed
			v.others = append(v.others, st)
		}
		return true
	})
}

func (s *session) collect(ctx context.Context, filter string, c collect) (Collected, error) {
	v := survey{ttls: map[string]time.Duration{}, longHeld: map[string][]string{}}
	var err error
	for _, sh := range s.shards {
		if err = v.add(ctx, sh, filter, c); err != nil {
			break
		}
	}
	got := Collected{Locks: v.locks, Leases: len(v.ttls)}
	if err != nil {
		return got, err
	}
	if got.Swept = len(v.unused); !c.dryRun {
		if got.Swept, err = s.sweepOld(ctx, v.unused); err != nil {
			return got, err
		}
	}
	dead, err := s.dead(ctx, v.ttls, c.dryRun)
	got.Dead = len(dead)
	if err != nil {
		return got, err
	}
	if !c.dryRun {
		maps.DeleteFunc(v.longHeld, func(id string, _ []string) bool { return dead[id] })
		s.cleanUpOrphans(ctx, v.orphaned, v.longHeld)
	}
	for _, st := range v.others {
		gone := slices.DeleteFunc(st.leases, func(id string) bool { return !dead[id] })
		if len(gone) == 0 {
			continue
		}
		if c.most > 0 && got.Freed >= c.most {
			break
		}
		if !c.dryRun {
			if err := s.evict(ctx, st.key, gone, false); err != nil {
				return got, err
			}
		}
		got.Freed++
		got.Entries += st.rec.EntriesUnder(gone...)
	}
	return got, nil
}

// sweepOld removes records that are still at the given revisions. It returns how many it removed.
func (s *session) sweepOld(ctx context.Context, old []jskv.Entry) (int, error) {
	var swept atomic.Int64
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	forEach(ctx, sweepAtOnce, old, func(e jskv.Entry) {
		_, err := engine.Do(ctx, s.shard(e.Key).engine, e.Key, record.Op{Verb: record.OpSweep, Base: e.Revision}, engine.Options{})
		var refused *engine.RefusedError
		switch {
		case err == nil:
			swept.Add(1)
		case !errors.As(err, &refused): // a refusal means that somebody uses the record again
			stop(err)
		}
	})
	return int(swept.Load()), context.Cause(ctx)
}

// dead returns the leases with committed tombstones; with guess, also those that only look dead, without waiting.
func (s *session) dead(ctx context.Context, ttls map[string]time.Duration, guess bool) (map[string]bool, error) {
	var mu sync.Mutex
	var first error
	dead := map[string]bool{}
	forEach(ctx, sweepAtOnce, slices.Collect(maps.Keys(ttls)), func(id string) {
		st, err := s.observer.Check(ctx, id, ttls[id])
		is := err == nil && (st.Dead || st.Stale && guess)
		if err == nil && !is && st.Stale {
			is, err = s.observer.WaitDead(ctx, id, ttls[id])
		}
		mu.Lock()
		defer mu.Unlock()
		if is {
			dead[id] = true
		}
		first = cmp.Or(first, err)
	})
	return dead, cmp.Or(first, ctx.Err())
}

func (s *session) sweep() {
	every := s.m.cfg.sweep
	if s.awaitReady(s.ctx, false) != nil {
		return
	}
	sweeps, err := s.buckets.Sweeps(s.ctx)
	for pause.For(s.ctx, every+rand.N(every/4)) {
		if err != nil {
			sweeps, err = s.buckets.Sweeps(s.ctx)
			continue
		}
		var mine bool
		if mine, sweeps, err = s.buckets.BeginSweep(s.ctx, sweeps); err != nil || !mine {
			continue
		}
		got, err := s.collect(s.ctx, ">", collect{most: sweepLocks})
		if log := s.m.cfg.logger; err != nil && s.ctx.Err() == nil {
			log.Warn("the sweep for dead entries did not end", "error", err)
		} else if got.Freed+got.Swept > 0 {
			log.Info("entries of dead processes were collected", "locks", got.Freed, "entries", got.Entries, "swept", got.Swept)
		}
	}
}

// A released entry can reappear, for example with a restored stream. If its lease is alive, nobody may evict it, and its
// own process does not watch the lock any more. Other processes write the name of such an orphan's lock under a key that
// the lease's process watches.
const (
	askTTL   = time.Minute
	askBytes = 8 << 10 // maximum size of the names under the key

	// orphanAge is the age from which an entry that nothing in this process holds is treated as an orphan.
	orphanAge = 5 * time.Second
	// orphanDelay is how long an entry that looks like an orphan may stand before it is checked again.
	orphanDelay = time.Second
)

// askProcess asks the process of a lease to check the records of these locks (encoded names) for orphans.
func (s *session) askProcess(ctx context.Context, id string, locks ...string) error {
	key := lease.AskPrefix + id
	for {
		e, err := s.buckets.Leases.Get(ctx, key)
		if err != nil {
			return err
		}
		all := strings.Fields(string(e.Value))
		all = append(slices.DeleteFunc(all, func(enc string) bool { return slices.Contains(locks, enc) }), locks...)
		value := strings.Join(all, " ")
		if over := len(value) - askBytes; over > 0 {
			_, value, _ = strings.Cut(value[over-1:], " ") // keeps the last names
		}
		_, err = s.buckets.Leases.Update(ctx, key, []byte(value), e.Revision, askTTL)
		if !errors.Is(err, jskv.ErrConflict) && !errors.Is(err, jskv.ErrBusy) || !pause.For(ctx, 5*time.Millisecond) {
			return err
		}
	}
}

// onAsked checks the locks that other processes ask about. It runs in the hub's goroutine.
func (s *session) onAsked(e jskv.Entry) {
	if locks := strings.Fields(string(e.Value)); len(locks) > 0 {
		s.goUnlessEnded(func() {
			for _, enc := range locks {
				ctx, cancel := context.WithTimeout(s.ctx, closeTimeout)
				s.releaseOrphans(ctx, enc)
				cancel()
			}
		})
	}
}

// releaseOrphans releases the orphans of this process in a lock's record.
func (s *session) releaseOrphans(ctx context.Context, enc string) {
	rec, rev, err := s.shard(enc).engine.Read(ctx, enc)
	if err != nil || rec == nil {
		return
	}
	for id, st := range rec.States() {
		if st.Entry != nil && st.Entry.ID == id && s.isOrphan(st.Entry) {
			s.releaseOrphan(enc, st.Entry, rev)
		}
	}
}

// reportOrphan is called for entries of this process that its engine does not know. One that stands longer than
// orphanDelay was written by an acquire that was delivered twice, and would block forever.
func (s *session) reportOrphan(enc string, e *record.Entry) {
	if !s.isOrphan(e) {
		return
	}
	if _, soon := s.orphanLocks.LoadOrStore(enc, nil); !soon {
		time.AfterFunc(orphanDelay, func() {
			s.orphanLocks.Delete(enc)
			s.goUnlessEnded(func() { s.releaseOrphans(s.ctx, enc) })
		})
	}
}

// cleanUpOrphans releases the orphans in the locks ours, and asks other processes to do the same in others.
func (s *session) cleanUpOrphans(ctx context.Context, ours []string, others map[string][]string) {
	forEach(ctx, sweepAtOnce, ours, func(enc string) { s.releaseOrphans(ctx, enc) })
	forEach(ctx, sweepAtOnce, slices.Collect(maps.Keys(others)), func(id string) {
		locks := others[id]
		rand.Shuffle(len(locks), func(i, j int) { locks[i], locks[j] = locks[j], locks[i] }) // askProcess keeps the last names only
		if err := s.askProcess(ctx, id, locks...); err != nil {
			s.m.cfg.logger.Debug("a lease's process was not asked", "lease", id, "error", err)
		}
	})
}

// isOrphan reports whether nothing in this process holds an entry under its lease, or waits for it.
func (s *session) isOrphan(e *record.Entry) bool {
	sl := s.leaseShareOf(e.Lease())
	return sl != nil && !sl.uses(e.ID)
}

// releaseOrphan releases an orphan that was read at rev.
func (s *session) releaseOrphan(enc string, e *record.Entry, rev uint64) {
	op := record.Op{Verb: record.OpRelease, ID: e.ID, Lease: e.Lease()}
	out, err := engine.Do(s.ctx, s.shard(enc).engine, enc, op, engine.Options{Bound: releaseTimeout, AtLeast: rev})
	if err == nil && out.Existed {
		s.m.cfg.logger.Warn("an entry that had been released was there again, and was released once more", "key", nameOf(enc), "id", e.ID)
	}
}
