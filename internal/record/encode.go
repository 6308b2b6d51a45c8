package record

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The schema versions that this package reads. It writes the lowest one that a record needs: only a long list
// needs compactSchema. Versions 1 and 2 had revisions as tokens: a program that writes them would issue smaller tokens than
// those already granted.
const (
	oldestSchema  = 3
	compactSchema = 4
	newestSchema  = compactSchema
)

// tokenWidth is the width of a stored token: that of the largest uint64. So all tokens have the same width,
// and sort as text as they do as numbers.
const tokenWidth = 20

// sequenceWidth is the width of the longest sequence in an id.
const sequenceWidth = 20

// Append appends the stored form of r to dst: JSON on one line, the same bytes for equal records.
// It leaves out empty optional fields.
func (r *Record) Append(dst []byte) []byte {
	dst = r.appendHead(dst, r.Hold)
	dst = appendEntries(dst, holdersField, r.Holders, true)
	dst = appendEntries(dst, waitersField, r.Waiters, false)
	if r.Body != nil {
		dst = r.Body.append(dst)
	}
	return append(dst, '}')
}

const (
	holdersField = `,"holders":[`
	waitersField = `,"waiters":[`
)

// appendHead appends the fields before the lists.
func (r *Record) appendHead(dst []byte, holdTime time.Duration) []byte {
	version := uint64(oldestSchema)
	if r.longList() {
		version = compactSchema
	}
	dst = strconv.AppendUint(append(dst, `{"v":`...), version, 10)
	dst = appendText(dst, "kind", string(r.Kind))
	dst = appendNumber(dst, "hold_us", holdTime/time.Microsecond)
	return appendNumber(dst, "life", r.Life)
}

func appendEntry(dst []byte, e *Entry, holder bool) []byte {
	dst = appendString(append(dst, `{"id":`...), e.ID)
	if e.Mode != None {
		dst = appendText(dst, "mode", e.Mode.String())
	}
	dst = appendText(dst, "owner", e.Owner)
	if holder {
		dst = appendToken(dst, "token", e.Token)
	} else {
		dst = appendToken(dst, "queued", e.Token)
	}
	dst = appendNumber(dst, "ttl", e.TTL/time.Millisecond)
	if !e.Since.IsZero() {
		dst = strconv.AppendInt(append(dst, `,"since":`...), e.Since.UnixMilli(), 10)
	}
	dst = appendFlag(dst, "turn", e.LetTurn)
	if holder {
		dst = appendFlag(dst, "revoked", e.Revoked)
		if e.Convert.ID != "" {
			dst = appendString(append(dst, `,"convert":{"id":`...), e.Convert.ID)
			dst = appendText(dst, "mode", e.Convert.Mode.String())
			dst = append(appendToken(dst, "queued", e.Convert.Queued), '}')
		}
		dst = appendText(dst, "converted", e.Converted)
	}
	if len(e.Meta) > 0 {
		dst = appendMeta(dst, e.Meta)
	}
	// Fields of some kinds.
	dst = appendNumber(dst, "permits", e.Permits)
	dst = appendFlag(dst, "refused", e.Refused)
	dst = appendNumber(dst, "gen", e.Gen)
	dst = appendFlag(dst, "acts", e.Acts)
	dst = appendNumber(dst, "leaving", e.Leaving)
	dst = appendValue(dst, e.Value)
	dst = appendNumber(dst, "proclaimed", e.Proclaim)
	dst = appendText(dst, "signalled", e.Signalled)
	dst = appendFlag(dst, "all", e.SignalAll)
	dst = appendNumber(dst, "signal", e.LastSignal)
	return append(dst, '}')
}

// appendField appends the name of a field, with what comes before its value.
func appendField(dst []byte, name string) []byte {
	return append(append(append(dst, `,"`...), name...), `":`...)
}

// appendNumber appends a field, unless it is 0.
func appendNumber[N ~int | ~int64 | ~uint64](dst []byte, name string, n N) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendUint(appendField(dst, name), uint64(n), 10)
}

