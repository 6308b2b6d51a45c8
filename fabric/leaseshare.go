package fabric

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/lease"
)

// leaseShare is a lease with the holds and acquires that use it.
type leaseShare struct {
	s        *session
	lease    *lease.Lease
	id       string
	timing   timing
	unwatch  func()
	disposed bool // guarded by the session's mu

	mu      sync.Mutex
	users   int                         // running acquires, plus holds
	ids     map[string]*Hold            // entries under the lease, by id; nil while the acquire is running
	intents map[intentKey]*sharedIntent // shared intents on ancestors
	retired bool                        // accepts no new acquires; ends with its last user
	idle    time.Time
}

// leaseShare returns a lease for an acquire with this timing: the shared lease, or a new separate one if the timing is
// limited. The caller must call leave, or register a hold, which takes over the use.
func (s *session) leaseShare(ctx context.Context, t timing) (*leaseShare, error) {
	if t.limited() {
		return s.newLeaseShare(ctx, t)
	}
	if sl, err := s.sharedLease(t); sl != nil || err != nil {
		return sl, err
	}
	if err := s.making.lock(ctx); err != nil {
		return nil, err
	}
	defer s.making.unlock()
	if sl, err := s.sharedLease(t); sl != nil || err != nil {
		return sl, err
	}
	sl, err := s.newLeaseShare(ctx, t)
	if err == nil {
		s.mu.Lock()
		s.shares[t] = sl
		s.mu.Unlock()
	}
	return sl, err
}

// sharedLease returns the shared lease for this timing, with one more user, or nil if there is none.
func (s *session) sharedLease(t timing) (*leaseShare, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return nil, s.ended
	}
	if sl := s.shares[t]; sl != nil && sl.enter() {
		return sl, nil
	}
	return nil, nil
}

// ctxMutex is a mutex whose lock can be cancelled by a context.
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

// newLeaseShare creates a leaseShare, with one user. The lease ends at the latest with the session.
func (s *session) newLeaseShare(ctx context.Context, t timing) (_ *leaseShare, err error) {
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
	// While its acquire waits in the queue, a limited lease is renewed without limit. The limits start with the grant.
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

// adopt adds a lease to the session, with one user. It returns nil if the session has ended. The lease can be lost at
// any moment after its creation, so OnLost is called last, when everything that a loss must end is registered.
func (s *session) adopt(le *lease.Lease, t timing) *leaseShare {
	sl := &leaseShare{s: s, lease: le, id: le.ID(), timing: t, users: 1, ids: map[string]*Hold{}, intents: map[intentKey]*sharedIntent{}}
	// This shows at once when somebody else writes a tombstone or deletes the lease.
	sl.unwatch = s.leaseHub.Follow(sl.id, le.Saw)
	if !t.limited() { // a limited lease ends with its hold
		saw, heard := sl.unwatch, s.leaseHub.Follow(lease.AskPrefix+sl.id, s.onAsked)
		sl.unwatch = func() { saw(); heard() }
	}
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		sl.unwatch()
		return nil
	}
	s.liveLeases.Store(sl.id, sl)
	s.mu.Unlock()
	le.OnLost(sl.lost)
	return sl
}

// enter adds a user, unless the lease is lost or retired. The clock is checked before a grant is handed out.
func (sl *leaseShare) enter() bool {
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

// leave removes a user. If nobody will use the lease again, it is closed in the background.
func (sl *leaseShare) leave() {
	sl.mu.Lock()
	sl.users--
	sl.idle = time.Now()
	last := sl.users == 0 && (sl.retired || sl.timing.limited() || sl.timing.owner)
	sl.mu.Unlock()
	if last {
		sl.s.dispose(sl)
	}
}

// register stores an id: without a hold before the acquire is submitted, and then with it. See unregister.
func (sl *leaseShare) register(id string, h *Hold) {
	sl.mu.Lock()
	sl.ids[id] = h
	sl.mu.Unlock()
}

// unregister removes the id of a failed acquire, and calls leave.
func (sl *leaseShare) unregister(id string) {
	sl.mu.Lock()
	delete(sl.ids, id)
	sl.mu.Unlock()
	sl.leave()
}

// uses reports whether this process holds the entry with this id, or waits for it.
func (sl *leaseShare) uses(id string) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	_, ok := sl.ids[id]
	return ok
}

// holds reports whether a hold of this process has the entry with this id under this key.
func (sl *leaseShare) holds(enc, id string) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	h := sl.ids[id]
	return h != nil && h.enc == enc
}

func (sl *leaseShare) all() []*Hold {
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

// drop removes a hold that has ended, and calls leave.
func (sl *leaseShare) drop(l *Hold) {
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

func (sl *leaseShare) lost(err error) {
	sl.s.lostLeases.Store(sl.id, struct{}{})
	sl.endKept(true)
	sl.endHolds(lossReason(err))
	sl.s.dispose(sl)
}

func (sl *leaseShare) endKept(lost bool) {
	for _, sh := range sl.s.shards {
		sh.engine.EndKeeping(sl.id, lost)
	}
}

// whyLost returns why the lease is no longer valid. If it was closed, the reason is that of the session's end.
func (sl *leaseShare) whyLost() error {
	err := lossReason(sl.lease.Err())
	if why := sl.s.endReason(); why != nil && errors.Is(err, ErrClosed) {
		return why
	}
	return err
}

// lossReason converts the error of a lease to a reason of this package.
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

func (sl *leaseShare) endHolds(reason error) {
	for _, l := range sl.all() {
		l.lose(reason)
		sl.reportKeptEnd(l, reason)
	}
}

// dispose closes a lease that is no longer used, once, in the background.
func (s *session) dispose(sl *leaseShare) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl.disposed || s.ended != nil { // the end of the session closes all leases
		return
	}
	sl.disposed = true
	s.liveLeases.CompareAndDelete(sl.id, sl)
	if s.shares[sl.timing] == sl {
		delete(s.shares, sl.timing)
	}
	s.wg.Go(func() {
		sl.unwatch()
		s.abandon(sl.lease)
	})
}

// abandon closes a lease that no caller waits for: until others have observed its end, or the session ends.
func (s *session) abandon(le *lease.Lease) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(s.ctx, func() { time.AfterFunc(closeTimeout, cancel) })()
	s.closeLease(ctx, le)
}

// closeLease writes the lease's tombstone, if this is possible in time. Then it ends the cleanups under the lease.
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

// retireLeases retires leases with an operation that stays unresolved for a TTL, and ends unused ones.
func (s *session) retireLeases() {
	s.m.owners.expire(time.Now())
	for _, sl := range s.leaseShares() {
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
