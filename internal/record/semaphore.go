package record

import (
	"iter"
	"slices"
	"time"
)

// semaphoreRules are the rules of semaphores: each entry has a number of permits. The sum of the permits
// held is at most the size, unless the size was made smaller since. First come, first
// served: the head of the queue waits until it fits, and no waiter overtakes it.
type semaphoreRules struct{ baseRules }

// semaphore is the body.
type semaphore struct {
	size    int
	initial int    // the size at creation; its users have to agree on it until a resize
	sized   uint64 // revision of the write that set the size; 0 = this record's
	resized bool
}

func (r *Record) semaphore() *semaphore { return r.Body.(*semaphore) }

func (r *Record) permitsHeld() (out int) {
	for i := range r.Holders {
		out += r.Holders[i].Permits
	}
	return out
}

func (semaphoreRules) facts(r *Record, f *Facts) {
	s := r.semaphore()
	f.Size, f.Taken, f.Initial, f.Sized = s.size, r.permitsHeld(), s.initial, s.sized
}

func (semaphoreRules) initBody(r *Record, op *Op) {
	r.Body = &semaphore{size: op.Limit, initial: op.Limit}
}

// idle: a size that was set by a resize is worth keeping.
func (semaphoreRules) idle(r *Record) bool { return r.semaphore().size == r.semaphore().initial }

func (semaphoreRules) verbs() *verbTable { return &semaphoreVerbs }

var semaphoreVerbs = verbTable{
	OpAcquire: {needEntry | needN | needLimit | waits | blind, OpRelease, (*machine).acquirePermits},
	OpTry:     {needEntry | needN | needLimit | waits | blind, OpRelease, (*machine).acquirePermits},
	OpDrain:   {needEntry | needLimit | waits | blind, OpRelease, (*machine).acquirePermits},
	OpReduce:  {needID | needHolder | needN | mustComplete, 0, (*machine).reduce},
	OpResize:  {needN | needLimit | needLife, 0, (*machine).resize},
	OpDelete:  {needLife, 0, (*machine).delete},
}

func (m *machine) reduce(op *Op) Result {
	if i := indexOf(m.Holders, op.Holder); i >= 0 {
		m.Holders[i].Permits = min(m.Holders[i].Permits, op.N)
	}
	return m.settled()
}

func (m *machine) acquirePermits(op *Op) Result {
	if m.Has(op.ID) {
		return m.settled()
	}
	s := m.semaphore()
	e := op.entry()
	free := s.size - m.permitsHeld()
	if op.Verb == OpDrain {
		e.Permits = max(free, 1)
	}
	switch {
	case !s.resized && op.Limit != s.initial:
		return Result{Verdict: SizeMismatch, Have: s.initial}
	case e.Permits > s.size:
		return Result{Verdict: TooLarge, Have: s.size}
	}
	granted := firstInLine(m.Waiters) < 0 && e.Permits <= free && len(m.Holders) < m.lim.MaxHolders
	if !granted && op.Verb != OpAcquire {
		return Result{Verdict: Held, Blocker: m.oldestEntry()}
	}
	return m.admit(op, e, granted, len(m.Waiters))
}

func (m *machine) resize(op *Op) Result {
	s := m.semaphore()
	switch {
	case op.Base == s.sized && !(s.sized == 0 && s.resized): // by an operation of this write, that is
		s.size, s.sized, s.resized = op.N, 0, true
	case op.N != s.size: // else it was done, by this one or by another
		return Result{Verdict: Stale}
	}
	for i := range m.Waiters {
		if m.Waiters[i].Permits > s.size {
			m.Waiters[i].Refused = true
		}
	}
	return m.settled()
}

// firstInLine returns the index of the first waiter that is not refused, -1 if there is none.
func firstInLine(waiters []Entry) int {
	return slices.IndexFunc(waiters, func(e Entry) bool { return !e.Refused })
}

// settle grants from the head of the queue all that fit. It skips refused waiters, which are being removed.
func (semaphoreRules) settle(m *machine) {
	free := m.semaphore().size - m.permitsHeld()
	kept := m.Waiters[:0]
	stop := false
	for _, e := range m.Waiters {
		stop = stop || !e.Refused && (e.Permits > free || len(m.Holders) >= m.lim.MaxHolders)
		if stop || e.Refused {
			kept = append(kept, e)
			continue
		}
		free -= e.Permits
		e.Token = 0
		m.Holders = append(m.Holders, e)
	}
	clear(m.Waiters[len(kept):])
	m.Waiters = nilIfEmpty(kept)
}

func (semaphoreRules) blockerOf(r *Record, op *Op) (Entry, bool) {
	_, before, _ := r.Waiter(op.ID)
	for before--; before >= 0; before-- {
		if !r.Waiters[before].Refused {
			return r.Waiters[before], true
		}
	}
	if len(r.Holders) > 0 {
		return r.Holders[0], true
	}
	return Entry{}, false
}

func (k semaphoreRules) ahead(r *Record, mine func(string) bool) (iter.Seq2[string, time.Duration], bool) {
	leases, _ := k.baseRules.ahead(r, mine)
	head := firstInLine(r.Waiters)
	return leases, head >= 0 && mine(r.Waiters[head].ID)
}

func (s *semaphore) fields(f *fields) {
	f.count(`,"size":`, &s.size)
	f.need()
	f.count(`,"initial":`, &s.initial)
	f.need()
	f.token(`,"sized":`, &s.sized)
	f.flag(`,"resized":`, &s.resized)
}

func (semaphoreRules) validate(d *decoder) error {
	if d.missing {
		return d.fail("a semaphore needs size, initial and sized")
	}
	return nil
}

func (s *semaphore) clone() Body { return new(*s) }

func (s *semaphore) bound(*machine) int {
	return len(appendBody(nil, &semaphore{size: maxCount, initial: maxCount, resized: true}))
}
