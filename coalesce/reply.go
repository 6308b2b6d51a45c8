package coalesce

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// reply is what an owner sends to a client: outcomes, and how far it has taken the client's frames.
type reply struct {
	term     uint64
	upto     uint64 // every frame up to this one was taken, or is missed
	missed   span   // frames that did not come
	outcomes []outcome
}

// span is the frames from first to last; the zero span is none.
type span struct{ first, last uint64 }

// fate is what became of an operation at its owner.
type outcomeKind byte

const (
	granted    outcomeKind = iota + 1 // it holds
	queued                            // it waits; the final outcome follows
	refused                           // the record forbids it
	gone                              // its entry disappeared
	done                              // a release: nothing of the id stands any more
	notDone                           // nothing was done, and nothing will be: ask somebody else
	turnCame                          // an acquire: its turn came, as the record at rev and the end of the hold before it say
	turnPassed                        // a release: the turn went on, done follows
)

// code says why an operation was not done.
type code byte

const (
	codeUnsupported  code = iota + 1 // an operation that this owner does not know
	codeLeaseDead                    // its lease is dead, or was never alive
	codeLeaseUnknown                 // what became of its lease could not be found out, or it is not the client's
	codeBusy                         // too much is under way already
	codeStamp                        // the frame is for another bucket, or other shards
	codeNotOwner                     // the term is over
	codeFailed                       // it ended with an error, which whoever asks again meets, too
	codeOvertaken                    // others have written the key since, at rev at the latest
)

// outcome is what became of one operation.
type outcome struct {
	kind    outcomeKind
	release bool // of a release
	lease   string
	seq     uint64 // of the operation, under its lease
	frame   uint64 // that brought it, or brought it last

	rev       uint64 // of the record that says so
	token     uint64
	mode      record.Mode
	permits   int
	alone     bool // nobody else stands in the record
	revoked   bool
	letTurn   bool // turns are over here: its release passes none on
	existed   bool
	uncertain bool // an earlier attempt may be committed

	position   int
	verdict    record.Verdict
	have       int
	limit      string
	wait       time.Duration
	blocker    string // id, of an entry in record
	record     []byte // who is in the way, as a record; may be cut
	code       code
	endedToken uint64 // a turn: the token of the hold that has ended, whose id is blocker
}

// The tags of an outcome's fields.
const (
	tagRevision = iota + 1
	tagGrant
	tagGrantMode
	tagPermits
	tagFlags
	tagPosition
	tagVerdict
	tagHave
	tagLimitText
	tagWait
	tagBlocker
	tagRecord
	tagCode
	tagFrom
)

const (
	flagAlone = 1 << iota
	flagRevoked
	flagExisted
	flagUncertain
	flagRelease
	flagLetTurn
)

func (o *outcome) id() string { return record.ID(o.lease, o.seq) }

// append encodes a reply.
func (p *reply) append(dst []byte) []byte {
	dst = append(dst, replyMagic, frameVersion, 0)
	dst = appendUint(dst, p.term)
	dst = appendUint(dst, p.upto)
	dst = appendUint(appendUint(dst, p.missed.first), p.missed.last)
	var leases table
	for i := range p.outcomes {
		leases.add(p.outcomes[i].lease)
	}
	dst = leases.append(dst)
	dst = appendUint(dst, uint64(len(p.outcomes)))
	for i := range p.outcomes {
		dst = p.outcomes[i].append(dst, &leases)
	}
	return dst
}

func (o *outcome) append(dst []byte, leases *table) []byte {
	var flags uint64
	for i, set := range [...]bool{o.alone, o.revoked, o.existed, o.uncertain, o.release, o.letTurn} {
		if set {
			flags |= 1 << i
		}
	}
	dst = append(dst, byte(o.kind))
	dst = appendUint(dst, leases.index(o.lease))
	dst = appendUint(dst, o.seq)
	dst = appendUint(dst, o.frame)
	dst = appendNumber(dst, tagRevision, o.rev)
	dst = appendNumber(dst, tagGrant, o.token)
	dst = appendNumber(dst, tagGrantMode, uint64(o.mode))
	dst = appendNumber(dst, tagPermits, uint64(o.permits))
	dst = appendNumber(dst, tagFlags, flags)
	dst = appendNumber(dst, tagPosition, uint64(o.position))
	dst = appendNumber(dst, tagVerdict, uint64(o.verdict))
	dst = appendNumber(dst, tagHave, uint64(o.have))
	dst = appendField(dst, tagLimitText, o.limit)
	dst = appendNumber(dst, tagWait, uint64(o.wait))
	dst = appendField(dst, tagBlocker, o.blocker)
	dst = appendField(dst, tagRecord, o.record)
	dst = appendNumber(dst, tagCode, uint64(o.code))
	dst = appendNumber(dst, tagFrom, o.endedToken)
	return append(dst, endOfFields)
}

