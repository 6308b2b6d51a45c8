package record

import (
	"encoding/base64"
	"math"
	"strconv"
	"unicode/utf8"
)

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
