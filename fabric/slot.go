package fabric

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
)

// slot is a lease with the holds and the acquires that stand under it.
type slot struct {
	s       *session
	lease   *lease.Lease
	id      string
	timing  timing
	unwatch func()

	mu      sync.Mutex
	users   int                         // acquires under way and holds
	ids     map[string]*Hold            // what stands under the lease, by id; nil while its acquire is under way
	intents map[intentKey]*sharedIntent // shared intents on ancestors
	retired bool                        // takes no new acquires; ends with its last user
	idle    time.Time
}

// slot returns a lease for an acquire with this timing: the shared one, or a new one of its own where the timing is
// limited. The caller calls leave, or puts a hold in its place.
func (s *session) slot(ctx context.Context, t timing) (*slot, error) {
	if t.limited() {
		return s.newSlot(ctx, t)
	}
	if sl, err := s.sharedSlot(t); sl != nil || err != nil {
		return sl, err
	}
	if err := s.making.lock(ctx); err != nil {
		return nil, err
	}
	defer s.making.unlock()
	if sl, err := s.sharedSlot(t); sl != nil || err != nil {
		return sl, err
	}
	sl, err := s.newSlot(ctx, t)
	if err == nil {
		s.mu.Lock()
		s.slots[t] = sl
		s.mu.Unlock()
	}
	return sl, err
}

// sharedSlot returns the lease for this timing, with one more user, if there is one.
func (s *session) sharedSlot(t timing) (*slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return nil, s.ended
	}
	if sl := s.slots[t]; sl != nil && sl.enter() {
		return sl, nil
	}
	return nil, nil
}

// ctxMutex is a lock that is waited for no longer than a context lasts. Who has it makes what the others find then.
type ctxMutex chan struct{}

func newCtxMutex() ctxMutex { return make(ctxMutex, 1) }

func (t ctxMutex) lock(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t ctxMutex) unlock() { <-t }

// newSlot makes a lease, with one user. It does not outlast the session.
func (s *session) newSlot(ctx context.Context, t timing) (_ *slot, err error) {
	ctx, done := both(ctx, s.ctx)
	defer done()
	defer func() {
		if why := s.endReason(); err != nil && why != nil {
			err = why
		}
	}()
	if err := s.noteTTL(ctx, t.ttl); err != nil {
		return nil, err
	}
	// A limited lease is renewed without limit while its acquire waits in the queue; its limits begin with the grant.
	le, err := lease.Create(ctx, s.buckets.Leases, lease.Config{
		TTL: t.ttl, RenewEvery: t.renewEvery, AutoRenew: true,
		Label: s.m.cfg.label, ID: s.m.hints.leaseID, Seen: s.seen, Clock: s.m.clock, RTT: &s.m.rtt, Logger: s.m.cfg.logger,
	})
	if err != nil {
		return nil, err
	}
	sl := s.adopt(le, t)
	if sl == nil {
		s.abandon(le)
		return nil, s.endReason()
	}
	return sl, nil
}

// adopt makes a lease one of the session's, with one user; nil if the session has ended. The lease can be lost at any
// moment from its creation on, so that is asked for last: what a loss ends is complete by then.
func (s *session) adopt(le *lease.Lease, t timing) *slot {
	sl := &slot{s: s, lease: le, id: le.ID(), timing: t, users: 1, ids: map[string]*Hold{}}
	// So that a tombstone or a deletion by somebody else is seen at once.
	sl.unwatch = s.leaseHub.Follow(sl.id, le.Saw)
	if !t.limited() { // else it ends with its hold
		saw, heard := sl.unwatch, s.leaseHub.Follow(lease.AskPrefix+sl.id, s.onAsked)
		sl.unwatch = func() { saw(); heard() }
	}
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		sl.unwatch()
		return nil
	}
	s.all[sl] = struct{}{}
	s.liveLeases.Store(sl.id, sl)
	s.mu.Unlock()
	le.OnLost(sl.lost)
	return sl
}

// enter counts one more user, unless the lease is known to be lost or retired. It
// leaves the clock alone: that is asked before a grant is handed out.
func (sl *slot) enter() bool {
	select {
	case <-sl.lease.Lost():
		return false
	default:
	}
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.retired {
		return false
	}
	sl.users++
	return true
}

// leave counts one user less. A lease that nobody will use again is closed in the background.
func (sl *slot) leave() {
	sl.mu.Lock()
	sl.users--
	sl.idle = time.Now()
	last := sl.users == 0 && (sl.retired || sl.timing.limited())
	sl.mu.Unlock()
	if last {
		sl.s.dispose(sl)
	}
}

// register registers the id of an acquire, with no hold before it is submitted, and then with the one that it led to. An
// acquire without one ends with give.
func (sl *slot) register(id string, h *Hold) {
	sl.mu.Lock()
	sl.ids[id] = h
	sl.mu.Unlock()
}

