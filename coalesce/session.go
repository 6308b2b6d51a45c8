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
	manager string
	subject string  // of replies
	in      []frame // that are not taken yet, in their order
	begun   int     // operations of the first of them that are taken
	top     uint64  // the highest frame that was taken
	used    time.Time
	leases  map[string]*leaseCheck
	live    map[string]*operation // acquires and tries without their final outcome, by id
	under   int                   // operations that neither wait nor have ended

	out    []outcome
	missed span
	listed bool      // among the service's dirty ones
	urgent bool      // to be answered in this pass
	due    time.Time // when to answer otherwise
}

// operation is one that is under way at the engine.
type operation struct {
	engine.Request
	session *session
	frame   uint64 // that brought it last
	tell    bool
	turns   bool // it can hold by a turn
	over    bool // it held by a turn, and has ended
	waits   bool
	place   record.Place
}

// leaseCheck is whether a client's lease was alive when the owner met it first.
type leaseCheck struct {
	session  *session
	checking bool
	alive    bool
	dead     bool
	held     []held // what came meanwhile
}

type held struct {
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
			leases: map[string]*leaseCheck{}, live: map[string]*operation{},
		}
		s.sessions[manager] = c
	}
	return c
}

// arrive notes a frame for the next pass. It reports false where there is no room: for the client that is
// silence, and the frame is missed once a later one is taken. Called with mu held.
func (s *Service) arrive(manager string, f frame) bool {
	c := s.sessionOf(manager)
	if c == nil || len(c.in) >= maxFrames || s.unread+len(f.items) > maxOperations {
		return false
	}
	s.unread += len(f.items)
	if c.in = append(c.in, f); len(c.in) == 1 {
		s.ready = append(s.ready, c)
	}
	return true
}

// take takes a session's frames in, up to its share of a pass, and returns what they lead to. Called with mu held.
func (s *Service) take(c *session, now time.Time, reqs []*engine.Request) []*engine.Request {
	for room := maxPass; room > 0 && len(c.in) > 0; {
		f := &c.in[0]
		if c.begun == 0 && !s.begin(c, f) {
			s.unread -= len(f.items)
			c.in = c.in[1:]
			continue
		}
		items := f.items[c.begun:]
		items = items[:min(len(items), room)]
		for i := range items {
			switch it := &items[i]; {
			case f.stamp != s.cfg.Stamp:
				s.refuse(c, it, f.seq, codeStamp)
			case s.closing || !s.entitled():
				s.refuse(c, it, f.seq, codeNotOwner)
			default:
				reqs = s.accept(c, it, f.seq, reqs)
			}
		}
		room -= len(items)
		s.unread -= len(items)
		if c.begun += len(items); c.begun == len(f.items) {
			c.top, c.used, c.begun = f.seq, now, 0
			s.list(c, f.ack, now)
			c.in = c.in[1:]
		}
	}
	if len(c.in) == 0 {
		c.in = nil
	}
	return reqs
}

