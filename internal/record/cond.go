package record

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Conditions of a lock: queues, by name, of entries that released the lock to wait for a signal. A signal
// moves an entry to the tail of the lock's own queue, so its wait returns with the lock held.

// conditions is the body of a lock with entries that wait for a condition. Otherwise a lock has no body.
type conditions struct {
	queues []Queue // never empty ones; in the order of their names
}

// maxQueueName bounds the name of a condition, in bytes.
const maxQueueName = 128

func validQueue(name string) bool {
	return name != "" && len(name) <= maxQueueName && utf8.ValidString(name)
}

// conditions returns the condition queues of a lock, nil if there are none.
func (r *Record) conditions() []Queue {
	if c, ok := r.Body.(*conditions); ok {
		return c.queues
	}
	return nil
}

// condition returns the entries that wait for the condition.
func (r *Record) condition(name string) []Entry {
	for _, q := range r.conditions() {
		if q.Name == name {
			return q.Waiters
		}
	}
	return nil
}

// inCondition finds an entry that waits for a signal; i is -1 if there is none.
func (r *Record) inCondition(id string) (name string, i int) {
	for _, q := range r.conditions() {
		if i := indexOf(q.Waiters, id); i >= 0 {
			return q.Name, i
		}
	}
	return "", -1
}

func (m *machine) setCondition(name string, list []Entry) {
	m.size = -1 // the sizes of the queues' names change
	c, _ := m.Body.(*conditions)
	if c == nil {
		c = new(conditions)
	}
	i, found := slices.BinarySearchFunc(c.queues, Queue{Name: name}, compareQueues)
	switch {
	case len(list) == 0 && found:
		c.queues = slices.Delete(c.queues, i, i+1)
	case len(list) > 0 && found:
		c.queues[i].Waiters = list
	case len(list) > 0:
		c.queues = slices.Insert(c.queues, i, Queue{Name: name, Waiters: list})
	}
	m.Body = nil
	if len(c.queues) > 0 {
		m.Body = c
	}
}

// queued counts the entries of all queues together.
func (r *Record) queued() int {
	n := len(r.Waiters)
	for _, q := range r.conditions() {
		n += len(q.Waiters)
	}
	return n
}

// holderX returns the hold that op names, if it holds in mode X with op's token, else nil.
func (m *machine) holderX(op *Op) *Entry {
	if i := indexOf(m.Holders, op.Holder); i >= 0 && m.Holders[i].Mode == X && m.Holders[i].Token == op.Token {
		return &m.Holders[i]
	}
	return nil
}

// wait turns the hold into a waiter of the condition, under the new id. If the queue is full, the
// hold only gets the new id: it holds, and was not signalled.
func (m *machine) wait(op *Op) Result {
	if m.Has(op.ID) {
		return m.settled()
	}
	h := m.holderX(op)
	if h == nil {
		m.promote()
		return Result{Verdict: NotHolder}
	}
	hold := *h
	waiter := Entry{ID: op.ID, Mode: X, Owner: hold.Owner, TTL: hold.TTL, Since: hold.Since, Meta: hold.Meta}
	waiters := m.condition(op.Queue)
	n := m.queued() - min(len(m.Waiters), 1) // the head of the queue is granted now
	m.remove(&m.Holders, selection{id: op.Holder})
	m.removed = nil // the entry is still here, and a signal that woke it is used up
	m.setCondition(op.Queue, append(slices.Clip(waiters), waiter))
	if n >= m.lim.MaxWaiters || m.sizeBound() > m.lim.MaxBytes {
		m.setCondition(op.Queue, waiters)
		hold.rename(op.ID)
		m.Holders = append(m.Holders, hold)
		return Result{Verdict: Applied}
	}
	m.Hold = SmoothHold(m.Hold, op.Hold)
	return m.settled()
}

// rename gives a hold the id of a wait that it doesn't begin, so that a late attempt of this wait finds no holder.
func (e *Entry) rename(id string) { e.ID, e.LastSignal, e.Signalled, e.SignalAll = id, 0, "", false }

// cancelWait ends a wait, signalled or not: its entry waits for the lock from now on.
func (m *machine) cancelWait(op *Op) Result {
	if name, i := m.inCondition(op.ID); i >= 0 {
		waiters := m.condition(name)
		e := waiters[i]
		m.setCondition(name, slices.Delete(waiters, i, i+1))
		e.Token = 0
		m.Waiters = append(m.Waiters, e)
	} else if i := indexOf(m.Holders, op.Holder); i >= 0 && m.Holders[i].Token == op.Token && !m.Has(op.ID) {
		m.Holders[i].rename(op.ID)
		m.size = -1
	}
	return m.settled()
}