// unregister is leave for an acquire that came to nothing.
func (sl *slot) unregister(id string) {
	sl.mu.Lock()
	delete(sl.ids, id)
	sl.mu.Unlock()
	sl.leave()
}

// uses reports whether something in this process holds or waits for the entry with this id.
func (sl *slot) uses(id string) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	_, ok := sl.ids[id]
	return ok
}

// holds reports whether an entry of a key is one that a hold of this process has.
func (sl *slot) holds(enc, id string) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	h := sl.ids[id]
	return h != nil && h.enc == enc
}

func (sl *slot) all() []*Hold {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	all := make([]*Hold, 0, len(sl.ids))
	for _, l := range sl.ids {
		if l != nil {
			all = append(all, l)
		}
	}
	return all
}

// drop takes a lock that has ended out.
func (sl *slot) drop(l *Hold) {
	sl.mu.Lock()
	there := sl.ids[l.id] == l
	if there {
		delete(sl.ids, l.id)
	}
	sl.mu.Unlock()
	if there {
		sl.leave()
	}
}

// lost ends every hold under the lease.
func (sl *slot) lost(err error) {
	sl.s.lostLeases.Store(sl.id, struct{}{})
	sl.s.liveLeases.Delete(sl.id)
	sl.endKept(true)
	sl.endHolds(lossReason(err))
	sl.s.dispose(sl)
}

// endKept has what is kept under the lease end.
func (sl *slot) endKept(lost bool) {
	for _, sh := range sl.s.shards {
		sh.engine.EndKeeping(sl.id, lost)
	}
}

// whyLost is why the lease is not valid any more. One that was closed ended with its session.
func (sl *slot) whyLost() error {
	err := lossReason(sl.lease.Err())
	if why := sl.s.endReason(); why != nil && errors.Is(err, ErrClosed) {
		return why
	}
	return err
}

// lossReason gives the end of a lease this package's name.
func lossReason(err error) error {
	switch {
	case errors.Is(err, lease.ErrRenewalsUsedUp):
		return ErrRenewalsUsedUp
	case errors.Is(err, lease.ErrDead):
		return ErrTakenOver
	case errors.Is(err, lease.ErrClosed):
		return ErrClosed
	}
	return ErrExpired
}

func (sl *slot) endHolds(reason error) {
	for _, l := range sl.all() {
		l.lose(reason)
		sl.reportKeptEnd(l, reason)
	}
}

// dispose closes a lease that is over, once, in the background.
func (s *session) dispose(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.all[sl]; !there || s.ended != nil {
		return // it has begun, or the session's end closes it with the others
	}
	delete(s.all, sl)
	if s.slots[sl.timing] == sl {
		delete(s.slots, sl.timing)
	}
	s.liveLeases.Delete(sl.id)
	s.wg.Go(func() {
		sl.unwatch()
		s.abandon(sl.lease)
	})
}

// abandon is closeLease without a caller: until others will have observed the lease's end, or for as long as Close may
// take once the session ends.
func (s *session) abandon(le *lease.Lease) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(s.ctx, func() { time.AfterFunc(closeTimeout, cancel) })()
	s.closeLease(ctx, le)
}

// closeLease writes the lease's tombstone, as far as that is possible in time,
// and ends the cleanups under it once it is written.
func (s *session) closeLease(ctx context.Context, le *lease.Lease) {
	if err := le.Close(ctx); err != nil {
		s.m.cfg.logger.Debug("lease not closed; it ends by itself", "lease", le.ID(), "error", err)
		return
	}
	s.lostLeases.Delete(le.ID())
	for _, sh := range s.shards {
		sh.doer.DropLease(le.ID())
	}
}

// retireLeases retires leases under which an operation could not be resolved for a
// whole TTL, and ends those that nobody has used for long.
func (s *session) retireLeases() {
	s.m.owners.expire(time.Now())
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	for _, sl := range all {
		stuck := slices.ContainsFunc(s.shards, func(sh *shard) bool { return sh.doer.Unresolved(sl.id) > sl.timing.ttl })
		sl.mu.Lock()
		unused := sl.users == 0 && sl.timing != s.m.cfg.timing && time.Since(sl.idle) > max(2*sl.timing.ttl, 10*time.Second)
		if stuck && !sl.retired {
			s.m.cfg.logger.Warn("lease retired: an operation under it can't be resolved", "lease", sl.id)
		}
		if stuck || unused {
			sl.retired = true
		}
		over, linger := sl.retired && sl.users == 0, s.m.cfg.linger
		if sl.retired {
			linger = 0
		}
		sl.mu.Unlock()
		sl.dropIntents("", linger)
		if stuck {
			sl.endKept(false)
		}
		if over {
			s.dispose(sl)
		}
	}
}
