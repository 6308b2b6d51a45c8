package record

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// The schema version this package reads and writes.
const schemaVersion = 1

// tokenWidth is the width of a token: that of the largest uint64, so that no token is wider than
// another and their order as text is that of the numbers.
const tokenWidth = 20

// The widths of the longest mode and of the longest sequence in an id.
const (
	modeWidth     = len("SIX")
	sequenceWidth = 20
)

// Append appends the stored form of r to dst: JSON on one line, one form for equal records. A
// record of another kind than this package knows is its kind alone, so never write one back.
// Empty optional fields are left out.
func (r *Record) Append(dst []byte) []byte {
	dst = append(dst, `{"v":1,"kind":`...)
	dst = appendString(dst, string(r.Kind))
	if r.Hold > 0 {
		dst = append(dst, holdField...)
		dst = strconv.AppendInt(dst, int64(r.Hold/time.Microsecond), 10)
	}
	if len(r.Holders) > 0 {
		dst = append(dst, `,"holders":[`...)
		for i := range r.Holders {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendEntry(dst, &r.Holders[i], true)
		}
		dst = append(dst, ']')
	}
	if len(r.Waiters) > 0 {
		dst = append(dst, `,"waiters":[`...)
		for i := range r.Waiters {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendEntry(dst, &r.Waiters[i], false)
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

func appendEntry(dst []byte, e *Entry, holder bool) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, e.ID)
	dst = append(dst, `,"mode":"`...)
	dst = append(dst, e.Mode.String()...)
	dst = append(dst, '"')
	if e.Owner != "" {
		dst = append(dst, `,"owner":`...)
		dst = appendString(dst, e.Owner)
	}
	if holder {
		dst = append(dst, `,"token":"`...)
	} else {
		dst = append(dst, `,"queued":"`...)
	}
	dst = appendToken(dst, e.Token)
	dst = append(dst, `","ttl":`...)
	dst = strconv.AppendInt(dst, int64(e.TTL/time.Millisecond), 10)
	if !e.Since.IsZero() {
		dst = append(dst, `,"since":`...)
		dst = strconv.AppendInt(dst, e.Since.UnixMilli(), 10)
	}
	if holder && e.Revoked {
		dst = append(dst, revokedField...)
	}
	if holder && e.Convert.ID != "" {
		dst = append(dst, `,"convert":{"id":`...)
		dst = appendString(dst, e.Convert.ID)
		dst = append(dst, `,"mode":"`...)
		dst = append(dst, e.Convert.Mode.String()...)
		dst = append(dst, `","queued":"`...)
		dst = appendToken(dst, e.Convert.Queued)
		dst = append(dst, `"}`...)
	}
	if holder && e.Converted != "" {
		dst = append(dst, `,"converted":`...)
		dst = appendString(dst, e.Converted)
	}
	if len(e.Meta) > 0 {
		dst = appendMeta(dst, e.Meta)
	}
	return append(dst, '}')
}

const (
	revokedField = `,"revoked":true`
	holdField    = `,"hold_us":`
	holdWidth    = 16 // digits of maxHold
)

func appendToken(dst []byte, token uint64) []byte {
	var digits [tokenWidth]byte
	for i := tokenWidth - 1; i >= 0; i-- {
		digits[i] = byte('0' + token%10)
		token /= 10
	}
	return append(dst, digits[:]...)
}

// appendMeta writes the keys in their order as bytes, so that equal maps have one form.
func appendMeta(dst []byte, meta map[string]string) []byte {
	dst = append(dst, `,"meta":{`...)
	for i, k := range slices.Sorted(maps.Keys(meta)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, k)
		dst = append(dst, ':')
		dst = appendString(dst, meta[k])
	}
	return append(dst, '}')
}

// appendString writes s, which must be UTF-8 (Apply and Decode let nothing else into a record), and
// escapes only what JSON demands: names stay readable in `nats kv get`.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if !needsEscape(c) {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		if c < ' ' {
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		} else {
			dst = append(dst, '\\', c)
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func needsEscape(c byte) bool { return c < ' ' || c == '"' || c == '\\' }

// sizeBound is the size that no record can exceed which comes from r by promotion, conversion,
// revocation, removal, the filling in of tokens, and what is learned of the hold time.
func sizeBound(r *Record) int {
	n := len(`{"v":1,"kind":,"holders":[],"waiters":[]}`) + stringSize(string(r.Kind)) + len(holdField) + holdWidth
	for _, list := range [][]Entry{r.Holders, r.Waiters} {
		for i := range list {
			n += entryBound(&list[i])
		}
	}
	return n
}

// entryBound is an entry's share of sizeBound: that of a waiter, whose "queued" is longer than a
// holder's "token", and of what it may get as a holder, and a comma. It is the same whatever
// becomes of the entry, so that what was reserved for it is what it gives back.
func entryBound(e *Entry) int {
	n := len(`{"id":,"mode":"","queued":"","ttl":},`) + len(revokedField) + tokenWidth +
		stringSize(e.ID) + modeWidth + decimalSize(int64(e.TTL/time.Millisecond)) +
		// A conversion that waits; one that was granted leaves less behind.
		len(`,"convert":{"id":"","mode":"","queued":""}`) + len(e.Lease()) + len(`.`) + sequenceWidth + modeWidth + tokenWidth
	if e.Owner != "" {
		n += len(`,"owner":`) + stringSize(e.Owner)
	}
	if !e.Since.IsZero() {
		n += len(`,"since":`) + decimalSize(e.Since.UnixMilli())
	}
	if len(e.Meta) > 0 {
		n += len(`,"meta":{}`) + len(e.Meta) - 1
		for k, v := range e.Meta {
			n += stringSize(k) + len(`:`) + stringSize(v)
		}
	}
	return n
}

// stringSize is what appendString writes.
func stringSize(s string) int {
	n := len(`""`) + len(s)
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ':
			n += len(`\u0000`) - 1
		case needsEscape(c):
			n++
		}
	}
	return n
}

func decimalSize(n int64) int {
	var buf [20]byte
	return len(strconv.AppendInt(buf[:0], n, 10))
}
