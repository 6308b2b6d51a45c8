package fabric

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// An entry can come back that its process has released: with a stream that was restored or has lost its last writes,
// or by hand. If its lease lives, nobody may evict it, and that process does not watch the lock any more. So others
// ask it to look: they name the lock under a key of the lease's own, which its process follows.
const (
	askTTL   = time.Minute
	askBytes = 8 << 10 // of the names that are asked about at a time

	// settled is the age from which on an entry that refuses a try, and that nothing here
	// holds any more, is taken for one that came back. A younger one is about to go as a rule.
	settled = 5 * time.Second
)

// ask has the process of a lease look whether it still wants what stands under it in
// the records of these locks, by their encoded names.
func (s *session) ask(ctx context.Context, id string, locks ...string) error {
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
			_, value, _ = strings.Cut(value[over-1:], " ") // the last ones
		}
		_, err = s.buckets.Leases.Update(ctx, key, []byte(value), e.Revision, askTTL)
		if !errors.Is(err, jskv.ErrConflict) && !errors.Is(err, jskv.ErrBusy) || !pause.For(ctx, 5*time.Millisecond) {
			return err
		}
	}
}

// asked looks at the locks that others ask about. It runs in the hub's goroutine.
func (s *session) asked(e jskv.Entry) {
	if locks := strings.Fields(string(e.Value)); len(locks) > 0 {
		s.goIfOpen(func() {
			for _, enc := range locks {
				ctx, cancel := context.WithTimeout(s.ctx, closeTimeout)
				s.disown(ctx, enc)
				cancel()
			}
		})
	}
}

// disown releases those entries of a lock that stand under leases of this process and
// that nothing in it holds or waits for.
func (s *session) disown(ctx context.Context, enc string) {
	rec, rev, err := s.engine.Read(ctx, enc)
	if err != nil || rec == nil {
		return
	}
	for id, st := range rec.States() {
		if st.Entry != nil && st.Entry.ID == id && s.nobodys(st.Entry) {
			s.release(enc, st.Entry, rev)
		}
	}
}

// ownUp disowns what came back in the locks ours, and asks the processes of other leases to do so in locks of theirs.
func (s *session) ownUp(ctx context.Context, ours []string, others map[string][]string) {
	forEach(ctx, sweepAtOnce, ours, func(enc string) { s.disown(ctx, enc) })
	forEach(ctx, sweepAtOnce, slices.Collect(maps.Keys(others)), func(id string) {
		locks := others[id]
		rand.Shuffle(len(locks), func(i, j int) { locks[i], locks[j] = locks[j], locks[i] }) // ask takes the last ones
		if err := s.ask(ctx, id, locks...); err != nil {
			s.m.cfg.logger.Debug("a lease's process was not asked", "lease", id, "error", err)
		}
	})
}

// nobodys reports whether an entry stands under a lease of this process, and nothing in
// it holds or waits for it. e was read from a record: its id was in use before.
func (s *session) nobodys(e *record.Entry) bool {
	sl, ok := s.local.Load(e.Lease())
	return ok && !sl.(*slot).uses(e.ID)
}

// release releases an entry that is nobody's, which was read at rev.
func (s *session) release(enc string, e *record.Entry, rev uint64) {
	op := record.Op{Verb: record.OpRelease, ID: e.ID, Lease: e.Lease()}
	out, err := engine.Do(s.ctx, s.engine, enc, op, engine.Options{Bound: releaseTimeout, AtLeast: rev})
	if err == nil && out.Existed {
		s.m.cfg.logger.Warn("an entry that had been released was there again, and was released once more", "key", nameOf(enc), "id", e.ID)
	}
}
