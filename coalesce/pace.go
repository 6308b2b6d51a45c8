package coalesce

import (
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
)

// A lock whose queue is long is passed on from turn to turn, and the record follows: one write for what came
// in paceTime, or sooner for paceMost requests, or for one that nobody may be kept waiting for.
const (
	paceTime  = 2 * time.Millisecond
	paceMost  = 256
	paceQueue = 8 // who waits behind a turn until the writes are paced
	paceRuns  = 5 * paceTime
)

// pace is the requests for one key that are in no hurry.
type pace struct {
	reqs      []*engine.Request
	lastWrite time.Time // when the last were given to the engine
	lastTurn  time.Time // when the last turn went on for which writes are paced
}

// runs reports whether the key's writes are paced.
func (p *pace) isActive(now time.Time) bool { return p != nil && now.Sub(p.lastTurn) < paceRuns }

// passOn passes the turn of a hold that has ended on, if it is known who is next and that can hold by a
// turn. more is whether so many wait behind that the write can wait. Called with mu held.
func (s *Service) passTurn(c *session, it *item, frame uint64) (on, more bool) {
	if !it.passesTurn || s.cfg.Known == nil {
		return false, false
	}
	rec, rev, _ := s.cfg.Known(it.key) // it need not be the newest of all
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

// give has a request carried out, behind those of its key that are in no hurry: at once, unless it is in none
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

func (p *pace) take(now time.Time, reqs []*engine.Request) []*engine.Request {
	reqs = append(reqs, p.reqs...)
	clear(p.reqs)
	p.reqs, p.lastWrite = p.reqs[:0], now
	return reqs
}

// paced adds what is due, and returns when there is more. Called with mu held.
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
