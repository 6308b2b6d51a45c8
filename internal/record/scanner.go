package record

import (
	"bytes"
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON as strictly as a record needs it, which encoding/json is not: that takes
// "ID" for "id", a field that stands twice, and replaces text that is no UTF-8.
type scanner struct {
	b     []byte
	i     int  // the next byte
	keyAt int  // where the last key began, for errors
	dense bool // white space means nothing
}

func (s *scanner) fail(reason string) error { return s.failAt(s.i, reason) }
func (s *scanner) failAt(at int, reason string) error {
	return &MalformedError{Offset: at, Reason: reason}
}

func (s *scanner) space() {
	for !s.dense && s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// take skips white space and consumes c if it comes next.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// end refuses anything but white space.
func (s *scanner) end() error {
	if s.space(); s.i < len(s.b) {
		return s.fail("data behind the end")
	}
	return nil
}

// object calls field for each key, to read the value. key is valid until then.
func (s *scanner) object(field func(key []byte) error) error {
	if !s.take('{') {
		return s.fail("expected an object")
	}
	if s.take('}') {
		return nil
	}
	for {
		s.space()
		s.keyAt = s.i
		key, err := s.text()
		if err != nil {
			return err
		}
		if !s.take(':') {
			return s.fail("expected ':'")
		}
		s.space()
		if err := field(key); err != nil {
			return err
		}
		switch {
		case s.take(','):
		case s.take('}'):
			return nil
		default:
			return s.fail("expected ',' or '}'")
		}
	}
}

func (s *scanner) array(element func() error) error {
	if !s.take('[') {
		return s.fail("expected an array")
	}
	if s.take(']') {
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		switch {
		case s.take(','):
		case s.take(']'):
			return nil
		default:
			return s.fail("expected ',' or ']'")
		}
	}
}

func (s *scanner) string() (string, error) {
	b, err := s.text()
	return string(b), err
}

// text reads a string; the result is a part of the input where the string has no escapes.
func (s *scanner) text() ([]byte, error) {
	if !s.take('"') {
		return nil, s.fail("expected a string")
	}
	start := s.i
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			text := s.b[start:s.i]
			s.i++
			return s.utf8(text)
		case c == '\\':
			return s.escaped(append([]byte(nil), s.b[start:s.i]...))
		case c < ' ':
			return nil, s.fail("control character in a string")
		default:
			s.i++
		}
	}
	return nil, s.fail("unfinished string")
}

// escaped reads the rest of a string that has escapes.
func (s *scanner) escaped(text []byte) ([]byte, error) {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.utf8(text)
		case c == '\\':
			r, err := s.escape()
			if err != nil {
				return nil, err
			}
			text = utf8.AppendRune(text, r)
		case c < ' ':
			return nil, s.fail("control character in a string")
		default:
			text = append(text, c)
			s.i++
		}
	}
	return nil, s.fail("unfinished string")
}

func (s *scanner) escape() (rune, error) {
	const letters, meanings = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if s.i+1 >= len(s.b) {
		return 0, s.fail("unfinished escape")
	}
	if s.b[s.i+1] == 'u' {
		return s.unicode()
	}
	n := bytes.IndexByte([]byte(letters), s.b[s.i+1])
	if n < 0 {
		return 0, s.fail("unknown escape")
	}
	s.i += 2
	return rune(meanings[n]), nil
}

// unicode reads \uXXXX, and two of them where the first is half of a character. Half a character alone is no text.
func (s *scanner) unicode() (rune, error) {
	r, ok := s.hex4()
	if ok && utf16.IsSurrogate(r) {
		low, lowOK := s.hex4()
		r, ok = utf16.DecodeRune(r, low), lowOK
		ok = ok && r != utf8.RuneError
	}
	if !ok {
		return 0, s.fail("bad \\u escape")
	}
	return r, nil
}

func (s *scanner) hex4() (r rune, ok bool) {
	if s.i+6 > len(s.b) || s.b[s.i] != '\\' || s.b[s.i+1] != 'u' {
		return 0, false
	}
	for _, c := range s.b[s.i+2 : s.i+6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	s.i += 6
	return r, true
}

func (s *scanner) utf8(text []byte) ([]byte, error) {
	if !utf8.Valid(text) {
		return nil, s.fail("text that is not UTF-8")
	}
	return text, nil
}

// uint reads a whole number from 0 to limit.
func (s *scanner) uint(limit uint64) (n uint64, err error) {
	s.space()
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		digit := uint64(s.b[s.i] - '0')
		if n > (limit-digit)/10 {
			return 0, s.fail("number is too large")
		}
		n = n*10 + digit
		s.i++
	}
	if s.i == start || s.b[start] == '0' && s.i > start+1 {
		return 0, s.failAt(start, "expected a whole number")
	}
	return n, nil // a fraction or an exponent fails at what must follow a value
}

func (s *scanner) bool() (bool, error) {
	s.space()
	for _, word := range []string{"true", "false"} {
		if bytes.HasPrefix(s.b[s.i:], []byte(word)) {
			s.i += len(word)
			return word == "true", nil
		}
	}
	return false, s.fail("expected true or false")
}

// skip passes over one value of any form. It is off the path of the records this package writes.
func (s *scanner) skip() error {
	dec := json.NewDecoder(bytes.NewReader(s.b[s.i:]))
	var value json.RawMessage
	if err := dec.Decode(&value); err != nil {
		return s.fail("bad value: " + err.Error())
	}
	s.i += int(dec.InputOffset())
	return nil
}
