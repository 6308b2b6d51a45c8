package record

// A ticket is the revision of the write that queued an entry, or granted it at once, and a number of 11 bits:
// from 1 along the queue for those who wait from that write on, and 0 for those who hold, who are
// compatible with each other. An entry keeps its ticket when it is granted: it is the fencing token.
//
// Tickets increase along the queue, and a waiter's is larger than every token that was granted before. A write
// that breaks this gives all waiters new ones, of its own revision; see machine.reticket.

const ticketBits = 11

// MaxWaiters is how many waiters a record has at most, in all queues together: one write can give all of
// them tickets.
const MaxWaiters = 1<<ticketBits - 1

// Ticket returns the n-th ticket of a revision, as a number that is below 2^63.
func Ticket(rev uint64, n int) uint64 { return rev<<ticketBits | uint64(n) }

// RevisionOf returns the revision of a ticket, 0 of one without.
func RevisionOf(token uint64) uint64 { return token >> ticketBits }

// NewestHold returns the greatest token of those who hold, 0 where nobody does. Who holds later has a greater one.
func (r *Record) NewestHold() (token uint64) {
	for i := range r.Holders {
		token = max(token, r.Holders[i].Token)
	}
	return token
}

// number gives those their tickets who have come to wait by the write at hand; until then they have 0, as
// those who hold by it have for good.
func (m *machine) number() {
	n := uint64(0)
	give := func(list []Entry) {
		for i := range list {
			if list[i].Token == 0 {
				n++
				list[i].Token = n
			}
		}
	}
	give(m.Waiters)
	for _, q := range m.conditions() {
		give(q.Waiters)
	}
}

// overtaken notes that a holder in the mode is none any more, or in another mode. Beside a hold of an intent
// others hold parts of what it is on, with larger tokens than those who wait for the whole have.
func (m *machine) overtaken(mode Mode) {
	m.stale = m.stale || mode == IS || mode == IX || mode == SIX
}

// reticket gives all waiters new tickets, in their order, if the write at hand has overtaken theirs: it
// gave a conversion a new token, or took away a hold of an intent.
func (m *machine) reticket() {
	if !m.stale {
		return
	}
	m.stale = false
	for i := range m.Waiters {
		m.Waiters[i].Token = 0
	}
}
