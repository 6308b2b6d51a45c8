package coalesce

import (
	"encoding/binary"
	"errors"

	"github.com/lockfabric/lockfabric/kv"
)

// errMalformed says that a message is not what this version takes. It is dropped as a whole.
var errMalformed = errors.New("coalesce: malformed message")

// The bounds of a message. All that a peer can make this process allocate follows from them.
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
	beatMagic  = 'B' // owner -> everybody, and as the answer to a hello
)

// reader takes a message apart. After the first thing that is wrong everything reads as nothing.
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

// count reads a number that is at most limit, and at most what the rest can hold.
func (r *reader) count(limit int) int {
	v := r.uint()
	if v > uint64(min(limit, len(r.b))) {
		r.fail()
		return 0
	}
	return int(v)
}

// bytes reads a length of at most limit and as many bytes, which stay those of the message.
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

// Fields are tagged and optional: a number, a length, and the content. A field that is zero is left out.

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

// fields calls take for every field up to the mark that ends them.
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
