package record

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"time"
)

// compactAbove is the most entries of a list that has each as an object. In a longer list, an entry with only
// common fields is a text. Most numbers in it are differences to the text before
// it in the same list:
//
//	#LEASE/TTL.SEQUENCE   or   N.SEQUENCE, under the N-th lease that this list gives as above, from 0
//	MODE                  locks
//	xPERMITS              semaphores
//	@D                    its ticket's revision is D above the last one's; *: it is the record's own; neither: the same
//	:PLACE                its place in that revision, unless it is the last one's plus 1, or 1 in another revision
//	+D or -D              its Since, in milliseconds after or before the last one's, unless it is equal
//
// "#Vd8Tb1SnVHxAjnLm9rPfQa/30000.15X@3676941981+1795381826727", "0.16X@1+3", "0.17S+1".
//
// So the size of a record with many waiters depends on the number of their processes, and each
// waiter adds little. Such a record has schema version 4.
const compactAbove = 8

// longList reports whether r has a list that is stored in compact form.
func (r *Record) longList() bool {
	long := len(r.Holders) > compactAbove || len(r.Waiters) > compactAbove
	for _, q := range r.conditions() {
		long = long || len(q.Waiters) > compactAbove
	}
	return long
}

// entries passes over a list of entries.
func (f *fields) entries(name string, kind Kind, list *[]Entry, holders bool) {
	field(f, name, list, len(*list) > 0, func(dst []byte, list []Entry) []byte {
		return appendEntries(dst, kind, list, holders)
	}, func(d *decoder) ([]Entry, error) { return d.entries(holders) })
}

func appendEntries(dst []byte, kind Kind, list []Entry, holders bool) []byte {
	var c compact
	return appendList(dst, "[]", len(list), func(dst []byte, i int) []byte {
		if e := &list[i]; len(list) > compactAbove && c.fits(e) {
			return c.append(dst, e)
		}
		return appendEntry(dst, kind, &list[i], holders)
	})
}

// compact is the state that the next text of a list is relative to.
type compact struct {
	leases []compactLease
	index  map[string]int // of leases, by id
	rev    uint64
	place  uint64
	since  int64
}

type compactLease struct {
	id  string
	ttl time.Duration
}

// fits reports whether e can be stored as a text.
func (c *compact) fits(e *Entry) bool {
	rev := RevisionOf(e.Token)
	plain := Entry{ID: e.ID, Mode: e.Mode, Permits: e.Permits, TTL: e.TTL, Since: e.Since, Token: e.Token}
	return plain.equal(e) && e.Since.UnixMilli() > 0 && (rev >= c.rev || rev == 0)
}

func (c *compact) append(dst []byte, e *Entry) []byte {
	dot := strings.LastIndexByte(e.ID, '.')
	dst = append(c.appendLease(append(dst, '"'), e.ID[:dot], e.TTL), e.ID[dot:]...)
	if e.Mode != None {
		dst = append(dst, e.Mode.String()...)
	}
	if e.Permits > 0 {
		dst = strconv.AppendInt(append(dst, 'x'), int64(e.Permits), 10)
	}
	rev, place, next := RevisionOf(e.Token), e.Token&MaxWaiters, c.place+1
	if rev != c.rev {
		next = 1
		if rev == 0 {
			dst = append(dst, '*')
		} else {
			dst = strconv.AppendUint(append(dst, '@'), rev-c.rev, 10)
		}
	}
	if place != next {
		dst = strconv.AppendUint(append(dst, ':'), place, 10)
	}
	since := e.Since.UnixMilli()
	if since > c.since {
		dst = append(dst, '+')
	}
	if since != c.since {
		dst = strconv.AppendInt(dst, since-c.since, 10)
	}
	c.rev, c.place, c.since = rev, place, since
	return append(dst, '"')
}

func (c *compact) appendLease(dst []byte, id string, ttl time.Duration) []byte {
	if i, ok := c.index[id]; ok && c.leases[i].ttl == ttl {
		return strconv.AppendInt(dst, int64(i), 10)
	}
	if c.index == nil {
		c.index = map[string]int{}
	}
	c.index[id] = len(c.leases)
	c.leases = append(c.leases, compactLease{id, ttl})
	dst = append(append(append(dst, '#'), id...), '/')
	return strconv.AppendInt(dst, int64(ttl/time.Millisecond), 10)
}

// read reads the text of an entry in a record of the kind. ok is false if it is malformed.
func (c *compact) read(text []byte, kind Kind) (e Entry, ok bool) {
	s := scanner{b: text, dense: true}
	if !c.readID(&s, &e) {
		return e, false
	}
	letters := s.i
	for s.i < len(text) && text[s.i] >= 'A' && text[s.i] <= 'Z' {
		s.i++
	}
	if e.Mode = modeOf(text[letters:s.i]); (kind == KindLock) != (e.Mode != None) || e.Mode == None && s.i > letters {
		return e, false
	}
	if s.take('x') != (kind == KindSemaphore) {
		return e, false
	}
	if kind == KindSemaphore {
		n, err := s.uint(math.MaxInt32)
		if e.Permits = int(n); err != nil || n == 0 {
			return e, false
		}
	}
	return e, kind != KindBarrier && c.readTicket(&s, &e) && c.readSince(&s, &e) && s.end() == nil
}

func (c *compact) readID(s *scanner, e *Entry) bool {
	var l compactLease
	if s.take('#') {
		slash := bytes.IndexByte(s.b, '/')
		if slash < 0 {
			return false
		}
		l.id, s.i = string(s.b[s.i:slash]), slash+1
		ms, err := s.uint(uint64(maxTTL / time.Millisecond))
		if err != nil || ms == 0 || !validLease(l.id) {
			return false
		}
		l.ttl = time.Duration(ms) * time.Millisecond
		c.leases = append(c.leases, l)
	} else {
		i, err := s.uint(MaxWaiters)
		if err != nil || i >= uint64(len(c.leases)) {
			return false
		}
		l = c.leases[i]
	}
	dot := s.i
	if !s.take('.') {
		return false
	}
	_, err := s.uint(math.MaxUint64)
	e.ID, e.TTL = l.id+string(s.b[dot:s.i]), l.ttl
	return err == nil
}

func (c *compact) readTicket(s *scanner, e *Entry) bool {
	const newest = math.MaxInt64 >> ticketBits // the largest revision of a ticket
	var err error
	c.place++
	switch {
	case s.take('*'):
		c.rev, c.place = 0, 1
	case s.take('@'):
		var d uint64
		d, err = s.uint(newest - c.rev)
		c.rev, c.place = c.rev+d, 1
	}
	if err == nil && s.take(':') {
		c.place, err = s.uint(MaxWaiters)
	}
	e.Token = Ticket(c.rev, int(c.place))
	return err == nil && c.place <= MaxWaiters
}

func (c *compact) readSince(s *scanner, e *Entry) bool {
	sign := int64(1)
	if s.take('-') {
		sign = -1
	} else if !s.take('+') {
		sign = 0
	}
	if sign != 0 {
		d, err := s.uint(maxSince)
		if err != nil {
			return false
		}
		c.since += sign * int64(d)
	}
	e.Since = time.UnixMilli(c.since).UTC()
	return c.since > 0 && c.since <= maxSince
}
