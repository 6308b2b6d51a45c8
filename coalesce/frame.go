package coalesce

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// item is one operation in a frame.
type item struct {
	key         string
	op          record.Op
	failFast    bool
	wantsPlace  bool   // report its place in the queue at once
	passesTurn  bool   // a release: the hold's turn can be passed on
	takesTurns  bool   // an acquire: it can hold by a turn
	sinceRev    uint64 // an acquire or a try: see engine.Request.Since
	unsupported bool   // this version does not know its kind, its verb or one of its fields
}

// frame is a message of a client: operations in their order.
type frame struct {
	stamp Stamp
	ack   bool   // it fills the client's window, so it is acknowledged at once
	seq   uint64 // the number of this frame in its session, from 1
	items []item
}

// verbs are the verbs on the wire, by their numbers.
var verbs = []record.Verb{1: record.OpAcquire, 2: record.OpTry, 3: record.OpRelease}

// kinds are the kinds on the wire, by their numbers. A release of any kind has 0.
var kinds = []record.Kind{1: record.KindLock, 2: record.KindSemaphore}

// maxText bounds the owner and the metadata of an operation.
const maxText = 8 << 10

// canCarry reports whether a frame can carry an operation.
func canCarry(key string, op *record.Op) bool {
	text := len(op.Owner)
	for k, v := range op.Meta {
		text += len(k) + len(v) + 8
	}
	small := func(n int) bool { return n >= 0 && n <= maxNumber }
	return slices.Contains(verbs[1:], op.Verb) && slices.Contains(kinds, op.Kind) && op.Holder == "" && op.Base == 0 && !op.Value.Set &&
		op.Lease != "" && op.Lease == record.LeaseOf(op.ID) && small(op.N) && small(op.Limit) &&
		min(op.TTL, op.Hold, op.Patience) >= 0 && text <= maxText && validKey(key)
}

// maxNumber bounds numbers of permits, and limits.
const maxNumber = 1<<31 - 1

const (
	flagFailFast = 1 << iota
	flagTell
	flagHeld
	flagTurns
)

// The tags of an operation's fields.
const (
	tagMode = iota + 1
	tagTTL
	tagOwner
	tagSince
	tagMeta
	tagHold
	tagPatience
	tagToken
	tagN
	tagLimit
	tagLife
	tagSeen
)

// append encodes a frame.
func (f *frame) append(dst []byte) []byte {
	var flags byte
	if f.ack {
		flags = 1
	}
	dst = append(dst, frameMagic, frameVersion, flags)
	dst = append(dst, f.stamp[:]...)
	dst = appendUint(dst, f.seq)
	var leases, keys table
	for i := range f.items {
		leases.add(f.items[i].op.Lease)
		keys.add(f.items[i].key)
	}
	dst = leases.append(dst)
	dst = keys.append(dst)
	dst = appendUint(dst, uint64(len(f.items)))
	for i := range f.items {
		dst = f.items[i].append(dst, &leases, &keys)
	}
	return dst
}

func (it *item) append(dst []byte, leases, keys *table) []byte {
	op := &it.op
	var flags byte
	for i, set := range [...]bool{it.failFast, it.wantsPlace, it.passesTurn, it.takesTurns} {
		if set {
			flags |= 1 << i
		}
	}
	dst = append(dst, byte(slices.Index(verbs, op.Verb)), flags, byte(slices.Index(kinds, op.Kind)))
	dst = appendUint(dst, leases.index(op.Lease))
	dst = appendUint(dst, sequenceOf(op.ID))
	dst = appendUint(dst, keys.index(it.key))
	dst = appendNumber(dst, tagMode, uint64(op.Mode))
	dst = appendNumber(dst, tagTTL, uint64(op.TTL))
	dst = appendField(dst, tagOwner, op.Owner)
	if !op.Since.IsZero() {
		dst = appendNumber(dst, tagSince, uint64(max(op.Since.UnixMilli(), 0)))
	}
	if len(op.Meta) > 0 {
		dst = appendField(dst, tagMeta, appendMeta(nil, op.Meta))
	}
	dst = appendNumber(dst, tagHold, uint64(op.Hold))
	dst = appendNumber(dst, tagPatience, uint64(op.Patience))
	dst = appendNumber(dst, tagToken, op.Token)
	dst = appendNumber(dst, tagN, uint64(op.N))
	dst = appendNumber(dst, tagLimit, uint64(op.Limit))
	dst = appendNumber(dst, tagLife, op.Life)
	dst = appendNumber(dst, tagSeen, it.sinceRev)
	return append(dst, endOfFields)
}

func appendMeta(dst []byte, meta map[string]string) []byte {
	dst = appendUint(dst, uint64(len(meta)))
	for k, v := range meta {
		dst = appendBytes(appendBytes(dst, k), v)
	}
	return dst
}