// decodeReply takes a reply whole or not at all. What only a newer version knows is passed over.
func decodeReply(b []byte) (p reply, err error) {
	r := reader{b: b}
	if r.byte() != replyMagic || r.byte() != frameVersion {
		return reply{}, errMalformed
	}
	r.byte()
	p.term, p.upto = r.uint(), r.uint()
	p.missed.first, p.missed.last = r.uint(), r.uint()
	leases := r.table(maxLease, validLease)
	n := r.count(maxOps)
	p.outcomes = make([]outcome, 0, n)
	for range n {
		o := r.outcome(leases)
		if r.bad {
			break
		}
		p.outcomes = append(p.outcomes, o)
	}
	if r.bad || len(r.b) > 0 || p.missed.first > p.missed.last {
		return reply{}, errMalformed
	}
	return p, nil
}

func (r *reader) outcome(leases []string) (o outcome) {
	o.kind = outcomeKind(r.byte())
	lease := r.uint()
	o.seq, o.frame = r.uint(), r.uint()
	if lease >= uint64(len(leases)) {
		r.fail()
		return o
	}
	o.lease = leases[lease]
	r.fields(func(tag byte, v *reader) {
		switch tag {
		case tagRevision:
			o.rev = v.uint()
		case tagGrant:
			o.token = v.uint()
		case tagGrantMode:
			o.mode = record.Mode(v.small(255))
		case tagPermits:
			o.permits = int(v.small(maxNumber))
		case tagFlags:
			flags := v.uint()
			o.alone, o.revoked = flags&flagAlone != 0, flags&flagRevoked != 0
			o.existed, o.uncertain = flags&flagExisted != 0, flags&flagUncertain != 0
			o.release, o.letTurn = flags&flagRelease != 0, flags&flagLetTurn != 0
		case tagPosition:
			o.position = int(v.small(maxNumber))
		case tagVerdict:
			o.verdict = record.Verdict(v.small(255))
		case tagHave:
			o.have = int(v.small(maxNumber))
		case tagLimitText:
			o.limit = string(v.b)
		case tagWait:
			o.wait = v.duration()
		case tagBlocker:
			o.blocker = string(v.b)
		case tagRecord:
			o.record = v.b
		case tagCode:
			o.code = code(v.small(255))
		case tagFrom:
			o.endedToken = v.uint()
		}
	})
	return o
}

// beat is what an owner tells everybody, and answers to a hello with.
type beat struct {
	term     uint64
	stamp    Stamp
	lease    string // of the term: when it is dead, the term is over
	bye      bool   // the term ends, ask nobody there any more
	rank     int
	min, max uint64 // versions of frames
	next     uint64 // milliseconds until the next beat at most, 0 where none is promised
}

func (t *beat) append(dst []byte) []byte {
	var flags byte
	if t.bye {
		flags = 1
	}
	dst = append(append(dst, beatMagic, frameVersion, flags), t.stamp[:]...)
	dst = appendUint(dst, t.term)
	dst = appendBytes(dst, t.lease)
	for _, n := range [...]uint64{uint64(t.rank), t.min, t.max, t.next} {
		dst = appendUint(dst, n)
	}
	return dst
}

func decodeBeat(b []byte) (t beat, err error) {
	r := reader{b: b}
	if r.byte() != beatMagic {
		return beat{}, errMalformed
	}
	r.byte() // of whatever version: min and max say what is spoken
	t.bye = r.byte()&1 != 0
	if len(r.b) < len(t.stamp) {
		return beat{}, errMalformed
	}
	r.b = r.b[copy(t.stamp[:], r.b):]
	t.term, t.lease = r.uint(), r.string(maxLease)
	t.rank, t.min, t.max, t.next = int(r.small(maxNumber)), r.uint(), r.uint(), r.small(1<<20)
	if r.bad || t.term == 0 || !validLease(t.lease) {
		return beat{}, errMalformed
	}
	return t, nil
}
