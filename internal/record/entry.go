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
	Mode  Mode          // what it holds or waits for
	Owner string        // explicit identity; "" means that the entry is its own owner, see OwnerID
	TTL   time.Duration // the TTL of its lease, whole milliseconds: an observer needs it when the lease's key is missing
	Since time.Time     // when it was asked for, by the requester's wall clock: for people, decides nothing. UTC, milliseconds; zero = not known

	// Token is a holder's fencing token, and for a waiter the revision of the write that queued it.
	// 0 means "the revision this record is stored at"; see Record.Resolve.
	Token uint64

	Convert   Conversion // holders only: the change of mode it waits for, if any
	Converted string     // holders only: the id of its last granted conversion, unless it waits for another

	Revoked bool              // holders only: told to let go by an operator. The entry blocks all the same
	Meta    map[string]string // what the owner wants others to see; read-only once in a record
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

// LeaseOf returns the lease id in an operation id: what stands before the last dot. It returns ""
// for an id that is malformed, that is, unless a valid KV key of at most 128 letters, digits, '-',
// '_', '=' and inner dots comes before that dot, and a number without leading zeros that fits 64
// bits after it.
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
	const limit = "18446744073709551615"
	if s == "" || len(s) > len(limit) || s[0] == '0' && len(s) > 1 {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) < len(limit) || s <= limit
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

// Resolve gives what is 0 and stands for the revision of the record that value, rev.
func (e *Entry) Resolve(rev uint64) {
	if e.Token == 0 {
		e.Token = rev
	}
	if e.Convert.ID != "" && e.Convert.Queued == 0 {
		e.Convert.Queued = rev
	}
}

// equal reports whether e and o would be stored the same.
func (e *Entry) equal(o *Entry) bool {
	return e.ID == o.ID && e.Token == o.Token && e.Mode == o.Mode && e.Revoked == o.Revoked &&
		e.Convert == o.Convert && e.Converted == o.Converted &&
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