// decodeFrame decodes a whole frame or returns an error. It marks operations that only a newer version
// knows as unsupported.
func decodeFrame(b []byte) (f frame, err error) {
	r := reader{b: b}
	if len(b) > maxFrame || r.byte() != frameMagic || r.byte() != frameVersion {
		return frame{}, errMalformed
	}
	f.ack = r.byte()&1 != 0
	if len(r.b) < len(f.stamp) {
		return frame{}, errMalformed
	}
	r.b = r.b[copy(f.stamp[:], r.b):]
	f.seq = r.uint()
	leases, keys := r.table(maxLease, validLease), r.table(maxKey, validKey)
	n := r.count(maxOps)
	f.items = make([]item, 0, n)
	for range n {
		it := r.item(leases, keys)
		if r.bad {
			break
		}
		f.items = append(f.items, it)
	}
	if r.bad || len(r.b) > 0 || f.seq == 0 {
		return frame{}, errMalformed
	}
	return f, nil
}

func (r *reader) item(leases, keys []string) (it item) {
	verb, flags, kind := r.byte(), r.byte(), r.byte()
	lease, seq, key := r.uint(), r.uint(), r.uint()
	if lease >= uint64(len(leases)) || key >= uint64(len(keys)) {
		r.fail()
		return it
	}
	it.key, it.failFast, it.wantsPlace = keys[key], flags&flagFailFast != 0, flags&flagTell != 0
	it.passesTurn, it.takesTurns = flags&flagHeld != 0, flags&flagTurns != 0
	op := &it.op
	op.Lease, op.ID = leases[lease], record.ID(leases[lease], seq)
	if int(verb) < len(verbs) && int(kind) < len(kinds) && verb != 0 {
		op.Verb, op.Kind = verbs[verb], kinds[kind]
	} else {
		it.unsupported = true
	}
	r.fields(func(tag byte, v *reader) {
		switch tag {
		case tagMode:
			op.Mode = record.Mode(v.small(255))
		case tagTTL:
			op.TTL = v.duration()
		case tagOwner:
			op.Owner = string(v.b)
		case tagSince:
			op.Since = time.UnixMilli(int64(v.small(1<<53 - 1))).UTC()
		case tagMeta:
			op.Meta = v.meta()
		case tagHold:
			op.Hold = v.duration()
		case tagPatience:
			op.Patience = v.duration()
		case tagToken:
			op.Token = v.uint()
		case tagN:
			op.N = int(v.small(maxNumber))
		case tagLimit:
			op.Limit = int(v.small(maxNumber))
		case tagLife:
			op.Life = v.uint()
		case tagSeen:
			it.sinceRev = v.uint()
		default:
			it.unsupported = true
		}
	})
	return it
}

// small reads a number that is at most limit.
func (r *reader) small(limit uint64) uint64 {
	v := r.uint()
	if v > limit {
		r.fail()
		return 0
	}
	return v
}

func (r *reader) duration() time.Duration { return time.Duration(r.small(1<<63 - 1)) }

func (r *reader) meta() map[string]string {
	n := r.count(len(r.b))
	if n == 0 {
		return nil
	}
	meta := make(map[string]string, min(n, 64))
	for range n {
		k := r.string(maxFrame)
		v := r.string(maxFrame)
		if r.bad {
			return nil
		}
		meta[k] = v
	}
	return meta
}

// table is a list of strings. A message refers to each of them by its index.
type table struct {
	list []string
	at   map[string]int // the indexes, once there are more than 8 strings
}

func (t *table) find(s string) int {
	if t.at != nil {
		if i, ok := t.at[s]; ok {
			return i
		}
		return -1
	}
	return slices.Index(t.list, s)
}

func (t *table) add(s string) {
	if n := len(t.list); n > 0 && t.list[n-1] == s || t.find(s) >= 0 {
		return
	}
	t.list = append(t.list, s)
	switch n := len(t.list); {
	case t.at != nil:
		t.at[s] = n - 1
	case n > 8:
		t.at = make(map[string]int, 2*n)
		for i, s := range t.list {
			t.at[s] = i
		}
	}
}

func (t *table) index(s string) uint64 { return uint64(t.find(s)) }

func (t *table) append(dst []byte) []byte {
	dst = appendUint(dst, uint64(len(t.list)))
	for _, s := range t.list {
		dst = appendBytes(dst, s)
	}
	return dst
}

func (r *reader) table(limit int, valid func(string) bool) []string {
	n := r.count(maxOps)
	list := make([]string, 0, n)
	for range n {
		s := r.string(limit)
		if r.bad || !valid(s) {
			r.fail()
			return nil
		}
		list = append(list, s)
	}
	return list
}

// maxLease is the greatest length of a lease's id.
const maxLease = 128

func validLease(s string) bool { return s != "" && record.LeaseOf(record.ID(s, 1)) == s }

func validKey(s string) bool {
	_, err := kv.DecodeKey(s)
	return err == nil
}

func sequenceOf(id string) uint64 {
	seq, _ := strconv.ParseUint(id[strings.LastIndexByte(id, '.')+1:], 10, 64)
	return seq
}
