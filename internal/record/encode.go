package record

import (
	"encoding/base64"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The schema versions that this package reads. It writes the lowest one that a record needs: only a long list
// needs compactSchema. Versions 1 and 2 had revisions for tokens: whoever writes them would issue smaller tokens than
// were granted already.
const (
	oldestSchema  = 3
	compactSchema = 4
	newestSchema  = compactSchema
)

// tokenWidth is the width of a token: that of the largest uint64, so that no token is wider than
// another and their order as text is that of the numbers.
const tokenWidth = 20

// sequenceWidth is the width of the longest sequence in an id.
const sequenceWidth = 20

// Append appends the stored form of r to dst: JSON on one line, one form for equal records.
// Empty optional fields are left out.
func (r *Record) Append(dst []byte) []byte {
	dst = r.appendHead(dst, r.Hold)
	if len(r.Holders) > 0 {
		dst = append(appendEntries(append(dst, holdersField...), r.Holders, true), ']')
	}
	if len(r.Waiters) > 0 {
		dst = append(appendEntries(append(dst, waitersField...), r.Waiters, false), ']')
	}
	if r.Body != nil {
		dst = r.Body.append(dst)
	}
	return append(dst, '}')
}

const (
	holdersField = `,"holders":[`
	waitersField = `,"waiters":[`
)

// appendHead appends what stands before the lists.
func (r *Record) appendHead(dst []byte, holdTime time.Duration) []byte {
	version := uint64(oldestSchema)
	if r.longList() {
		version = compactSchema
	}
	dst = strconv.AppendUint(append(dst, `{"v":`...), version, 10)
	dst = append(dst, `,"kind":`...)
	dst = appendString(dst, string(r.Kind))
	if holdTime > 0 {
		dst = append(dst, `,"hold_us":`...)
		dst = strconv.AppendInt(dst, int64(holdTime/time.Microsecond), 10)
	}
	if r.Life > 0 {
		dst = appendNumber(dst, "life", r.Life)
	}
	return dst
}

func appendEntry(dst []byte, e *Entry, holder bool) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, e.ID)
	if e.Mode != None {
		dst = append(dst, `,"mode":"`...)
		dst = append(dst, e.Mode.String()...)
		dst = append(dst, '"')
	}
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
		dst = append(dst, `,"revoked":true`...)
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
	return append(appendKindFields(dst, e), '}')
}

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

// sizeBound is the size that no record can exceed which comes from r by promotion, conversion, revocation, removal,
// the filling in of tokens, and what is learned of the hold time: that of r with every entry in its longest form.
func (m *machine) sizeBound() int {
	m.scratch = m.appendHead(slices.Grow(m.scratch[:0], 512), maxHold)
	n := len(m.scratch) + len(holdersField+"]"+waitersField+"]}")
	for _, list := range [][]Entry{m.Holders, m.Waiters} {
		for i := range list {
			n += m.entryBound(&list[i])
		}
	}
	if m.Body != nil {
		n += m.Body.bound(m)
	}
	return n
}

// entryBound is an entry's share of sizeBound: the length of the longest form that it can ever
// have, and a comma: also under another id, and with a conversion, of the longest sequence. It is the same
// whatever becomes of the entry, so that what was reserved for it is what it gives back.
func (m *machine) entryBound(e *Entry) int {
	m.long = *e
	m.rules().longest(&m.long)
	m.scratch = appendEntry(m.scratch[:0], &m.long, true)
	sequence := len(e.ID) - strings.LastIndexByte(e.ID, '.') - 1
	return len(m.scratch) + 2*(sequenceWidth-sequence) + len("queued") - len("token") + len(",")
}

// The fields that only some kinds have, written and read.

// appendKindFields appends what only some kinds have.
func appendKindFields(dst []byte, e *Entry) []byte {
	if e.Permits > 0 {
		dst = appendNumber(dst, "permits", uint64(e.Permits))
	}
	if e.Refused {
		dst = append(dst, `,"refused":true`...)
	}
	if e.Gen > 0 {
		dst = appendNumber(dst, "gen", e.Gen)
	}
	if e.Acts {
		dst = append(dst, `,"acts":true`...)
	}
	if e.Leaving > 0 {
		dst = appendNumber(dst, "leaving", e.Leaving)
	}
	dst = appendValue(dst, e.Value)
	if e.Proclaim > 0 {
		dst = appendNumber(dst, "proclaimed", e.Proclaim)
	}
	if e.Signalled != "" {
		dst = appendText(dst, "signalled", e.Signalled)
	}
	if e.SignalAll {
		dst = append(dst, `,"all":true`...)
	}
	if e.LastSignal > 0 {
		dst = appendNumber(dst, "signal", e.LastSignal)
	}
	return dst
}

