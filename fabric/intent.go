package fabric

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// DefaultIntentLinger is the default time for which an unused shared intent stays.
const DefaultIntentLinger = 30 * time.Second

// WithIntentLinger sets how long an intent on an ancestor stays with the manager after its last path has ended. The
// next path below this ancestor uses it without a write. If somebody queues for the ancestor, the intent is released when
// no path uses it. With 0, every path acquires its own intents.
func WithIntentLinger(d time.Duration) ManagerOption {
	return func(c *config) error { return set(&c.linger, d, d >= 0, "intent linger %v: use 0 or more", d) }
}

// WithoutSharedIntents makes a path acquire its own intents: one write for each ancestor, which has a handle.
func WithoutSharedIntents() RequestOption {
	return func(r *request) error { r.ownIntents = true; return nil }
}

// sharedIntent is an intent on an ancestor that all paths under a lease share. For other processes it is an ordinary
// holder. It ends only when no path uses it, and if it is lost, its users are lost as well.
//
//	created -> open -> draining, when somebody waits for the ancestor -> gone
//	   |        +------------- idle for the linger time ---------------->|
//	   +-- not granted -------------------------------------------------+
type sharedIntent struct {
	share *leaseShare
	at    intentKey
	done  chan struct{} // closed when it is open, or was not granted

	mu       sync.Mutex
	hold     *Hold          // nil before it is open
	users    map[*Set]*unit // the sets that use it, and their units of work
	draining bool           // accepts no new users
	gone     bool
	idle     time.Time // when its last user left
	unwatch  func()
}

type intentKey struct {
	enc  string
	mode record.Mode
}

// sharedIntent returns the intent for a level. If mine is true, the caller must acquire it and call open or fail.
func (sl *leaseShare) sharedIntent(enc string, mode record.Mode) (_ *sharedIntent, mine bool) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if p := sl.findIntent(enc, mode); p != nil {
		return p, false
	}
	p := &sharedIntent{share: sl, at: intentKey{enc, mode}, done: make(chan struct{}), users: map[*Set]*unit{}, unwatch: func() {}}
	sl.intents[p.at] = p
	return p, true
}

// findIntent returns the shared intent for a level, or nil. Called with mu held.
func (sl *leaseShare) findIntent(enc string, mode record.Mode) *sharedIntent {
	return cmp.Or(sl.intents[intentKey{enc, record.IX}], sl.intents[intentKey{enc, mode}])
}

// open makes a grant the shared intent, with its first user. It reports false if the hold has ended.
func (p *sharedIntent) open(h *Hold, user *Set, u *unit) bool {
	h.mu.Lock()
	if h.err != nil {
		h.mu.Unlock()
		p.fail()
		return false
	}
	h.set, h.intent, h.unit = nil, p, nil // u contains it already
	p.mu.Lock()
	p.hold = h
	p.users[user] = u
	p.mu.Unlock()
	h.mu.Unlock()
	stop := h.s.shard(h.enc).hub.Follow(h.enc, p.recordChanged)
	p.mu.Lock()
	p.unwatch = stop
	gone := p.gone
	p.mu.Unlock()
	if gone {
		stop()
	}
	p.share.s.m.pins.Add(1)
	close(p.done)
	return true
}

// fail ends a shared intent that was not granted.
func (p *sharedIntent) fail() {
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	p.forget()
	close(p.done)
}

func (p *sharedIntent) forget() {
	p.share.mu.Lock()
	defer p.share.mu.Unlock()
	if p.share.intents[p.at] == p {
		delete(p.share.intents, p.at)
	}
}

// join makes a set a user. While somebody waits for the ancestor, only units that already use the intent are accepted:
// they block the waiter anyway, and would wait for themselves behind it.
func (p *sharedIntent) join(user *Set, u *unit) bool {
	mine := slices.Contains(u.all(), p.hold)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hold == nil || p.gone || p.draining && !mine {
		return false
	}
	p.users[user] = u
	u.add(p.hold)
	p.share.s.m.pinJoins.Add(1)
	return true
}

