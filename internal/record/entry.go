package record

import (
	"maps"
	"math"
	"strconv"
	"strings"
	"time"
)

// Entry is one holder of a resource, or one waiter for it.
type Entry struct {
	ID    string        // "<lease id>.<sequence>": names one acquire for ever
	Owner string        // explicit identity; "" means that the entry is its own owner, see OwnerID
	TTL   time.Duration // the TTL of its lease, whole milliseconds: an observer needs it when the lease's key is missing
	Since time.Time     // when it was requested, by the requester's wall clock, in UTC and milliseconds; zero = not known. For people, decides nothing

	// Token is the entry's ticket: a holder's fencing token, and a waiter's place in all queues; see Ticket.
	// A ticket without a revision belongs to the write that stores this record; see Record.Resolve.
	Token uint64
	Meta  map[string]string // shown to others; read-only once in a record

	// For locks: the mode, and for holders the conversion that waits, if any, or
	// else the id of the last granted conversion.
	Convert   Conversion
	Converted string
	Mode      Mode
	Revoked   bool // holders of every kind: an operator told the owner to release. The entry still blocks
	LetTurn   bool // an operator told the owner to release a hold by a turn; a later grant by the record is not affected

	// Of other kinds than plain locks.

	Refused   bool   // semaphore, a waiter: asks for more permits than the size after a resize; it stays refused
	Acts      bool   // barrier: runs an action if it is the last to arrive
	SignalAll bool   // see Signalled
	Permits   int    // semaphore: held or asked for
	Gen       uint64 // barrier: the generation it arrived for
	Leaving   uint64 // gate, a member: sequence of the operation by which it has left; 0 = it has not
	Value     Value  // election: of the candidate, or of the leader
	Proclaim  uint64 // election, a holder: sequence of the last operation that set Value
	// Signalled is the condition whose signal moved this entry out of its queue, "" if none did, and
	// SignalAll whether that signal was a broadcast. Both stay while the entry waits for the lock and holds it.
	Signalled  string
	LastSignal uint64 // a holder: sequence of its last signal
}

// Value is any bytes that a user stores in an entry or as a result. The zero Value is no value; one
// that is set and empty is a value.
type Value struct {
	Set  bool
	Data string
}

// Bounds of the values in a record.
const (
	maxLeaseLen = 128                                                 // bytes of a lease id
	maxTTL      = math.MaxInt64 / time.Millisecond * time.Millisecond // the longest TTL in whole milliseconds
	maxSince    = 1<<53 - 1                                           // Unix milliseconds that are exact in every JSON reader
)

// ID returns the id of the operation with the given sequence under a lease. LeaseOf is its inverse.
func ID(lease string, seq uint64) string {
	b := make([]byte, 0, len(lease)+1+20)
	b = append(b, lease...)
	b = append(b, '.')
	return string(strconv.AppendUint(b, seq, 10))
}

// LeaseOf returns the lease id in an operation id: the part before the last dot. It returns "" for a malformed id.
// The part before that dot must be a valid KV key of at most 128 letters, digits, '-', '_', '=' and inner dots; the
// part after it a number without leading zeros that fits 64 bits.
func LeaseOf(id string) string {
	dot := strings.LastIndexByte(id, '.')
	if dot < 0 || !validLease(id[:dot]) || !validSequence(id[dot+1:]) {
		return ""
	}
	return id[:dot]
}

// sequenceOf returns the sequence in a valid operation id, and 0 for "".
func sequenceOf(id string) uint64 {
	seq, _ := strconv.ParseUint(id[strings.LastIndexByte(id, '.')+1:], 10, 64)
	return seq
}

// validLease is strict, because a lease whose id is not a KV key could never get a tombstone: its
// entries would block for ever.
func validLease(s string) bool {
	if s == "" || len(s) > maxLeaseLen {
		return false
	}
	afterDot := true // also at the start, where a dot is as wrong as after another one
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '=':
			afterDot = false
		case c == '.' && !afterDot:
			afterDot = true
		default:
			return false
		}
	}
	return !afterDot
}

func validSequence(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil && (s[0] != '0' || len(s) == 1)
}