// appendText appends a field, unless it is empty.
func appendText(dst []byte, name, text string) []byte {
	if text == "" {
		return dst
	}
	return appendString(appendField(dst, name), text)
}

// appendFlag appends a field, unless it is false.
func appendFlag(dst []byte, name string, set bool) []byte {
	if !set {
		return dst
	}
	return append(appendField(dst, name), "true"...)
}

// appendToken appends a field with a ticket or a revision, in a fixed width, so that filling it in doesn't change its size.
func appendToken(dst []byte, name string, token uint64) []byte {
	var digits [tokenWidth]byte
	for i := tokenWidth - 1; i >= 0; i-- {
		digits[i] = byte('0' + token%10)
		token /= 10
	}
	dst = append(append(appendField(dst, name), '"'), digits[:]...)
	return append(dst, '"')
}

// appendList appends n elements, separated by commas, between open and end; nothing if n is 0.
func appendList(dst []byte, open string, n int, end string, element func(dst []byte, i int) []byte) []byte {
	for i := range n {
		dst = element(append(dst, open...), i)
		open = ","
	}
	if n > 0 {
		dst = append(dst, end...)
	}
	return dst
}

// appendMeta writes the keys sorted as bytes, so that equal maps have the same form.
func appendMeta(dst []byte, meta map[string]string) []byte {
	keys := slices.Sorted(maps.Keys(meta))
	return appendList(dst, `,"meta":{`, len(keys), "}", func(dst []byte, i int) []byte {
		return appendString(append(appendString(dst, keys[i]), ':'), meta[keys[i]])
	})
}

// appendString writes s, which must be UTF-8 (Apply and Decode ensure it). It
// escapes only what JSON requires, so names stay readable in `nats kv get`.
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

// sizeBound returns a size that no record can exceed that comes from r by promotion, conversion, revocation, removal,
// filling in of tokens, or a new hold time: the size of r with every entry in its longest form.
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

// entryBound returns an entry's share of sizeBound: the length of the longest form that it can ever
// have, with a comma, also under another id and with a conversion of the longest sequence. It never changes
// for an entry, so removing the entry frees exactly what was reserved for it.
func (m *machine) entryBound(e *Entry) int {
	m.long = *e
	m.rules().longest(&m.long)
	m.scratch = appendEntry(m.scratch[:0], &m.long, true)
	sequence := len(e.ID) - strings.LastIndexByte(e.ID, '.') - 1
	return len(m.scratch) + 2*(sequenceWidth-sequence) + len("queued") - len("token") + len(",")
}

// appendValue appends a value that is set: as "value" if it is text, else as base64 "data".
func appendValue(dst []byte, v Value) []byte {
	switch {
	case !v.Set:
	case utf8.ValidString(v.Data):
		dst = appendString(appendField(dst, "value"), v.Data)
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
		return true, field(d, seen, hasPermits, &e.Permits, d.count)
	case "refused":
		return true, field(d, seen, hasRefused, &e.Refused, d.bool)
	case "gen":
		return true, field(d, seen, hasGen, &e.Gen, d.number)
	case "acts":
		return true, field(d, seen, hasActs, &e.Acts, d.bool)
	case "leaving":
		return true, field(d, seen, hasLeaving, &e.Leaving, d.number)
	case "value", "data":
		return true, d.value(key, seen, hasValue, &e.Value)
	case "proclaimed":
		return true, field(d, seen, hasProclaim, &e.Proclaim, d.number)
	case "signalled":
		if err = field(d, seen, hasSignalled, &e.Signalled, d.string); err == nil && e.Signalled == "" {
			err = d.fail("signalled without a condition")
		}
		return true, err
	case "all":
		return true, field(d, seen, hasAll, &e.SignalAll, d.bool)
	case "signal":
		return true, field(d, seen, hasSignal, &e.LastSignal, d.number)
	}
	return false, nil
}

// value reads what appendValue has written.
func (d *decoder) value(key []byte, seen *uint, bit uint, v *Value) error {
	return d.readOnce(seen, bit, func() error {
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