// leave ends the use by a set whose handles are invalid.
func (p *sharedIntent) leave(user *Set) {
	p.mu.Lock()
	p.users[user].drop(p.hold)
	delete(p.users, user)
	p.idle = time.Now()
	p.mu.Unlock()
	p.endIf(func() bool { return p.draining })
}

// recordChanged looks for a waiter of the ancestor, which waits for the shared intent too. It must not block.
func (p *sharedIntent) recordChanged(e jskv.Entry) {
	rec, err := record.Decode(e.Value)
	if e.Deleted || err != nil || rec == nil {
		return
	}
	converts := func(h record.Entry) bool { return h.Convert.ID != "" }
	if len(rec.Waiters) == 0 && !slices.ContainsFunc(rec.Holders, converts) {
		return
	}
	p.mu.Lock()
	first := !p.draining && !p.gone
	p.draining = true
	p.mu.Unlock()
	if first {
		p.share.s.m.pinRevocations.Add(1)
	}
	p.endIf(func() bool { return true })
}

// endIf releases the shared intent if nobody uses it and due returns true. It calls due with mu held.
func (p *sharedIntent) endIf(due func() bool) bool {
	p.mu.Lock()
	if p.hold == nil || p.gone || len(p.users) > 0 || !due() {
		p.mu.Unlock()
		return false
	}
	p.gone = true
	h, stop := p.hold, p.unwatch
	p.mu.Unlock()
	p.forget()
	stop()
	h.s.goUnlessEnded(func() { discard(h) })
	return true
}

// lose ends the sets that use the shared intent. Called with the hold's mu held.
func (p *sharedIntent) lose(err error) {
	p.mu.Lock()
	p.gone = true
	users, stop := p.users, p.unwatch
	p.users = map[*Set]*unit{}
	p.mu.Unlock()
	p.forget()
	stop()
	for s, u := range users {
		u.drop(p.hold)
		s.end(err)
	}
}

// makeOwn turns the shared intent into the own entry of its only user. It reports whether this was possible.
func (p *sharedIntent) makeOwn(user *Set) bool {
	p.hold.mu.Lock()
	defer p.hold.mu.Unlock()
	p.mu.Lock()
	u, uses := p.users[user]
	alone := uses && len(p.users) == 1 && !p.gone && p.hold.err == nil
	p.gone = p.gone || alone
	stop := p.unwatch
	p.mu.Unlock()
	if !alone {
		return false
	}
	p.forget()
	stop()
	p.hold.intent, p.hold.set, p.hold.unit = nil, user, u
	return true
}

// dropIntents releases the shared intents that were idle for idleFor: of this name, or all with "".
func (sl *leaseShare) dropIntents(enc string, idleFor time.Duration) {
	sl.mu.Lock()
	found := slices.Collect(maps.Values(sl.intents))
	sl.mu.Unlock()
	for _, p := range found {
		p.endIf(func() bool { return (enc == "" || p.at.enc == enc) && time.Since(p.idle) >= idleFor })
	}
}

// dropIdleIntents releases the idle shared intents that refused the try of another process.
func (s *session) dropIdleIntents(enc string) {
	for _, sl := range s.leaseShares() {
		sl.dropIntents(enc, 0)
	}
}

// askForIntents asks others to release idle shared intents, if nothing else refuses a try, and reports success.
func (a *attempt) askForIntents(ctx context.Context, refused *engine.RefusedError) bool {
	if a.askedHolders || refused.Verdict != record.Held || !onlySharedIntents(refused.Record, a.op.Mode) {
		return false
	}
	a.askedHolders = true
	s := a.session
	free := make(chan struct{}, 1)
	stop := s.shard(a.enc).hub.Watch(a.enc, func(e jskv.Entry) {
		rec, err := record.Decode(e.Value)
		if e.Deleted && e.Revision > 0 || err == nil && rec != nil && !inTheWayOf(rec, a.op.Mode) {
			pause.Wake(free)
		}
	})
	defer stop()
	s.dropIdleIntents(a.enc)
	var leases []string
	for i := range refused.Record.Holders {
		leases = append(leases, refused.Record.Holders[i].Lease())
	}
	s.m.hints.Tell(leases, a.enc, 0)
	took, _ := s.m.rtt.RTT()
	select {
	case <-free:
		return true
	case <-time.After(max(50*time.Millisecond, 4*took)):
	case <-ctx.Done():
	}
	return false
}

