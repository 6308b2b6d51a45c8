package coalesce

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// session is what an owner knows of one client in its term. It is guarded by the service's mutex.
type session struct {
	manager    string
	subject    string  // of replies
	frames     []frame // that are not taken yet, in their order
	taken      int     // operations of the first of them that are taken
	lastTaken  uint64  // the highest frame that was taken
	lastUsed   time.Time
	leases     map[string]*leaseCheck
	operations map[string]*operation // acquires and tries without their final outcome, by id
	underWay   int                   // operations that neither wait nor have ended

	unsent   []outcome
	missed   span
	isDirty  bool      // among the service's dirty ones
	urgent   bool      // to be answered in this pass
	answerAt time.Time // when to answer otherwise
}

// operation is one that is under way at the engine.
type operation struct {
	engine.Request
	session    *session
	frame      uint64 // that brought it last
	wantsPlace bool
	takesTurns bool // it can hold by a turn
	turnEnded  bool // it held by a turn, and has ended
	isWaiting  bool
	place      record.Place
}

// leaseCheck is whether a client's lease was alive when the owner met it first.
type leaseCheck struct {
	session  *session
	checking bool
	alive    bool
	dead     bool
	waiting  []heldItem // what came meanwhile
}

type heldItem struct {
	item  item
	frame uint64
}

// The bounds of a session.
const (
	maxLeases   = 4096
	leaseReads  = 64 // at the same time, of all sessions
	leaseWithin = 2 * time.Second
	forgetAfter = 10 * time.Minute
)

// sessionOf returns the client's session, nil if there are too many. Called with mu held.
func (s *Service) sessionOf(manager string) *session {
	c := s.sessions[manager]
	if c == nil && len(s.sessions) < maxSessions {
		c = &session{
			manager: manager, subject: inbox(s.cfg.Fabric, s.cfg.Shard, manager) + "r",
			leases: map[string]*leaseCheck{}, operations: map[string]*operation{},
		}
		s.sessions[manager] = c
	}
	return c
}

// arrive notes a frame for the next pass. It reports false where there is no room: for the client that is
// silence, and the frame is missed once a later one is taken. Called with mu held.
func (s *Service) enqueueFrame(manager string, f frame) bool {
	c := s.sessionOf(manager)
	if c == nil || len(c.frames) >= maxFrames || s.unread+len(f.items) > maxOperations {
		return false
	}
	s.unread += len(f.items)
	if c.frames = append(c.frames, f); len(c.frames) == 1 {
		s.ready = append(s.ready, c)
	}
	return true
}

// take takes a session's frames in, up to its share of a pass, and returns what they lead to. Called with mu held.
func (s *Service) processFrames(c *session, now time.Time, reqs []*engine.Request) []*engine.Request {
	for room := maxPass; room > 0 && len(c.frames) > 0; {
		f := &c.frames[0]
		if c.taken == 0 && !s.checkSequence(c, f) {
			s.unread -= len(f.items)
			c.frames = c.frames[1:]
			continue
		}
		items := f.items[c.taken:]
		items = items[:min(len(items), room)]
		for i := range items {
			switch it := &items[i]; {
			case f.stamp != s.cfg.Stamp:
				s.refuse(c, it, f.seq, codeStamp)
			case s.closing || !s.mayWrite():
				s.refuse(c, it, f.seq, codeNotOwner)
			default:
				reqs = s.accept(c, it, f.seq, reqs)
			}
		}
		room -= len(items)
		s.unread -= len(items)
		if c.taken += len(items); c.taken == len(f.items) {
			c.lastTaken, c.lastUsed, c.taken = f.seq, now, 0
			s.markDirty(c, f.ack, now)
			c.frames = c.frames[1:]
		}
	}
	if len(c.frames) == 0 {
		c.frames = nil
	}
	return reqs
}

// begin reports whether a frame is to be taken. Called with mu held.
func (s *Service) checkSequence(c *session, f *frame) bool {
	switch {
	case f.seq <= c.lastTaken:
		// Late, or a second time: what it says may have been taken back since.
		s.stats.Dropped++
		return false
	case f.seq > c.lastTaken+1:
		c.missed = span{c.lastTaken + 1, f.seq - 1}
		c.urgent = true
	}
	return true
}

