package record

import (
	"bytes"
	"encoding/json"
	"regexp"
	"unicode/utf8"
)

// scanner reads JSON as strictly as a record needs it. encoding/json does not: it accepts
// "ID" for "id" and a field that occurs twice, and replaces text that is not UTF-8.
type scanner struct {
	b     []byte
	i     int  // the next byte
	keyAt int  // where the last key began, for errors
	dense bool // white space is not allowed
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

// starts reports whether the rest begins with text.
func (s *scanner) starts(text string) bool {
	return len(s.b)-s.i >= len(text) && string(s.b[s.i:s.i+len(text)]) == text
}

// end refuses anything but white space.
func (s *scanner) end() error {
	if s.space(); s.i < len(s.b) {
		return s.fail("data behind the end")
	}
	return nil
}

// nextKey reads the next key of an object, up to its value. It returns nil behind the last one. The key is valid
// until the next call.
func (s *scanner) nextKey(first bool) ([]byte, error) {
	switch {
	case !first && s.take(','):
	case s.take('}'):
		return nil, nil
	case !first:
		return nil, s.fail("expected ',' or '}'")
	}
	s.space()
	s.keyAt = s.i
	key, err := s.text()
	if err != nil {
		return nil, err
	}
	if !s.take(':') {
		return nil, s.fail("expected ':'")
	}
	s.space()
	return key, nil
}

// object calls value for each key of an object whose keys are any text.
func (s *scanner) object(value func(key []byte) error) error {
	if !s.take('{') {
		return s.fail("expected an object")
	}
	for first := true; ; first = false {
		key, err := s.nextKey(first)
		if err == nil && key != nil {
			err = value(key)
		}
		if err != nil || key == nil {
			return err
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

// text reads a string. The result is a part of the input if the string has no escapes.
func (s *scanner) text() ([]byte, error) {
	if !s.take('"') {
		return nil, s.fail("expected a string")
	}
	start, escapes := s.i, false
	for ; s.i < len(s.b) && s.b[s.i] != '"'; s.i++ {
		switch c := s.b[s.i]; {
		case c == '\\':
			escapes = true
			s.i++ // what comes next may be a quote
		case c < ' ':
			return nil, s.fail("control character in a string")
		}
	}
	if s.i >= len(s.b) {
		return nil, s.failAt(len(s.b), "unfinished string")
	}
	text := s.b[start:s.i]
	s.i++
	switch {
	case !utf8.Valid(text):
		return nil, s.fail("text that is not UTF-8")
	case !escapes:
		return text, nil
	}
	var plain string
	if !wholeEscapes.Match(text) || json.Unmarshal(s.b[start-1:s.i], &plain) != nil {
		return nil, s.fail("bad escape")
	}
	return []byte(plain), nil
}

// wholeEscapes matches text without a half of a surrogate pair escaped alone, which is not text and which encoding/json replaces.
var wholeEscapes = regexp.MustCompile(`^(?:[^\\]|\\[^u]|\\u(?:[^dD].|[dD][0-7])..|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*$`)

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
	return n, nil // a fraction or an exponent fails at the check of what follows the value
}

func (s *scanner) bool() (bool, error) {
	s.space()
	for _, word := range []string{"true", "false"} {
		if s.starts(word) {
			s.i += len(word)
			return word == "true", nil
		}
	}
	return false, s.fail("expected true or false")
}

// skip passes over one value of any form. Records of this package need it rarely.
func (s *scanner) skip() error {
	dec := json.NewDecoder(bytes.NewReader(s.b[s.i:]))
	var value json.RawMessage
	if err := dec.Decode(&value); err != nil {
		return s.fail("bad value: " + err.Error())
	}
	s.i += int(dec.InputOffset())
	return nil
}
