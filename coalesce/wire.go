package coalesce

import (
	"encoding/binary"
	"errors"

	"github.com/lockfabric/lockfabric/kv"
)

// errMalformed says that this version does not accept a message. The receiver drops the whole message.
var errMalformed = errors.New("coalesce: malformed message")

// The bounds of a message. They bound how much memory a peer can make this process allocate.
const (
	frameVersion = 1
	maxFrame     = 64 << 10 // bytes
	maxOps       = 512      // operations, or outcomes, in one message
	maxKey       = 3 * kv.MaxNameLen
)

// The first byte of a message.
const (
	frameMagic = 'L' // client -> owner
	replyMagic = 'R' // owner -> client
	beatMagic  = 'B' // owner -> all clients; also the answer to a hello
)

// reader decodes a message. After the first error it reads everything as empty.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads a number that is at most limit and at most the number of the remaining bytes.
func (r *reader) count(limit int) int {
	v := r.uint()
	if v > uint64(min(limit, len(r.b))) {
		r.fail()
		return 0
	}
	return int(v)
}

// bytes reads a length of at most limit, and returns that many bytes of the message without copying them.
func (r *reader) bytes(limit int) []byte {
	n := r.count(limit)
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) string(limit int) string { return string(r.bytes(limit)) }

func appendUint(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst, v) }

func appendBytes[T string | []byte](dst []byte, b T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// A field is a tag, a length and the content. Fields are optional, and zero fields are left out.

func appendField[T string | []byte](dst []byte, tag byte, b T) []byte {
	if len(b) == 0 {
		return dst
	}
	return appendBytes(append(dst, tag), b)
}

func appendNumber(dst []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return dst
	}
	var b [binary.MaxVarintLen64]byte
	return appendBytes(append(dst, tag), b[:binary.PutUvarint(b[:], v)])
}

// fields calls take for every field before endOfFields.
func (r *reader) fields(take func(tag byte, v *reader)) {
	for {
		tag := r.byte()
		if tag == endOfFields || r.bad {
			return
		}
		v := reader{b: r.bytes(maxFrame)}
		if take(tag, &v); v.bad {
			r.fail()
		}
	}
}

const endOfFields = 0