// accept has an operation carried out, once its lease is known to be alive. Called with mu held.
func (s *Service) accept(c *session, it *item, frame uint64, reqs []*engine.Request) []*engine.Request {
	s.stats.Operations++
	if it.unsupported {
		s.refuse(c, it, frame, codeUnsupported)
		return reqs
	}
	if !isLeaseOf(it.op.Lease, c.manager) {
		s.refuse(c, it, frame, codeLeaseUnknown)
		return reqs
	}
	release := it.op.Verb == record.OpRelease
	l := c.leases[it.op.Lease]
	if l == nil {
		if len(c.leases) >= maxLeases {
			s.refuse(c, it, frame, codeBusy)
			return reqs
		}
		l = &leaseCheck{session: c}
		c.leases[it.op.Lease] = l
	}
	switch {
	case c.underWay >= maxCredit && !release, c.underWay >= 2*maxCredit, s.underWay >= maxOperations:
		s.refuse(c, it, frame, codeBusy)
	case l.checking: // in their order
		l.waiting = append(l.waiting, heldItem{*it, frame})
		s.countStart(c)
	case l.dead && !release:
		s.refuse(c, it, frame, codeLeaseDead)
	case !l.alive && !release:
		l.checking = true
		l.waiting = append(l.waiting, heldItem{*it, frame})
		s.countStart(c)
		s.checkLease(l, it.op.Lease)
	default:
		s.countStart(c)
		reqs = s.startOperation(c, it, frame, reqs)
	}
	return reqs
}

// check reads whether a lease is alive. Called with mu held.
func (s *Service) checkLease(l *leaseCheck, lease string) {
	s.wg.Go(func() {
		s.readSlots <- struct{}{}
		defer func() { <-s.readSlots }()
		ctx, cancel := context.WithTimeout(s.ctx, leaseWithin)
		defer cancel()
		alive, err := s.cfg.LeaseAlive(ctx, lease)
		s.mu.Lock()
		defer s.mu.Unlock()
		l.alive, l.dead = alive && err == nil, !alive && err == nil
		s.resumed = append(s.resumed, l)
		s.wakeLoop()
	})
}

// resume goes on with what waited for a lease to be read. Called with mu held.
func (s *Service) resumeAfterCheck(l *leaseCheck, reqs []*engine.Request) []*engine.Request {
	waited := l.waiting
	l.waiting, l.checking = nil, false
	for i := range waited {
		it, frame := &waited[i].item, waited[i].frame
		switch {
		case it.op.Verb == record.OpRelease, l.alive:
			reqs = s.startOperation(l.session, it, frame, reqs)
			continue
		case l.dead:
			s.refuse(l.session, it, frame, codeLeaseDead)
		default:
			s.refuse(l.session, it, frame, codeLeaseUnknown)
		}
		s.countEnd(l.session)
	}
	return reqs
}

// perform makes a request of an operation. Called with mu held.
func (s *Service) startOperation(c *session, it *item, frame uint64, reqs []*engine.Request) []*engine.Request {
	if it.op.Verb == record.OpRelease {
		on, more := s.passTurn(c, it, frame)
		r := &engine.Request{Key: it.key, Op: it.op, Guest: s.mayWrite, Prove: true}
		r.Done = func(out engine.Outcome, err error) { s.onReleased(c, r, frame, on, out, err) }
		return s.schedule(r, more, reqs)
	}
	if o := c.operations[it.op.ID]; o != nil { // it came again
		s.countEnd(c)
		o.frame = frame
		if o.isWaiting {
			s.sendPlace(o, it.wantsPlace)
		}
		return reqs
	}
	o := &operation{session: c, frame: frame, wantsPlace: it.wantsPlace, takesTurns: it.takesTurns}
	o.Request = engine.Request{Key: it.key, Op: it.op, FailFast: it.failFast, Guest: s.mayWrite, Since: it.sinceRev}
	o.Queued = func(p record.Place) { s.onQueued(o, p) }
	o.Done = func(out engine.Outcome, err error) { s.onAnswered(o, out, err) }
	c.operations[it.op.ID] = o
	return s.schedule(&o.Request, it.takesTurns && s.paces[it.key].isActive(time.Now()), reqs)
}

// began and ended count what is under way. Called with mu held.
func (s *Service) countStart(c *session) {
	c.underWay++
	s.underWay++
}