// appendNumber appends a field, after a comma.
func appendNumber(dst []byte, field string, n uint64) []byte {
	dst = append(append(append(dst, `,"`...), field...), `":`...)
	return strconv.AppendUint(dst, n, 10)
}

// appendText is appendNumber for a string.
func appendText(dst []byte, field, s string) []byte {
	dst = append(append(append(dst, `,"`...), field...), `":`...)
	return appendString(dst, s)
}

// appendRevision appends a field with a revision, in the width of a token, so that filling it in makes
// nothing longer.
func appendRevision(dst []byte, field string, rev uint64) []byte {
	dst = append(append(append(dst, `,"`...), field...), `":"`...)
	return append(appendToken(dst, rev), '"')
}

// appendValue appends what is set, as "value" where it is text and as base64 "data" otherwise.
func appendValue(dst []byte, v Value) []byte {
	switch {
	case !v.Set:
	case utf8.ValidString(v.Data):
		dst = appendText(dst, "value", v.Data)
	default:
		dst = append(dst, `,"data":"`...)
		dst = append(base64.StdEncoding.AppendEncode(dst, []byte(v.Data)), '"')
	}
	return dst
}

// kindField reads a field of an entry that only some kinds have.
func (d *decoder) kindField(key []byte, e *Entry, seen *uint) (known bool, err error) {
	switch string(key) {
	case "permits":
		return true, d.count(seen, hasPermits, &e.Permits)
	case "refused":
		return true, d.flag(seen, hasRefused, &e.Refused)
	case "gen":
		return true, d.number(seen, hasGen, &e.Gen)
	case "acts":
		return true, d.flag(seen, hasActs, &e.Acts)
	case "leaving":
		return true, d.number(seen, hasLeaving, &e.Leaving)
	case "value", "data":
		return true, d.value(key, seen, hasValue, &e.Value)
	case "proclaimed":
		return true, d.number(seen, hasProclaim, &e.Proclaim)
	case "signalled":
		return true, d.once(seen, hasSignalled, func() (err error) {
			if e.Signalled, err = d.string(); err == nil && e.Signalled == "" {
				return d.fail("signalled without a condition")
			}
			return err
		})
	case "all":
		return true, d.flag(seen, hasAll, &e.SignalAll)
	case "signal":
		return true, d.number(seen, hasSignal, &e.LastSignal)
	}
	return false, nil
}

// number reads a number above 0, once.
func (d *decoder) number(seen *uint, field uint, n *uint64) error {
	return d.once(seen, field, func() (err error) {
		if *n, err = d.uint(math.MaxUint64); err == nil && *n == 0 {
			return d.fail("0 where a number above 0 is expected")
		}
		return err
	})
}

// str reads a text, once.
func (d *decoder) str(seen *uint, field uint, s *string) error {
	return d.once(seen, field, func() (err error) {
		*s, err = d.string()
		return err
	})
}

// count is number for an int that fits 31 bits.
func (d *decoder) count(seen *uint, field uint, n *int) error {
	return d.once(seen, field, func() error {
		v, err := d.uint(math.MaxInt32)
		if *n = int(v); err == nil && v == 0 {
			return d.fail("0 where a number above 0 is expected")
		}
		return err
	})
}

// flag reads true, once: what is false is left out.
func (d *decoder) flag(seen *uint, field uint, b *bool) error {
	return d.once(seen, field, func() (err error) {
		*b, err = d.bool()
		return err
	})
}

// revision reads a revision in the width of a token, once.
func (d *decoder) revision(seen *uint, field uint, rev *uint64) error {
	return d.once(seen, field, func() (err error) {
		*rev, err = d.token()
		return err
	})
}

// value reads what appendValue has written.
func (d *decoder) value(key []byte, seen *uint, field uint, v *Value) error {
	return d.once(seen, field, func() error {
		text, err := d.string()
		if err == nil && string(key) == "data" {
			var data []byte
			if data, err = base64.StdEncoding.DecodeString(text); err != nil {
				return d.fail("data is not base64")
			}
			text = string(data)
		}
		*v = Value{Set: true, Data: text}
		return err
	})
}
