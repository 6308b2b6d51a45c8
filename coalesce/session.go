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

// session is what an owner knows of one client in its term. The service's mutex guards it.
type session struct {
	manager    string
	subject    string  // where its replies go
	frames     []frame // not taken yet, in their order
	taken      int     // operations of the first of these that were taken
	lastTaken  uint64  // the number of the last frame that was taken
	lastUsed   time.Time
	leases     map[string]*leaseCheck
	operations map[string]*operation // by id: acquires and tries without a final outcome
	underWay   int                   // operations that neither wait nor have ended

	unsent   []outcome
	missed   span
	isDirty  bool      // it is in the service's dirty list
	urgent   bool      // the next flush sends its reply
	answerAt time.Time // when its reply is sent if it is not urgent
}

// operation is an acquire or a try that the engine carries out.
type operation struct {
	engine.Request
	session    *session
	frame      uint64 // the last frame that contained it
	wantsPlace bool
	takesTurns bool // it can hold by a turn
	turnEnded  bool // it held by a turn, and that hold has ended
	isWaiting  bool
	place      record.Place
}

// leaseCheck is what an owner has found out about a client's lease.
type leaseCheck struct {
	session  *session
	checking bool
	alive    bool
	dead     bool
	waiting  []heldItem // operations that arrived during the check
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

// sessionOf returns the client's session, or nil if there are too many sessions. Called with mu held.
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

// enqueueFrame keeps a frame for the next pass. It returns false if there is no room. The client then gets no
// answer, and the owner reports the frame as missed once it takes a later one. Called with mu held.
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

// processFrames takes a session's frames, up to its share of a pass, and adds their requests to reqs. Called with mu held.
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

// checkSequence reports whether a frame may be taken. It notes the frames that were missed before it. Called with mu held.
func (s *Service) checkSequence(c *session, f *frame) bool {
	switch {
	case f.seq <= c.lastTaken:
		// It is late or repeated: its operations may have been undone since.
		s.stats.Dropped++
		return false
	case f.seq > c.lastTaken+1:
		c.missed = span{c.lastTaken + 1, f.seq - 1}
		c.urgent = true
	}
	return true
}

// accept starts an operation once its lease is known to be alive. Called with mu held.
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
	case l.checking: // keep the order
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

// checkLease reads in the background whether a lease is alive. Called with mu held.
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

// resumeAfterCheck starts or refuses the operations that have waited for the check of a lease. Called with mu held.
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

// startOperation makes a request of an operation. Called with mu held.
func (s *Service) startOperation(c *session, it *item, frame uint64, reqs []*engine.Request) []*engine.Request {
	if it.op.Verb == record.OpRelease {
		on, more := s.passTurn(c, it, frame)
		r := &engine.Request{Key: it.key, Op: it.op, Guest: s.mayWrite, Prove: true}
		r.Done = func(out engine.Outcome, err error) { s.onReleased(c, r, frame, on, out, err) }
		return s.schedule(r, more, reqs)
	}
	if o := c.operations[it.op.ID]; o != nil { // a repeated operation
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

// countStart and countEnd count the operations under way. Called with mu held.
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

// onQueued is called when an operation has to wait.
func (s *Service) onQueued(o *operation, p record.Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.isWaiting, o.place = true, p
	s.waiting++
	s.countEnd(o.session)
	s.sendPlace(o, o.wantsPlace)
}

// sendPlace sends the place at which an operation waits. Called with mu held.
func (s *Service) sendPlace(o *operation, atOnce bool) {
	out := outcome{kind: queued, lease: o.Op.Lease, seq: sequenceOf(o.Op.ID), frame: o.frame, position: o.place.Position}
	if atOnce && o.place.Blocker.ID != "" {
		out.blocker, out.record = o.place.Blocker.ID, recordOfOne(o.Op.Kind, o.place.Blocker)
	}
	s.send(o.session, out, atOnce)
}

// onAnswered is called with the outcome of an acquire or a try.
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

// onReleased is called with the outcome of a release. on says that its turn was passed on before.
func (s *Service) onReleased(c *session, r *engine.Request, frame uint64, on bool, out engine.Outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countEnd(c)
	a := outcomeOf(&r.Op, out, err)
	a.frame, a.release = frame, true
	s.send(c, a, !on)
}

// refuse answers that an operation was not done. Called with mu held.
func (s *Service) refuse(c *session, it *item, frame uint64, why code) {
	s.stats.Refused++
	s.send(c, outcome{
		kind: notDone, release: it.op.Verb == record.OpRelease, lease: it.op.Lease, seq: sequenceOf(it.op.ID), frame: frame, code: why,
	}, true)
}

// send adds an outcome to the client's next reply. Called with mu held.
func (s *Service) send(c *session, o outcome, atOnce bool) {
	c.unsent = append(c.unsent, o)
	if s.markDirty(c, atOnce, time.Now()); atOnce {
		s.wakeLoop()
	}
}

// markDirty puts a session into the dirty list. Called with mu held.
func (s *Service) markDirty(c *session, atOnce bool, now time.Time) {
	if atOnce {
		c.urgent = true
	}
	if !c.isDirty {
		c.isDirty, c.answerAt = true, now.Add(receiptAfter)
		s.dirty = append(s.dirty, c)
	}
}

// unanswered returns the engine's requests without an outcome.
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

// isBusy reports whether an operation of the session waits or is under way, or a frame is not taken yet.
func (c *session) isBusy() bool { return c.underWay+len(c.operations)+len(c.frames) > 0 }

// isIdle reports whether the session is not busy, has no reply to send, and got no frame for forgetAfter.
func (c *session) isIdle(now time.Time) bool {
	return !c.isBusy() && !c.isDirty && now.Sub(c.lastUsed) > forgetAfter
}

// forgetIdle drops the sessions that are idle and whose leases are all dead. While a lease
// lives, the number of the last frame is needed to recognise late frames. Afterwards late operations are refused for their lease.
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
