package record

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
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
	version := uint64(oldestSchema)
	if r.longList() {
		version = compactSchema
	}
	f := fields{out: dst}
	r.fields(&f, version)
	return f.close(len(dst))
}

// fields are those of a stored record. version is the schema to write.
func (r *Record) fields(f *fields, version uint64) {
	if f.d == nil {
		f.out = appendUint(append(f.out, `,"v":`...), version)
		f.out = appendPlain(append(f.out, `,"kind":`...), string(r.Kind))
	} else if !f.d.head(f) {
		return
	}
	field(f, `,"hold_us":`, &r.Hold, r.Hold != 0, appendHold, (*decoder).hold)
	if r.Kind != KindLock {
		f.number(`,"life":`, &r.Life)
	}
	f.entries(`,"holders":`, r.Kind, &r.Holders, true)
	f.entries(`,"waiters":`, r.Kind, &r.Waiters, false)
	if queues := r.conditions(); r.Kind == KindLock {
		field(f, `,"conds":`, &queues, len(queues) > 0, appendQueues, (*decoder).queues)
		if f.d != nil && queues != nil {
			r.Body = &conditions{queues}
		}
	} else {
		f.body(r.Body)
	}
}

// body passes over the fields of a body. It knows the types, so that f stays on the stack.
func (f *fields) body(b Body) {
	switch b := b.(type) {
	case *conditions:
		f.out = appendQueues(append(f.out, `,"conds":`...), b.queues)
	case *semaphore:
		b.fields(f)
	case *barrier:
		b.fields(f)
	case *gate:
		b.fields(f)
	case *latch:
		b.fields(f)
	case *once:
		b.fields(f)
	}
}

// appendBody appends the fields of a body, each after a comma.
func appendBody(dst []byte, b Body) []byte {
	f := fields{out: dst}
	f.body(b)
	return f.out
}

func appendEntry(dst []byte, kind Kind, e *Entry, holder bool) []byte {
	f := fields{out: dst}
	e.fields(&f, kind, holder)
	return f.close(len(dst))
}

// fields are those of a stored entry.
func (e *Entry) fields(f *fields, kind Kind, holder bool) {
	f.id(`,"id":`, &e.ID)
	f.need()
	if kind == KindLock {
		f.mode(&e.Mode)
	}
	f.text(`,"owner":`, &e.Owner)
	if holder {
		f.token(`,"token":`, &e.Token)
	} else {
		f.token(`,"queued":`, &e.Token)
	}
	field(f, `,"ttl":`, &e.TTL, e.TTL != 0, appendTTL, (*decoder).ttl)
	f.need()
	field(f, `,"since":`, &e.Since, !e.Since.IsZero(), appendSince, (*decoder).since)
	if kind == KindLock && (f.d == nil && e.bare() || f.d != nil && f.d.starts("}")) {
		return
	}
	if kind == KindLock {
		f.flag(`,"turn":`, &e.LetTurn)
	}
	if holder {
		f.flag(`,"revoked":`, &e.Revoked)
	}
	if holder && kind == KindLock {
		field(f, `,"convert":`, &e.Convert, e.Convert.ID != "", appendConversion, (*decoder).conversion)
		f.id(`,"converted":`, &e.Converted)
	}
	field(f, `,"meta":`, &e.Meta, len(e.Meta) > 0, appendMeta, (*decoder).meta)
	switch kind {
	case KindLock:
		f.value(&e.Value)
		if holder {
			f.number(`,"proclaimed":`, &e.Proclaim)
		}
		f.name(`,"signalled":`, &e.Signalled)
		f.flag(`,"all":`, &e.SignalAll)
		if holder {
			f.number(`,"signal":`, &e.LastSignal)
		}
	case KindSemaphore:
		f.count(`,"permits":`, &e.Permits)
		f.need()
		if !holder {
			f.flag(`,"refused":`, &e.Refused)
		}
	case KindBarrier:
		f.number(`,"gen":`, &e.Gen)
		f.need()
		f.flag(`,"acts":`, &e.Acts)
	case KindGate:
		if holder {
			f.number(`,"leaving":`, &e.Leaving)
		}
	}
}

// bare reports whether a lock's entry has none of the fields that few have.
func (e *Entry) bare() bool {
	return !e.LetTurn && !e.Revoked && e.Convert.ID == "" && e.Converted == "" && len(e.Meta) == 0 && !e.Value.Set && e.Signalled == "" && e.LastSignal == 0
}

func (c *Conversion) fields(f *fields) {
	f.id(`,"id":`, &c.ID)
	f.need()
	f.mode(&c.Mode)
	f.token(`,"queued":`, &c.Queued)
}

func appendConversion(dst []byte, c Conversion) []byte {
	f := fields{out: dst}
	c.fields(&f)
	return f.close(len(dst))
}

func appendUint[N ~int | ~int64 | ~uint64](dst []byte, n N) []byte {
	return strconv.AppendUint(dst, uint64(n), 10)
}

func appendTTL(dst []byte, ttl time.Duration) []byte { return appendUint(dst, ttl/time.Millisecond) }

func appendHold(dst []byte, hold time.Duration) []byte { return appendUint(dst, hold/time.Microsecond) }

func appendSince(dst []byte, since time.Time) []byte {
	return strconv.AppendInt(dst, since.UnixMilli(), 10)
}

func appendMode(dst []byte, m Mode) []byte { return appendPlain(dst, m.String()) }

// appendPlain appends a string that needs no escapes.
func appendPlain(dst []byte, s string) []byte { return append(append(append(dst, '"'), s...), '"') }

// appendToken appends a ticket or a revision, in a fixed width, so that filling it in doesn't change its size.
func appendToken(dst []byte, token uint64) []byte {
	const zeros = `"00000000000000000000"`
	var room [tokenWidth]byte
	digits := strconv.AppendUint(room[:0], token, 10)
	dst = append(dst, zeros...)
	copy(dst[len(dst)-1-len(digits):], digits)
	return dst
}

// appendList appends n elements between two brackets.
func appendList(dst []byte, brackets string, n int, element func(dst []byte, i int) []byte) []byte {
	dst = append(dst, brackets[0])
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = element(dst, i)
	}
	return append(dst, brackets[1])
}

// appendMeta writes the keys sorted as bytes, so that equal maps have the same form.
func appendMeta(dst []byte, meta map[string]string) []byte {
	keys := slices.Sorted(maps.Keys(meta))
	return appendList(dst, "{}", len(keys), func(dst []byte, i int) []byte {
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
	head := Record{Kind: m.Kind, Hold: maxHold, Life: m.Life}
	m.scratch = head.Append(slices.Grow(m.scratch[:0], 512))
	n := len(m.scratch) + len(`,"holders":[],"waiters":[]`)
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
	m.scratch = appendEntry(m.scratch[:0], m.Kind, &m.long, true)
	sequence := len(e.ID) - strings.LastIndexByte(e.ID, '.') - 1
	n := len(m.scratch) + 2*(sequenceWidth-sequence) + len("queued") - len("token") + len(",")
	if m.Kind == KindLock {
		n += len(`,"convert":{"id":"","mode":"SIX","queued":""}`) + len(e.ID) + tokenWidth
	}
	return n
}