func (s *Service) countEnd(c *session) {
	c.underWay--
	if s.underWay--; s.underWay == 0 && s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// queued is told that an operation has to wait.
func (s *Service) onQueued(o *operation, p record.Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.isWaiting, o.place = true, p
	s.waiting++
	s.countEnd(o.session)
	s.sendPlace(o, o.wantsPlace)
}

// tellPlace says where an operation waits. Called with mu held.
func (s *Service) sendPlace(o *operation, atOnce bool) {
	out := outcome{kind: queued, lease: o.Op.Lease, seq: sequenceOf(o.Op.ID), frame: o.frame, position: o.place.Position}
	if atOnce && o.place.Blocker.ID != "" {
		out.blocker, out.record = o.place.Blocker.ID, recordOfOne(o.Op.Kind, o.place.Blocker)
	}
	s.send(o.session, out, atOnce)
}

// answered is told the outcome of an acquire or a try.
func (s *Service) onAnswered(o *operation, out engine.Outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := o.session
	if c.operations[o.Op.ID] == o {
		delete(c.operations, o.Op.ID)
	}
	if o.isWaiting {
		s.waiting--
	} else {
		s.countEnd(c)
	}
	a := outcomeOf(&o.Op, out, err)
	if a.kind == granted {
		s.stats.Grants++
	}
	a.frame = o.frame
	if !errors.Is(err, engine.ErrElsewhere) && !o.turnEnded {
		s.send(c, a, true)
	}
}

// released is told the outcome of a release. on is whether its turn went on before.
func (s *Service) onReleased(c *session, r *engine.Request, frame uint64, on bool, out engine.Outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countEnd(c)
	a := outcomeOf(&r.Op, out, err)
	a.frame, a.release = frame, true
	s.send(c, a, !on)
}

// refuse says that an operation was not done. Called with mu held.
func (s *Service) refuse(c *session, it *item, frame uint64, why code) {
	s.stats.Refused++
	s.send(c, outcome{
		kind: notDone, release: it.op.Verb == record.OpRelease, lease: it.op.Lease, seq: sequenceOf(it.op.ID), frame: frame, code: why,
	}, true)
}

// send has an outcome sent, with what else there is for the client. Called with mu held.
func (s *Service) send(c *session, o outcome, atOnce bool) {
	c.unsent = append(c.unsent, o)
	if s.markDirty(c, atOnce, time.Now()); atOnce {
		s.wakeLoop()
	}
}

// list notes that a client is to be answered. Called with mu held.
func (s *Service) markDirty(c *session, atOnce bool, now time.Time) {
	if atOnce {
		c.urgent = true
	}
	if !c.isDirty {
		c.isDirty, c.answerAt = true, now.Add(receiptAfter)
		s.dirty = append(s.dirty, c)
	}
}

// unanswered returns the requests without an outcome that an engine has.
func (s *Service) unanswered() (all []*engine.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.sessions {
		for _, o := range c.operations {
			all = append(all, &o.Request)
		}
	}
	return all
}

// busy reports whether something of the session is under way, or waits.
func (c *session) isBusy() bool { return c.underWay+len(c.operations)+len(c.frames) > 0 }

// idle reports whether nothing has come of a session for long, and nothing is under way.
func (c *session) isIdle(now time.Time) bool {
	return !c.isBusy() && !c.isDirty && now.Sub(c.lastUsed) > forgetAfter
}

// forgetIdle drops the sessions that are idle at now and whose leases are all dead: only then
// can the numbers of their frames be forgotten, since what comes late is refused for its lease.
func (s *Service) forgetIdle(now time.Time) {
	idle := map[*session][]string{}
	s.mu.Lock()
	for _, c := range s.sessions {
		if c.isIdle(now) {
			idle[c] = slices.Collect(maps.Keys(c.leases))
		}
	}
	s.mu.Unlock()
	for c, leases := range idle {
		dead := !slices.ContainsFunc(leases, func(id string) bool {
			ctx, cancel := context.WithTimeout(s.ctx, leaseWithin)
			defer cancel()
			alive, err := s.cfg.LeaseAlive(ctx, id)
			return alive || err != nil
		})
		s.mu.Lock()
		if dead && c.isIdle(now) && len(c.leases) == len(leases) {
			delete(s.sessions, c.manager)
		}
		s.mu.Unlock()
	}
}