// OwnerID returns the identity that decides "already held": Owner, or else the entry's ID.
func (e Entry) OwnerID() string {
	if e.Owner != "" {
		return e.Owner
	}
	return e.ID
}

// Lease returns the id of the lease of this entry. The entry ends with it.
func (e Entry) Lease() string { return LeaseOf(e.ID) }

// Resolve fills in rev, the revision of the record, where the entry has 0 for it.
func (e *Entry) Resolve(rev uint64) {
	if RevisionOf(e.Token) == 0 {
		e.Token |= rev << ticketBits
	}
	if e.Convert.ID != "" && e.Convert.Queued == 0 {
		e.Convert.Queued = rev
	}
}

// equal reports whether e and o have the same stored form.
func (e *Entry) equal(o *Entry) bool {
	return e.ID == o.ID && e.Token == o.Token && e.Mode == o.Mode && e.Revoked == o.Revoked && e.LetTurn == o.LetTurn &&
		e.Convert == o.Convert && e.Converted == o.Converted &&
		e.Permits == o.Permits && e.Refused == o.Refused && e.Gen == o.Gen && e.Acts == o.Acts && e.Leaving == o.Leaving &&
		e.Value == o.Value && e.Proclaim == o.Proclaim &&
		e.Signalled == o.Signalled && e.SignalAll == o.SignalAll && e.LastSignal == o.LastSignal &&
		e.Owner == o.Owner && e.TTL == o.TTL && e.Since.Equal(o.Since) && maps.Equal(e.Meta, o.Meta)
}

// roundTTL rounds up to whole milliseconds: an observer that waits a little longer does no harm. Zero
// means that ttl can't be stored.
func roundTTL(ttl time.Duration) time.Duration {
	if ttl <= 0 || ttl > maxTTL {
		return 0
	}
	if rest := ttl % time.Millisecond; rest != 0 {
		ttl += time.Millisecond - rest
	}
	return ttl
}

// truncSince cuts to milliseconds. It drops a time that a record can't hold, instead of refusing it: a lock
// must not depend on a wall clock.
func truncSince(t time.Time) time.Time {
	ms := t.UnixMilli()
	if t.IsZero() || ms < 0 || ms > maxSince {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// A ticket is the revision of the write that queued an entry, or granted it at once, and a number of 11 bits.
// The number counts from 1 along the queue for entries that this write queued. It is 0 for those that it granted, which
// are compatible with each other. An entry keeps its ticket when it is granted: it is the fencing token.
//
// Tickets increase along the queue, and a waiter's ticket is larger than every token that was granted before. A write
// that breaks this gives all waiters new tickets, of its own revision; see machine.renewTickets.

const ticketBits = 11

// MaxWaiters is the most waiters that a record has, in all queues together: one write can give all of them tickets.
const MaxWaiters = 1<<ticketBits - 1

// Ticket returns the n-th ticket of a revision, as a number that is below 2^63.
func Ticket(rev uint64, n int) uint64 { return rev<<ticketBits | uint64(n) }

// RevisionOf returns the revision of a ticket, 0 if it has none yet.
func RevisionOf(token uint64) uint64 { return token >> ticketBits }

// NewestHold returns the greatest token of the holders, 0 if there is none. Every later hold has a greater one.
func (r *Record) NewestHold() (token uint64) {
	for i := range r.Holders {
		token = max(token, r.Holders[i].Token)
	}
	return token
}

// assignTickets gives tickets to the entries that this write queues. Until then their token is 0, and it
// stays 0 for those that it grants.
func (m *machine) assignTickets() {
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

// noteModeEnded notes that a holder has left the mode. Below a hold with an intention mode, other processes
// hold parts of its resource, with larger tokens than the waiters for the whole have.
func (m *machine) noteModeEnded(mode Mode) {
	m.staleTickets = m.staleTickets || mode == IS || mode == IX || mode == SIX
}

// renewTickets gives all waiters new tickets, in their order, if this write has made theirs too small: it
// gave a conversion a new token, or ended a hold with an intention mode.
func (m *machine) renewTickets() {
	if !m.staleTickets {
		return
	}
	m.staleTickets = false
	for i := range m.Waiters {
		m.Waiters[i].Token = 0
	}
}
