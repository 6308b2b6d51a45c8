package fabric

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// DefaultMaxKept is the default maximum number of idle locks that a manager keeps.
const DefaultMaxKept = engine.DefaultMaxKept

// WithKeep keeps locks: after Release, the lock stays with this manager for d. The next acquire of it by this manager,
// with this option, takes it over in memory, without a message. When another process queues for the lock, the lock goes
// to it. With d = 0, a lock is only handed over between waiting goroutines of this manager, and is never kept idle.
//
// It is for a process that acquires the same locks again and again while others rarely want them. A lock is kept only if
// the preceding acquire met no other process, and less and less if others ask for it often. Only plain exclusive locks
// are kept: of Acquire, TryAcquire, Do and primitives.Mutex, without an owner, metadata, a stamp or their own timing, and
// only while no coalescer writes the lock's operations. Disadvantages, see docs/kept.md:
//
//   - Other processes see a holder, and wait for a message and a write, even if they only try. If a process freezes or
//     dies while it keeps locks, it delays others by its TTL and the margin, although nobody was in the critical section.
//   - All holds of one entry have its token, which distinguishes processes, but not goroutines of one process: a late
//     write of an earlier hold is not refused because of its token. [Hold.Grant] returns a pair that distinguishes them.
//   - Release of a lock that is kept sends no request. It returns nil even if an operator has removed the entry.
func WithKeep(d time.Duration) CommonOption {
	return func(c *common) error { return set(&c.keep, d, d >= 0, "keep %v: use 0 or more", d) }
}

// WithMaxKept sets how many idle locks the manager keeps at most; see [WithKeep]. The default is DefaultMaxKept. Beyond
// it, the lock with the longest idle time is released.
func WithMaxKept(n int) ManagerOption {
	return func(c *config) error { return set(&c.maxKept, n, n >= 1, "%d kept locks: use at least 1", n) }
}

// keeper returns the lease if the lock may be kept: a plain exclusive one that this process writes. If its unit already
// holds the lock, the acquire waits in the record, where this deadlock is seen at once.
func (a *attempt) keeper() engine.Keeper {
	if a.set != nil || a.unit.hasKey(a.enc) || !keepable(&a.claim, &a.req) || a.op.Mode != record.X {
		return nil
	}
	if r := a.session.shard(a.enc).router; r != nil && r.Routed(a.enc) {
		return nil
	}
	return a.share
}

func keepable(c *Claim, r *request) bool {
	return r.keep >= 0 && c.Kind == KindLock && c.From == nil && c.Queue == "" && c.Value == nil && !c.Once && !r.deadlineCheck &&
		r.owner == "" && r.stamp == nil && len(r.metadata) == 0 && !r.timing.limited()
}

// join takes over an idle kept lock, without a message. It returns nil if that is not certainly possible.
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
	h := newHold(sl, key, enc, out, r)
	h.lock, h.unit, h.posted, h.since = true, u, r.posted, time.Now()
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
func (a *attempt) joined(out engine.Outcome) (*Hold, error) {
	h := a.share.join(a.key, a.enc, a.unit, &a.req, out)
	if wasQueued(a.queued) {
		a.reportPassed()
	}
	a.share.unregister(a.id)
	if h == nil || h.Err() != nil { // the entry may have ended while the attempt waited
		return nil, errAgain
	}
	return h, nil
}

// Grant returns the token and the number of this use of the token, from 1. If a lock is kept (see [WithKeep]), the next
// holds share its token and have larger numbers. The pair grows with every exclusive hold; see [Guard.Admit].
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
		h.releaseInBackground()
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
	may := !h.listed && !h.since.IsZero()
	if may {
		h.keptState = keptStays
	}
	h.mu.Unlock()
	if !may {
		return false
	}
	left := h.s.shard(h.enc).engine.Leave(h.enc, h.id, held, h.keep)
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

// The answers of a process that is asked for an entry that it may keep.
const (
	answerUsed     = "used"
	answerReleased = "released"
)

// The values of Party.Kept.
const (
	KeptUsed    = "used"
	KeptIdle    = "idle"
	KeptUnknown = "unknown"
)

// askKeeper asks the process of an entry that it may keep to release it, if nothing else refuses a try. Both results are
// false without an answer.
func (a *attempt) askKeeper(ctx context.Context, refused *engine.RefusedError) (released, used bool) {
	if a.askedHolders || a.op.Verb != record.OpTry || a.req.stamp != nil || refused.Verdict != record.Held || !record.MayBeKept(refused.Blocker.Meta) {
		return false, false
	}
	a.askedHolders = true
	return a.session.askToRelease(ctx, a.enc, &refused.Blocker)
}

// askToRelease sends the request of askKeeper. The answer is only a hint; the leader's record decides.
func (s *session) askToRelease(ctx context.Context, enc string, e *record.Entry) (released, used bool) {
	took, _ := s.m.rtt.RTT()
	answer := s.m.hints.ask(ctx, e.Lease(), e.ID, enc+" "+giveUpText+e.ID, engine.PokeTime(took))
	return answer == answerReleased, answer == answerUsed
}

// giveUp handles a request of another process for an entry. It does not answer about an unknown one.
func (m *Manager) giveUp(key, id string, answer func(string)) {
	s, _ := m.running(false)
	if s == nil {
		return
	}
	kept := s.shard(key).engine.GiveUp(key, id, func(used bool) {
		if used {
			answer(answerUsed)
		} else {
			answer(answerReleased)
		}
	})
	if sl := s.leaseShareOf(record.LeaseOf(id)); sl != nil && !kept && sl.holds(key, id) {
		answer(answerUsed)
	}
}

// unused returns which entries under a lease of this process are kept and idle, or "" for another lease.
func (m *Manager) unused(lease string) string {
	s, _ := m.running(false)
	if s == nil || s.leaseShareOf(lease) == nil {
		return ""
	}
	var unused []string
	for _, sh := range s.shards {
		unused = append(unused, sh.engine.Unused(lease)...)
	}
	return "." + strings.Join(unused, ".") + "."
}

// askKeptUse sets Kept of all entries under one lease that may be kept, with one request.
func (s *session) askKeptUse(ctx context.Context, parties []*Party) {
	parties = slices.DeleteFunc(slices.Clone(parties), func(p *Party) bool { return p.Token == 0 || !record.MayBeKept(p.Metadata) })
	if len(parties) == 0 {
		return
	}
	lease := parties[0].Lease.ID
	took, _ := s.m.rtt.RTT()
	unused := s.m.hints.ask(ctx, lease, lease, unusedText+lease, engine.PokeTime(took))
	for _, p := range parties {
		switch {
		case unused == "":
			p.Kept = KeptUnknown
		case strings.Contains(unused, strings.TrimPrefix(p.ID, lease)+"."):
			p.Kept = KeptIdle
		default:
			p.Kept = KeptUsed
		}
	}
}
