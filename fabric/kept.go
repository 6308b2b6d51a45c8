package fabric

import (
	"context"
	"errors"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// DefaultMaxKept is how many locks that nobody uses a manager keeps at most.
const DefaultMaxKept = engine.DefaultMaxKept

// keep says whether an acquire's lock may be kept, and for how long.
type keep struct {
	on     bool
	linger time.Duration
}

// KeepOption has locks stay with their manager after Release; see [WithKeep].
type KeepOption time.Duration

func (d KeepOption) applyManager(c *config) error  { return d.apply(&c.keep) }
func (d KeepOption) applyAcquire(r *request) error { return d.apply(&r.keep) }

func (d KeepOption) apply(k *keep) error {
	return set(k, keep{true, time.Duration(d)}, d >= 0, "keep %v: use 0 or more", time.Duration(d))
}

// WithKeep keeps locks: after Release the lock stays with this manager for d, and the next acquire of it here,
// made with the option, has it in memory, without any message. As soon as anybody else queues for it, it goes to
// them. With 0 it is only handed on between goroutines that wait for it here, and never stays unused.
//
// It is for a process that takes the same locks again and again while hardly anybody else wants them: locks are
// kept only where the acquire before met nobody else, and less and less where others keep asking. Only plain
// exclusive locks are: Acquire, TryAcquire, Do and primitives.Mutex, without owner, metadata, stamp or timing of
// their own, and only while no coalescer carries the lock's operations out.
//
// What it costs:
//   - Others see a holder, and wait for a message and a write until an unused lock is theirs, also if they only
//     try. A process that is frozen or dies while it keeps locks delays them by its TTL and the margin, though nobody was in the
//     critical section.
//   - All holds of one entry have its token. So the token tells processes apart, and not the goroutines of one:
//     a late write of a hold that was released before is not refused for its token. [Hold.Grant] gives a pair
//     that tells them apart.
//   - Release of a lock that is kept asks no server: it returns nil though an operator may have removed the entry.
func WithKeep(d time.Duration) KeepOption { return KeepOption(d) }

// WithMaxKept sets how many locks that nobody uses the manager keeps at most, see [WithKeep]; the default is
// DefaultMaxKept. Beyond it the one that is unused for longest goes.
func WithMaxKept(n int) ManagerOption {
	return func(c *config) error { return set(&c.maxKept, n, n >= 1, "%d kept locks: use at least 1", n) }
}

// keeper is the lease if the attempt's lock may be kept, else nil: it is a plain exclusive one, and this process
// carries its operations out. Who waits for a lock that its own unit of work holds does so in the record, where that is
// seen at once.
func (a *attempt) keeper(sl *slot) engine.Keeper {
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

// join takes a lock over that is kept and that nobody uses, without a message. It returns nil where there is
// none, or it is not certain that it may be passed on.
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
	sl := s.slots[r.timing]
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

// join makes a handle of a kept entry that was taken over. It is nil if that was lost meanwhile.
func (sl *slot) join(key, enc string, u *unit, r *request, out engine.Outcome) *Hold {
	h := &Hold{
		s: sl.s, slot: sl, key: key, enc: enc, granted: grantOf(out.Entry), rev: out.Revision, failFast: r.failFast,
		lock: true, unit: u, keep: r.keep, uses: out.Uses, posted: r.posted, since: time.Now(),
	}
	sl.register(h.id, h)
	u.add(h)
	// What ended the entry before this instant found no handle.
	if !sl.s.shard(enc).engine.Kept(enc, out.Entry.ID) || !sl.Keeps() {
		h.lose(h.whyGone())
		return nil
	}
	sl.s.m.keptJoins.Add(1)
	return h
}

// joined makes a handle of a kept entry that an attempt has waited for here.
func (a *attempt) joined(sl *slot, op *record.Op, out engine.Outcome) (*Hold, error) {
	h := sl.join(a.key, a.enc, a.unit, &a.req, out)
	if wasQueued(a.queued) {
		a.reportPassed(sl, op.ID)
	}
	sl.unregister(op.ID)
	if h == nil || h.Err() != nil { // it has waited to be told
		return nil, errAgain
	}
	return h, nil
}

// Grant returns the token, and which use of it this hold is: 1, and more for each hold after another of a lock that
// is kept, see [WithKeep], which share the token. The pair rises with every exclusive hold; see [Guard.Admit].
func (h *Hold) Grant() (token, use uint64) { return h.Token(), max(h.uses, 1) }

// heldFor returns for how long the hold was used. Called with mu held.
func (h *Hold) heldFor() time.Duration {
	if h.releaseBegan.IsZero() {
		return time.Since(h.since)
	}
	return h.releaseBegan.Sub(h.since)
}

// Keeps and Valid are those of engine.Keeper.
func (sl *slot) Keeps() bool {
	sl.mu.Lock()
	retired := sl.retired
	sl.mu.Unlock()
	return !retired && sl.s.ctx.Err() == nil && !sl.s.doubts.pending()
}

func (sl *slot) Valid() bool { return sl.lease.Valid() }

// Ended is that of engine.Keeper.
func (sl *slot) Ended(_, id string, used bool, err error) {
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
		h.lose(err) // of one that is not there yet, its join finds out
		return
	}
	if err != nil { // as lose does
		h.s.shard(h.enc).doer.ReleaseInBackground(h.enc, sl.id, id, h.revision())
	}
	sl.reportKeptEnd(h, err)
}

// What became of a hold's entry at its release.
const (
	keptNot = iota
	keptStays
	keptReported // it stayed, and its end was told
)

// keepEntry reports whether the entry stays with this process. The handle is invalid already.
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
	h.ctx, h.cancel = nil, nil // have ended, and h stays until the entry goes
	if left {
		return true
	}
	if h.keptState == keptReported {
		return true // with the lease, or the session
	}
	h.keptState = keptNot
	return false
}

// reportKeptEnd tells of the end of a kept entry that nobody used, whose last hold this was.
func (sl *slot) reportKeptEnd(h *Hold, reason error) {
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

// markListed says that others are told that the hold is held, and when they read that nobody else may be it.
func (h *Hold) markListed() {
	h.mu.Lock()
	h.listed = true
	h.mu.Unlock()
}
