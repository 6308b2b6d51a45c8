package coalesce

import (
	"errors"
	"regexp"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// janitor forgets idle sessions every minute.
func (s *Service) janitor() {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.forgetIdle(now)
		case <-s.ctx.Done():
			return
		}
	}
}

// loop takes the frames that have arrived, submits their operations, and sends the replies.
func (s *Service) loop() {
	t := time.NewTimer(0)
	defer t.Stop()
	var beaten time.Time
	var promised time.Duration // longest time from the last beat to the next one, as the last one said
	var reqs []*engine.Request
	for {
		now := time.Now()
		var paced time.Time
		reqs, paced = s.processSessions(now, reqs[:0])
		next := s.flush() // send turns before the writes
		if next.IsZero() || !paced.IsZero() && paced.Before(next) {
			next = paced
		}
		s.cfg.Doer.Submit(reqs...)
		clear(reqs)
		if now.Sub(beaten) >= min(s.beatEvery(), promised) && s.mayWrite() {
			b := s.beat()
			beaten, promised = now, time.Duration(b.next)*time.Millisecond
			_ = s.cfg.Conn.Publish(BeatSubject(s.cfg.Fabric, s.cfg.Shard), b.append(nil))
		}
		if at := now.Add(max(min(s.beatEvery(), promised)-now.Sub(beaten), beatBusy/4)); next.IsZero() || at.Before(next) {
			next = at
		}
		t.Reset(max(time.Until(next), 0))
		select {
		case <-s.wake:
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
	}
}

// processSessions takes from each session's frames at most its share. next is the time at which delayed requests are
// due.
func (s *Service) processSessions(now time.Time, reqs []*engine.Request) (_ []*engine.Request, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.resumed {
		reqs = s.resumeAfterCheck(l, reqs)
	}
	s.resumed = nil
	more := s.ready[:0]
	for _, c := range s.ready {
		if reqs = s.processFrames(c, now, reqs); len(c.frames) > 0 {
			more = append(more, c)
			s.wakeLoop()
		}
	}
	clear(s.ready[len(more):])
	s.ready = more
	return s.dueRequests(now, reqs)
}

// flush sends the replies that are due. next is the time at which further ones are due.
func (s *Service) flush() (next time.Time) {
	now := time.Now()
	type letter struct {
		subject string
		data    []byte
	}
	var letters []letter
	s.mu.Lock()
	later := s.dirty[:0]
	for _, c := range s.dirty {
		if !c.urgent && now.Before(c.answerAt) {
			if later = append(later, c); next.IsZero() || c.answerAt.Before(next) {
				next = c.answerAt
			}
			continue
		}
		for first := true; first || len(c.unsent) > 0; first = false {
			p := reply{term: s.cfg.Term, upto: c.lastTaken, missed: c.missed, outcomes: c.unsent[:outcomesPerReply(c.unsent)]}
			letters = append(letters, letter{c.subject, p.append(nil)})
			c.unsent, c.missed = c.unsent[len(p.outcomes):], span{}
			s.stats.Replies++
		}
		c.unsent, c.isDirty, c.urgent = nil, false, false
	}
	clear(s.dirty[len(later):])
	s.dirty = later
	s.mu.Unlock()
	for _, l := range letters {
		_ = s.cfg.Conn.Publish(l.subject, l.data)
	}
	return next
}

// outcomesPerReply returns how many of the outcomes go into one message.
func outcomesPerReply(out []outcome) int {
	size := 0
	for i := range min(len(out), maxOps) {
		if size += 128 + 2*len(out[i].lease) + len(out[i].record); size > maxFrame/2 && i > 0 {
			return i
		}
	}
	return min(len(out), maxOps)
}

// beatEvery returns the interval of the beats.
func (s *Service) beatEvery() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting+s.underWay == 0 {
		return beatIdle
	}
	return min(beatBusy*time.Duration(1+len(s.sessions)/500), time.Second)
}

func (s *Service) beat() beat {
	return beat{
		term: s.cfg.Term, stamp: s.cfg.Stamp, lease: s.cfg.Lease, rank: s.cfg.Rank,
		min: frameVersion, max: frameVersion, next: uint64(s.beatEvery().Milliseconds()),
	}
}

// outcomeOf returns the outcome to send for what the engine has answered.
func outcomeOf(op *record.Op, out engine.Outcome, err error) outcome {
	a := outcome{lease: op.Lease, seq: sequenceOf(op.ID), rev: out.Revision}
	var no *engine.RefusedError
	switch {
	case err == nil && op.Verb == record.OpRelease:
		a.kind, a.existed = done, out.Existed
	case err == nil:
		a.kind = granted
		if e := out.Entry; e != nil {
			a.token, a.revoked, a.letTurn, a.mode, a.permits = e.Token, e.Revoked, e.LetTurn, e.Mode, e.Permits
		}
		a.alone = out.Record != nil && len(out.Record.Holders)+len(out.Record.Waiters) == 1
	case errors.As(err, &no):
		a.kind, a.verdict, a.have, a.limit = refused, no.Verdict, no.Have, no.Limit
		a.wait, a.position, a.uncertain = no.Wait, no.Position, no.Uncertain
		a.blocker, a.record = no.Blocker.ID, recordPrefix(no.Record)
		if a.record == nil && no.Blocker.ID != "" {
			a.record = recordOfOne(op.Kind, no.Blocker)
		}
	case errors.Is(err, engine.ErrGone):
		a.kind = gone
	case errors.Is(err, engine.ErrOvertaken):
		a.kind, a.code = notDone, codeOvertaken
	case errors.Is(err, engine.ErrNotEntitled):
		a.kind, a.code, a.uncertain = notDone, codeNotOwner, true
	default:
		a.kind, a.code, a.uncertain = notDone, codeFailed, true
	}
	return a
}

// maxPrefix and maxPrefixBytes bound the part of a record that is sent with a refusal.
const (
	maxPrefix      = 32
	maxPrefixBytes = 8 << 10
)

// recordPrefix encodes the first entries of a record. It returns nil for nil, and if these entries are too
// large.
func recordPrefix(rec *record.Record) []byte {
	if rec == nil {
		return nil
	}
	cut := *rec
	cut.Holders = cut.Holders[:min(len(cut.Holders), maxPrefix)]
	cut.Waiters = cut.Waiters[:min(len(cut.Waiters), maxPrefix-len(cut.Holders))]
	b := cut.Append(nil)
	if len(b) > maxPrefixBytes {
		return nil
	}
	return b
}

// recordOfOne encodes a record with one holder.
func recordOfOne(kind record.Kind, e record.Entry) []byte {
	return recordPrefix(&record.Record{Kind: kind, Holders: []record.Entry{e}})
}

var isVersion = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$`)

// semver returns v if package micro accepts it as a version, and 0.0.0-dev if not.
func semver(v string) string {
	if isVersion.MatchString(v) {
		return v
	}
	return "0.0.0-dev"
}
