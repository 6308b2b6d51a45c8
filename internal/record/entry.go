package record

import (
	"maps"
	"math"
	"strconv"
	"strings"
	"time"
)

// Entry is one holder of, or one waiter for, a resource.
type Entry struct {
	ID    string        // "<lease id>.<sequence>": names one acquire, for good
	Owner string        // explicit identity; "" means that the entry is its own owner, see OwnerID
	TTL   time.Duration // the TTL of its lease, whole milliseconds: an observer needs it when the lease's key is missing
	Since time.Time     // when it was asked for, by the requester's wall clock: for people, decides nothing. UTC, milliseconds; zero = not known

	// Token is the entry's ticket: a holder's fencing token, and a waiter's place in all queues; see Ticket.
	// One without a revision is of the write that this record is stored by; see Record.Resolve.
	Token uint64
	Meta  map[string]string // what the owner wants others to see; read-only once in a record

	// Of locks: what it holds or waits for; for holders the change of mode it waits for, if any, and
	// else the id of its last granted conversion.
	Convert   Conversion
	Converted string
	Mode      Mode
	Revoked   bool // holders of every kind: told to let go by an operator. The entry blocks all the same
	LetTurn   bool // told to let go if it holds by a turn of before; what the record grants it is not meant

	// Of other kinds than plain locks: rules.fields says which kind has which.

	Refused   bool   // semaphore, a waiter: asks for more than the size has become; stays refused
	Acts      bool   // barrier: runs an action if it is the last to come
	SignalAll bool   // see Signalled
	Permits   int    // semaphore: held or asked for
	Gen       uint64 // barrier: the generation it arrived for
	Leaving   uint64 // gate, a member: sequence of the operation by which it has left; 0 = it has not
	Value     Value  // election: what the candidate, or the leader, says
	Proclaim  uint64 // election, a holder: sequence of the operation that set Value last
	// Signalled is the condition whose signal moved this entry out of its queue, "" if none did, and
	// SignalAll whether that was a broadcast. It stays while the entry waits for the lock and holds it.
	Signalled  string
	LastSignal uint64 // a holder: sequence of its last signal
}

// Value is what a user stores beside an entry or as a result, any bytes. The zero Value is none; one
// that is set and empty is a value.
type Value struct {
	Set  bool
	Data string
}

// Bounds of what a record can say.
const (
	maxLeaseLen = 128                                                 // bytes of a lease id
	maxTTL      = math.MaxInt64 / time.Millisecond * time.Millisecond // the longest TTL in whole milliseconds
	maxSince    = 1<<53 - 1                                           // Unix milliseconds that every JSON reader takes exactly
)

// ID is the id of the operation with the given sequence under a lease. LeaseOf is its inverse.
func ID(lease string, seq uint64) string {
	b := make([]byte, 0, len(lease)+1+20)
	b = append(b, lease...)
	b = append(b, '.')
	return string(strconv.AppendUint(b, seq, 10))
}

// LeaseOf returns the lease id in an operation id: what stands before the last dot. It returns "" for an id that is
// malformed, that is, unless a valid KV key of at most 128 letters, digits, '-', '_', '=' and inner dots comes before
// that dot, and a number without leading zeros that fits 64 bits after it.
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

// validLease is strict because a lease whose id is no KV key could never be tombstoned: its
// entries would block for ever.
func validLease(s string) bool {
	if s == "" || len(s) > maxLeaseLen {
		return false
	}
	afterDot := true // also at the start, where a dot is as wrong as behind another one
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

// OwnerID is the identity that counts for "already held": Owner, or the entry's own ID.
func (e Entry) OwnerID() string {
	if e.Owner != "" {
		return e.Owner
	}
	return e.ID
}

// Lease is the id of the lease that this entry stands and falls with.
func (e Entry) Lease() string { return LeaseOf(e.ID) }

// Resolve fills in rev, the revision of the record, where the entry says "this record's".
func (e *Entry) Resolve(rev uint64) {
	if RevisionOf(e.Token) == 0 {
		e.Token |= rev << ticketBits
	}
	if e.Convert.ID != "" && e.Convert.Queued == 0 {
		e.Convert.Queued = rev
	}
}

// equal reports whether e and o would be stored the same.
func (e *Entry) equal(o *Entry) bool {
	return e.ID == o.ID && e.Token == o.Token && e.Mode == o.Mode && e.Revoked == o.Revoked && e.LetTurn == o.LetTurn &&
		e.Convert == o.Convert && e.Converted == o.Converted &&
		e.Permits == o.Permits && e.Refused == o.Refused && e.Gen == o.Gen && e.Acts == o.Acts && e.Leaving == o.Leaving &&
		e.Value == o.Value && e.Proclaim == o.Proclaim &&
		e.Signalled == o.Signalled && e.SignalAll == o.SignalAll && e.LastSignal == o.LastSignal &&
		e.Owner == o.Owner && e.TTL == o.TTL && e.Since.Equal(o.Since) && maps.Equal(e.Meta, o.Meta)
}

// wholeTTL rounds up to whole milliseconds: an observer that waits too long is only slow. Zero
// means that ttl can't be stored.
func wholeTTL(ttl time.Duration) time.Duration {
	if ttl <= 0 || ttl > maxTTL {
		return 0
	}
	if rest := ttl % time.Millisecond; rest != 0 {
		ttl += time.Millisecond - rest
	}
	return ttl
}

// wholeSince cuts to milliseconds. A time that a record can't hold is dropped, not refused: a lock
// must not depend on what a wall clock says.
func wholeSince(t time.Time) time.Time {
	ms := t.UnixMilli()
	if t.IsZero() || ms < 0 || ms > maxSince {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

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
func (m *machine) overtaken(mode Mode) { m.stale = m.stale || mode == IS || mode == IX || mode == SIX }

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
