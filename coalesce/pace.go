package coalesce

import (
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
)

// While turns pass a lock with a long queue on, its record is written less often: one write contains the requests of
// paceTime. It is sent earlier if there are paceMost requests, or one that must not be delayed.
const (
	paceTime  = 2 * time.Millisecond
	paceMost  = 256
	paceQueue = 8 // writes are delayed if more than this number of entries wait behind the turn
	paceRuns  = 5 * paceTime
)

// pace is the requests for one key whose write may wait.
type pace struct {
	reqs      []*engine.Request
	lastWrite time.Time // when its requests were last given to the engine
	lastTurn  time.Time // when a turn that slows the writes was last passed
}

// isActive reports whether the key's writes are delayed.
func (p *pace) isActive(now time.Time) bool { return p != nil && now.Sub(p.lastTurn) < paceRuns }

// passTurn passes the turn of a hold that has ended to the next waiter, if the waiter is known and can hold by a
// turn. more says that so many wait behind it that the write of the release can be delayed. Called with mu held.
func (s *Service) passTurn(c *session, it *item, frame uint64) (on, more bool) {
	if !it.passesTurn || s.cfg.Known == nil {
		return false, false
	}
	rec, rev, _ := s.cfg.Known(it.key) // an older record will do
	next, ok := rec.Behind(it.op.ID, it.op.Token)
	if !ok {
		return false, false
	}
	manager, _, _ := strings.Cut(next.Lease(), "-")
	to := s.sessions[manager]
	if to == nil || to.operations[next.ID] == nil || !to.operations[next.ID].takesTurns {
		return false, false
	}
	if o := c.operations[it.op.ID]; o != nil {
		o.turnEnded = true
	}
	o := to.operations[next.ID]
	s.send(to, outcome{
		kind: turnCame, lease: next.Lease(), seq: sequenceOf(next.ID), frame: o.frame,
		rev: rev, token: next.Token, mode: next.Mode, blocker: it.op.ID, endedToken: it.op.Token,
	}, true)
	s.send(c, outcome{kind: turnPassed, release: true, lease: it.op.Lease, seq: sequenceOf(it.op.ID), frame: frame, rev: rev}, true)
	s.stats.Turns++
	_, before, _ := rec.Waiter(next.ID)
	if more = len(rec.Waiters)-before > paceQueue; more {
		p := s.paces[it.key]
		if p == nil {
			p = &pace{}
			s.paces[it.key] = p
		}
		p.lastTurn = time.Now()
	}
	return true, more
}

// schedule adds a request to reqs, behind the delayed ones of its key. If late is set, the request is delayed
// itself. Called with mu held.
func (s *Service) schedule(r *engine.Request, late bool, reqs []*engine.Request) []*engine.Request {
	p := s.paces[r.Key]
	if late {
		p.reqs = append(p.reqs, r)
		return reqs
	}
	if p != nil {
		reqs = p.take(time.Now(), reqs)
	}
	return append(reqs, r)
}

// take adds the delayed requests to reqs.
func (p *pace) take(now time.Time, reqs []*engine.Request) []*engine.Request {
	reqs = append(reqs, p.reqs...)
	clear(p.reqs)
	p.reqs, p.lastWrite = p.reqs[:0], now
	return reqs
}

// dueRequests adds the delayed requests that are due, and returns the time at which the next are. Called with mu held.
func (s *Service) dueRequests(now time.Time, reqs []*engine.Request) (_ []*engine.Request, next time.Time) {
	for key, p := range s.paces {
		due := p.lastWrite.Add(paceTime)
		switch {
		case len(p.reqs) == 0:
			if !p.isActive(now) {
				delete(s.paces, key)
			}
		case len(p.reqs) >= paceMost, !now.Before(due), s.closing:
			reqs = p.take(now, reqs)
		case next.IsZero() || due.Before(next):
			next = due
		}
	}
	return reqs, next
}