// begin reports whether a frame is to be taken. Called with mu held.
func (s *Service) begin(c *session, f *frame) bool {
	switch {
	case f.seq <= c.top:
		// Late, or a second time: what it says may have been taken back since.
		s.stats.Dropped++
		return false
	case f.seq > c.top+1:
		c.missed = span{c.top + 1, f.seq - 1}
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
	if !leaseOf(it.op.Lease, c.manager) {
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
	case c.under >= maxCredit && !release, c.under >= 2*maxCredit, s.under >= maxOperations:
		s.refuse(c, it, frame, codeBusy)
	case l.checking: // in their order
		l.held = append(l.held, held{*it, frame})
		s.began(c)
	case l.dead && !release:
		s.refuse(c, it, frame, codeLeaseDead)
	case !l.alive && !release:
		l.checking = true
		l.held = append(l.held, held{*it, frame})
		s.began(c)
		s.check(l, it.op.Lease)
	default:
		s.began(c)
		reqs = s.perform(c, it, frame, reqs)
	}
	return reqs
}

// check reads whether a lease is alive. Called with mu held.
func (s *Service) check(l *leaseCheck, lease string) {
	s.wg.Go(func() {
		s.reads <- struct{}{}
		defer func() { <-s.reads }()
		ctx, cancel := context.WithTimeout(s.ctx, leaseWithin)
		defer cancel()
		alive, err := s.cfg.LeaseAlive(ctx, lease)
		s.mu.Lock()
		defer s.mu.Unlock()
		l.alive, l.dead = alive && err == nil, !alive && err == nil
		s.resumed = append(s.resumed, l)
		s.nudge()
	})
}

// resume goes on with what waited for a lease to be read. Called with mu held.
func (s *Service) resume(l *leaseCheck, reqs []*engine.Request) []*engine.Request {
	waited := l.held
	l.held, l.checking = nil, false
	for i := range waited {
		it, frame := &waited[i].item, waited[i].frame
		switch {
		case it.op.Verb == record.OpRelease, l.alive:
			reqs = s.perform(l.session, it, frame, reqs)
			continue
		case l.dead:
			s.refuse(l.session, it, frame, codeLeaseDead)
		default:
			s.refuse(l.session, it, frame, codeLeaseUnknown)
		}
		s.ended(l.session)
	}
	return reqs
}

// perform makes a request of an operation. Called with mu held.
func (s *Service) perform(c *session, it *item, frame uint64, reqs []*engine.Request) []*engine.Request {
	if it.op.Verb == record.OpRelease {
		on, more := s.passOn(c, it, frame)
		r := &engine.Request{Key: it.key, Op: it.op, Guest: s.entitled, Prove: true}
		r.Done = func(out engine.Outcome, err error) { s.released(c, r, frame, on, out, err) }
		return s.give(r, more, reqs)
	}
	if o := c.live[it.op.ID]; o != nil { // it came again
		s.ended(c)
		o.frame = frame
		if o.waits {
			s.tellPlace(o, it.tell)
		}
		return reqs
	}
	o := &operation{session: c, frame: frame, tell: it.tell, turns: it.turns}
	o.Request = engine.Request{Key: it.key, Op: it.op, FailFast: it.failFast, Guest: s.entitled, Since: it.since}
	o.Queued = func(p record.Place) { s.queued(o, p) }
	o.Done = func(out engine.Outcome, err error) { s.answered(o, out, err) }
	c.live[it.op.ID] = o
	return s.give(&o.Request, it.turns && s.paces[it.key].runs(time.Now()), reqs)
}

// began and ended count what is under way. Called with mu held.
func (s *Service) began(c *session) {
	c.under++
	s.under++
}

func (s *Service) ended(c *session) {
	c.under--
	if s.under--; s.under == 0 && s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// queued is told that an operation has to wait.
func (s *Service) queued(o *operation, p record.Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.waits, o.place = true, p
	s.waiting++
	s.ended(o.session)
	s.tellPlace(o, o.tell)
}

// tellPlace says where an operation waits. Called with mu held.
func (s *Service) tellPlace(o *operation, atOnce bool) {
	out := outcome{kind: queued, lease: o.Op.Lease, seq: sequenceOf(o.Op.ID), frame: o.frame, position: o.place.Position}
	if atOnce && o.place.Blocker.ID != "" {
		out.blocker, out.record = o.place.Blocker.ID, oneEntry(o.Op.Kind, o.place.Blocker)
	}
	s.send(o.session, out, atOnce)
}

// answered is told the outcome of an acquire or a try.
func (s *Service) answered(o *operation, out engine.Outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := o.session
	if c.live[o.Op.ID] == o {
		delete(c.live, o.Op.ID)
	}
	if o.waits {
		s.waiting--
	} else {
		s.ended(c)
	}
	a := outcomeOf(&o.Op, out, err)
	if a.kind == granted {
		s.stats.Grants++
	}
	a.frame = o.frame
	if !errors.Is(err, engine.ErrElsewhere) && !o.over {
		s.send(c, a, true)
	}
}

// released is told the outcome of a release. on is whether its turn went on before.
func (s *Service) released(c *session, r *engine.Request, frame uint64, on bool, out engine.Outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended(c)
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
	c.out = append(c.out, o)
	if s.list(c, atOnce, time.Now()); atOnce {
		s.nudge()
	}
}

// list notes that a client is to be answered. Called with mu held.
func (s *Service) list(c *session, atOnce bool, now time.Time) {
	if atOnce {
		c.urgent = true
	}
	if !c.listed {
		c.listed, c.due = true, now.Add(receiptAfter)
		s.dirty = append(s.dirty, c)
	}
}

// unanswered returns the requests without an outcome that an engine has.
func (s *Service) unanswered() (all []*engine.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.sessions {
		for _, o := range c.live {
			all = append(all, &o.Request)
		}
	}
	return all
}

// busy reports whether something of the session is under way, or waits.
func (c *session) busy() bool { return c.under+len(c.live)+len(c.in) > 0 }

// idle reports whether nothing has come of a session for long, and nothing is under way.
func (c *session) idle(now time.Time) bool {
	return !c.busy() && !c.listed && now.Sub(c.used) > forgetAfter
}

// forgetIdle drops the sessions that are idle at now and whose leases are all dead: only then
// can the numbers of their frames be forgotten, since what comes late is refused for its lease.
func (s *Service) forgetIdle(now time.Time) {
	idle := map[*session][]string{}
	s.mu.Lock()
	for _, c := range s.sessions {
		if c.idle(now) {
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
		if dead && c.idle(now) && len(c.leases) == len(leases) {
			delete(s.sessions, c.manager)
		}
		s.mu.Unlock()
	}
}