// signal wakes the first of a condition's queue, or all. A signal that wakes nobody leaves nothing
// behind: no wait can begin while its sender holds.
func (m *machine) signal(op *Op) Result {
	h := m.holderX(op)
	switch {
	case h == nil:
		m.promote()
		return Result{Verdict: NotHolder}
	case h.LastSignal >= sequenceOf(op.ID):
		return Result{Verdict: Applied} // done before
	}
	n := 1
	if op.All {
		n = len(m.condition(op.Queue))
	}
	if m.wake(op.Queue, n, op.All) {
		h.LastSignal = sequenceOf(op.ID)
	}
	return Result{Verdict: Applied}
}

// wake moves the first n of a condition's queue to the tail of the lock's queue, and reports whether there were any.
func (m *machine) wake(name string, n int, all bool) bool {
	waiters := m.condition(name)
	if n = min(n, len(waiters)); n == 0 {
		return false
	}
	for _, e := range waiters[:n] {
		e.Token, e.Signalled, e.SignalAll = 0, name, all
		m.Waiters = append(m.Waiters, e)
	}
	m.setCondition(name, slices.Delete(waiters, 0, n))
	return true
}

// passSignals wakes another entry for each one that a single signal woke and that was removed before it could use the
// lock, so a signal is not lost with a waiter. A hold that was handed out, which its release
// names by the token, passes nothing on.
func (m *machine) passSignals() {
	if m.op.Verb == OpRelease && m.op.Token != 0 {
		return
	}
	for _, e := range m.removed {
		if e.Signalled != "" && !e.SignalAll {
			m.wake(e.Signalled, 1, false)
		}
	}
}

// aheadInConditions returns the entries that an entry waiting for a signal depends on: those before it in its
// condition, and those that a signal of it has woken.
func (r *Record) aheadInConditions(mine func(id string) bool) (ahead []Entry) {
	for _, q := range r.conditions() {
		last := lastOf(q.Waiters, mine)
		if last < 0 {
			continue
		}
		ahead = append(ahead, q.Waiters[:last]...)
		for e := range r.entries() {
			if e.Signalled == q.Name {
				ahead = append(ahead, *e)
			}
		}
	}
	return ahead
}

// validate refuses a record that no lock can have.
func (lockRules) validate(d *decoder) error {
	for e := range d.rec.entries() {
		switch {
		case e.SignalAll && e.Signalled == "", e.Signalled != "" && !validQueue(e.Signalled):
			return d.fail("an entry was signalled without a condition")
		case e.LastSignal > 0 && e.Mode != X:
			return d.fail("a holder in another mode than X has signalled")
		case e.Proclaim > 0 && !e.Value.Set:
			return d.fail("an entry proclaims no value")
		}
	}
	return nil
}

// queues reads {"<condition>":[<waiter>, …], …}.
func (d *decoder) queues() (queues []Queue, err error) {
	err = d.object(func(key []byte) error {
		q := Queue{Name: string(key)}
		if !validQueue(q.Name) || slices.ContainsFunc(queues, func(o Queue) bool { return o.Name == q.Name }) {
			return d.failAt(d.keyAt, "a condition's name is empty, too long, or stands twice")
		}
		var err error
		if q.Waiters, err = d.entries(false); err == nil && len(q.Waiters) == 0 {
			return d.fail("nobody waits for a condition")
		}
		for i := range q.Waiters {
			if e := &q.Waiters[i]; err == nil && (e.Mode != X || e.Signalled != "" || e.SignalAll || e.Value.Set) {
				err = d.fail("an entry that waits for a signal has mode X, and nothing of a signal or a candidate")
			}
		}
		queues = append(queues, q)
		return err
	})
	if err == nil && len(queues) == 0 {
		err = d.fail("no conditions")
	}
	slices.SortFunc(queues, compareQueues)
	return queues, err
}

func appendQueues(dst []byte, queues []Queue) []byte {
	return appendList(dst, "{}", len(queues), func(dst []byte, i int) []byte {
		return appendEntries(append(appendString(dst, queues[i].Name), ':'), KindLock, queues[i].Waiters, false)
	})
}

func compareQueues(a, b Queue) int { return strings.Compare(a.Name, b.Name) }

func (c *conditions) clone() Body {
	o := &conditions{queues: slices.Clone(c.queues)}
	for i := range o.queues {
		o.queues[i].Waiters = slices.Clone(o.queues[i].Waiters)
	}
	return o
}

// bound: an entry that waits here is signalled some time, and is longer then.
func (c *conditions) bound(m *machine) int {
	n := len(`,"conds":{}`)
	for _, q := range c.queues {
		m.scratch = appendString(m.scratch[:0], q.Name)
		n += len(m.scratch) + len(":[],")
		for i := range q.Waiters {
			e := q.Waiters[i]
			e.Signalled = q.Name
			n += m.entryBound(&e)
		}
	}
	return n
}

func (c *conditions) remove(gone selection, m *machine) {
	for _, q := range slices.Clone(c.queues) {
		kept := slices.DeleteFunc(q.Waiters, func(e Entry) bool { return gone.has(&e) })
		if len(kept) < len(q.Waiters) {
			m.setCondition(q.Name, kept)
		}
	}
}
