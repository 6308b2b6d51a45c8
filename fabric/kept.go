package fabric

import (
	"context"
	"errors"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// DefaultMaxKept is the default maximum number of idle locks that a manager keeps.
const DefaultMaxKept = engine.DefaultMaxKept

// keep tells whether an acquire's lock may be kept, and for how long.
type keep struct {
	on     bool
	linger time.Duration
}

// KeepOption makes locks stay with their manager after Release; see [WithKeep].
type KeepOption time.Duration

func (d KeepOption) applyManager(c *config) error  { return d.apply(&c.keep) }
func (d KeepOption) applyAcquire(r *request) error { return d.apply(&r.keep) }

func (d KeepOption) apply(k *keep) error {
	return set(k, keep{true, time.Duration(d)}, d >= 0, "keep %v: use 0 or more", time.Duration(d))
}

// WithKeep keeps locks: after Release, the lock stays with this manager for d. The next acquire of it by this manager,
// with this option, takes it over in memory, without a message. When another process queues for the lock, the lock goes
// to it. With d = 0, a lock is only handed over between waiting goroutines of this manager, and is never kept idle.
//
// It is for a process that acquires the same locks again and again while other processes rarely want them. A lock is
// kept only if the preceding acquire met no other process, and less and less if other processes ask for it often. Only
// plain exclusive locks are kept: of Acquire, TryAcquire, Do and primitives.Mutex, without an owner, metadata, a stamp
// or their own timing, and only while no coalescer writes the lock's operations.
//
// Disadvantages:
//   - Other processes see a holder. They wait for a message and a write until an idle lock is released, even if they only
//     try. If a process freezes or dies while it keeps locks, it delays others by its TTL and the margin, although no
//     goroutine was in the critical section.
//   - All holds of one entry have the entry's token. So the token distinguishes processes, but not goroutines of one
//     process: a late write of an earlier, released hold is not refused because of its token. [Hold.Grant] returns a pair
//     that distinguishes them.
//   - Release of a lock that is kept sends no request. It returns nil even if an operator has removed the entry.
//
// docs/kept.md has the details.
func WithKeep(d time.Duration) KeepOption { return KeepOption(d) }

// WithMaxKept sets the maximum number of idle locks that the manager keeps; see [WithKeep]. The default is
// DefaultMaxKept. Beyond this number, the lock with the longest idle time is released.
func WithMaxKept(n int) ManagerOption {
	return func(c *config) error { return set(&c.maxKept, n, n >= 1, "%d kept locks: use at least 1", n) }
}

// keeper returns the lease if the attempt's lock may be kept, else nil. A lock may be kept if it is a plain exclusive
// one and this process writes its operations. If its unit of work already holds the lock, the acquire waits in the
// record, where this deadlock is seen at once.
func (a *attempt) keeper(sl *leaseShare) engine.Keeper {
	if a.set != nil || a.unit.hasKey(a.enc) || !keepable(&a.claim, &a.req) || a.op.Mode != record.X {
		return nil
	}
	if r := a.session.shard(a.enc).router; r != nil && r.Routed(a.enc) {
		return nil
	}
	return sl
}

func keepable(c *Claim, r *request) bool {
	return r.keep.on && c.Kind == KindLock && c.From == nil && c.Queue == "" && c.Value == nil && !c.Once && !r.deadlineCheck &&
		r.owner == "" && r.stamp == nil && len(r.metadata) == 0 && !r.timing.limited()
}

// join takes over an idle kept lock, without a message. It returns nil if there is none, or if it is not certain that
// the lock may be taken over.
func (m *Manager) join(ctx context.Context, key string, c *Claim, r *request) *Hold {
	if !keepable(c, r) || c.Mode != "" && c.Mode != Exclusive || r.mode != Exclusive || ctx.Err() != nil {
		return nil
	}
	enc, err := kv.EncodeName(key)
	if err != nil {
		return nil
	}
	s, err := m.running(false)
	if err != nil || s == nil {
		return nil
	}
	s.mu.Lock()
	sl := s.shares[r.timing]
	s.mu.Unlock()
	if sl == nil {
		return nil
	}
	entry, rev, n, ok := s.shard(enc).engine.Join(enc, sl.id)
	if !ok {
		return nil
	}
	u, leave := m.unitFor(ctx, r)
	defer leave()
	return sl.join(key, enc, u, r, engine.Outcome{Entry: entry, Revision: rev, Uses: n})
}

// join makes a handle for a kept entry that was taken over. It returns nil if the entry was lost in the meantime.
func (sl *leaseShare) join(key, enc string, u *unit, r *request, out engine.Outcome) *Hold {
	h := &Hold{
		s: sl.s, share: sl, key: key, enc: enc, granted: grantOf(out.Entry), rev: out.Revision, failFast: r.failFast,
		lock: true, unit: u, keep: r.keep, uses: out.Uses, posted: r.posted, since: time.Now(),
	}
	sl.register(h.id, h)
	u.add(h)
	// If the entry ended before the handle was registered, the handle was not notified, so check again.
	if !sl.s.shard(enc).engine.Kept(enc, out.Entry.ID) || !sl.Keeps() {
		h.lose(h.whyGone())
		return nil
	}
	sl.s.m.keptJoins.Add(1)
	return h
}

// joined makes a handle for a kept entry for which an attempt has waited in this process.
func (a *attempt) joined(sl *leaseShare, op *record.Op, out engine.Outcome) (*Hold, error) {
	h := sl.join(a.key, a.enc, a.unit, &a.req, out)
	if wasQueued(a.queued) {
		a.reportPassed(sl, op.ID)
	}
	sl.unregister(op.ID)
	if h == nil || h.Err() != nil { // the entry may have ended while the attempt waited
		return nil, errAgain
	}
	return h, nil
}

// Grant returns the token and the number of this use of the token. The number is 1 for the first hold. If a lock is
// kept (see [WithKeep]), the next holds share its token and have larger numbers. The pair grows with every exclusive
// hold; see [Guard.Admit].
func (h *Hold) Grant() (token, use uint64) { return h.Token(), max(h.uses, 1) }

// heldFor returns how long the hold was used. Called with mu held.
func (h *Hold) heldFor() time.Duration {
	if h.releaseBegan.IsZero() {
		return time.Since(h.since)
	}
	return h.releaseBegan.Sub(h.since)
}

// Keeps and Valid implement engine.Keeper.
func (sl *leaseShare) Keeps() bool {
	sl.mu.Lock()
	retired := sl.retired
	sl.mu.Unlock()
	return !retired && sl.s.ctx.Err() == nil && !sl.s.doubts.pending()
}

func (sl *leaseShare) Valid() bool { return sl.lease.Valid() }

// Ended implements engine.Keeper.
func (sl *leaseShare) Ended(_, id string, used bool, err error) {
	sl.mu.Lock()
	h := sl.ids[id]
	sl.mu.Unlock()
	switch {
	case h == nil:
		return
	case errors.Is(err, engine.ErrRevoked):
		err = ErrRevoked
	case err != nil:
		err = h.whyGone()
	}
	if used {
		h.lose(err) // if h is not there yet, join notices it
		return
	}
	if err != nil { // like lose
		h.s.shard(h.enc).doer.ReleaseInBackground(h.enc, sl.id, id, h.revision())
	}
	sl.reportKeptEnd(h, err)
}

// What happened to a hold's entry at its release.
const (
	keptNot = iota
	keptStays
	keptReported // it was kept, and its end was reported
)

// keepEntry reports whether this process keeps the entry. The handle is already invalid.
func (h *Hold) keepEntry(held time.Duration) bool {
	h.mu.Lock()
	may := h.keep.on && !h.listed && !h.since.IsZero()
	if may {
		h.keptState = keptStays
	}
	h.mu.Unlock()
	if !may {
		return false
	}
	left := h.s.shard(h.enc).engine.Leave(h.enc, h.id, held, h.keep.linger)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ctx, h.cancel = nil, nil // both have ended; free them, because h stays until the entry goes
	if left {
		return true
	}
	if h.keptState == keptReported {
		return true // it ended with the lease or the session
	}
	h.keptState = keptNot
	return false
}

// reportKeptEnd reports the end of an idle kept entry whose last hold was h.
func (sl *leaseShare) reportKeptEnd(h *Hold, reason error) {
	h.mu.Lock()
	if h.keptState != keptStays {
		h.mu.Unlock()
		return
	}
	h.keptState = keptReported
	ev := h.event(EventReleased)
	ev.Held = h.heldFor()
	if reason != nil && !errors.Is(reason, ErrClosed) {
		ev.Type, ev.Reason = EventLost, reason
	}
	h.mu.Unlock()
	sl.s.m.report(ev)
	sl.drop(h)
}

// markListed records that other processes can read that the hold is held. The entry then must not pass to another hold.
func (h *Hold) markListed() {
	h.mu.Lock()
	h.listed = true
	h.mu.Unlock()
}