// onlySharedIntents reports whether only shared intents block this mode.
func onlySharedIntents(rec *record.Record, mode record.Mode) bool {
	if rec == nil || len(rec.Waiters) > 0 || !inTheWayOf(rec, mode) {
		return false
	}
	return !slices.ContainsFunc(rec.Holders, func(h record.Entry) bool {
		return !record.Compatible(h.Mode, mode) && h.Meta[record.IntentKey] != record.SharedIntent || h.Convert.ID != ""
	})
}

func inTheWayOf(rec *record.Record, mode record.Mode) bool {
	return slices.ContainsFunc(rec.Holders, func(h record.Entry) bool { return !record.Compatible(h.Mode, mode) })
}

// sharesIntents reports whether the set uses shared intents. It does so only under a shared lease.
func (g *gathering) sharesIntents() bool {
	return g.m.cfg.linger > 0 && !g.req.ownIntents && !g.req.timing.limited()
}

// joinIntents makes each level that is only an ancestor use a shared intent: an open one at once, or one that another
// set is acquiring when it is granted. If there is none, the level's own entry becomes the shared intent.
func (g *gathering) joinIntents(ctx context.Context, sl *leaseShare) error {
	if !g.sharesIntents() {
		return nil
	}
	taking := false
	for _, l := range g.levels {
		if l.base != record.None {
			continue
		}
		p, mine := sl.sharedIntent(l.enc, l.op.Mode)
		if !mine && !taking { // otherwise two sets could wait for each other
			select {
			case <-p.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if !mine && !l.join(p) && p.endIf(func() bool { return true }) {
			p, mine = sl.sharedIntent(l.enc, l.op.Mode)
		}
		if mine {
			l.taking, taking = p, true
			l.op.Meta = map[string]string{record.IntentKey: record.SharedIntent}
		}
	}
	return nil
}

// join makes the level use a shared intent, unless it was granted before a level above.
func (l *level) join(p *sharedIntent) bool {
	select {
	case <-p.done:
	default:
		return false
	}
	joined := p.hold != nil && l.follows(p.hold) && p.join(l.set, l.unit)
	if joined {
		l.intent = p
	}
	return joined
}

// follows reports whether all levels above are held, with smaller tokens than h.
func (l *level) follows(h *Hold) bool {
	return !slices.ContainsFunc(l.above, func(a *level) bool { return a.hold() == nil || a.hold().Token() > h.Token() })
}

// joinOpen makes the level use a shared intent that is already open.
func (g *gathering) joinOpen(l *level) bool {
	if !g.sharesIntents() || l.base != record.None {
		return false
	}
	sl := l.set.share
	sl.mu.Lock()
	p := sl.findIntent(l.enc, l.op.Mode)
	sl.mu.Unlock()
	return p != nil && l.join(p)
}

// granted stores a grant: as the level's own lock, or as the new shared intent.
func (l *level) granted(h *Hold) {
	p := l.taking
	l.taking = nil
	if p != nil && p.open(h, l.set, l.unit) {
		l.intent = p
		return
	}
	l.lock = &Lock{h}
}

// failIntents ends the shared intents that were not granted.
func (g *gathering) failIntents() {
	for _, l := range g.levels {
		if l.taking != nil {
			l.taking.fail()
			l.taking = nil
		}
		l.op.Meta = l.req.metadata
	}
}
