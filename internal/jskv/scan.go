package jskv

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"time"
)

// scanRead reads the answer to a leader read in the one form that servers write. encoding/json takes
// five times as long. ok is false for any other form, and for errors.
func scanRead(b []byte) (seq uint64, header, value []byte, at time.Time, ok bool) {
	s := scan{b, true}
	s.skip(`{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","message":{"subject":"`)
	s.text()
	s.skip(`,"seq":`)
	digits := bytes.IndexByte(s.b, ',')
	if digits <= 0 || !s.ok {
		return 0, nil, nil, at, false
	}
	seq, err := strconv.ParseUint(string(s.b[:digits]), 10, 64)
	s.b = s.b[digits:]
	header = s.base64(`,"hdrs":"`)
	value = s.base64(`,"data":"`)
	s.skip(`,"time":"`)
	at, err2 := time.Parse(time.RFC3339Nano, string(s.text()))
	s.skip(`}}`)
	return seq, header, value, at, s.ok && err == nil && err2 == nil && len(s.b) == 0
}

// scan is the rest of an answer, and whether it was as expected so far.
type scan struct {
	b  []byte
	ok bool
}

func (s *scan) skip(text string) {
	rest, found := bytes.CutPrefix(s.b, []byte(text))
	s.b, s.ok = rest, s.ok && found
}

// text reads up to the end of a string without escapes.
func (s *scan) text() []byte {
	text, rest, found := bytes.Cut(s.b, []byte{'"'})
	s.b, s.ok = rest, s.ok && found && bytes.IndexByte(text, '\\') < 0
	return text
}

// base64 reads a field that may be missing.
func (s *scan) base64(name string) []byte {
	rest, found := bytes.CutPrefix(s.b, []byte(name))
	if !found {
		return nil
	}
	s.b = rest
	text := s.text()
	value := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(value, text)
	s.ok = s.ok && err == nil
	return value[:n]
}
