package coalesce

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// reply is a message of an owner to a client: outcomes, and how far the owner has taken the client's frames.
type reply struct {
	term     uint64
	upto     uint64 // every frame up to this one was taken or missed
	missed   span   // frames that did not arrive
	outcomes []outcome
}

// span is the frames from first to last. The zero span is empty.
type span struct{ first, last uint64 }

// outcomeKind says what became of an operation at its owner.
type outcomeKind byte

const (
	granted    outcomeKind = iota + 1 // it holds
	queued                            // it waits; the final outcome follows
	refused                           // the record forbids it
	gone                              // its entry disappeared
	done                              // a release: the record contains no entry with its id any more
	notDone                           // the owner did nothing and will do nothing: use another road
	turnCame                          // an acquire: its turn has come, by the record at rev and the end of the hold before it
	turnPassed                        // a release: the turn was passed on; done follows
)

// code says why an operation was not done.
type code byte

const (
	codeUnsupported  code = iota + 1 // this owner does not know the operation
	codeLeaseDead                    // its lease is dead or was never alive
	codeLeaseUnknown                 // its lease could not be read, or belongs to another client
	codeBusy                         // too many operations are under way
	codeStamp                        // the frame is for another bucket, or other shards
	codeNotOwner                     // the term is over
	codeFailed                       // it ended with an error that is likely to come again
	codeOvertaken                    // others have written the key since it was sent, at rev at the latest
)

// outcome is what became of one operation.
type outcome struct {
	kind    outcomeKind
	release bool // the operation is a release
	lease   string
	seq     uint64 // of the operation, under its lease
	frame   uint64 // the last frame that contained the operation

	rev       uint64 // the revision of the record that shows it
	token     uint64
	mode      record.Mode
	permits   int
	alone     bool // the record contains no other entry
	revoked   bool
	letTurn   bool // the hold passes no turn on when it is released
	existed   bool
	uncertain bool // an earlier attempt may be committed

	position   int
	verdict    record.Verdict
	have       int
	limit      string
	wait       time.Duration
	blocker    string // the id of an entry in record
	record     []byte // the record with the blocking entry; it may be cut
	code       code
	endedToken uint64 // turnCame: the token of the hold that has ended; its id is blocker
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

// decodeReply decodes a whole reply or returns an error. It skips fields that only a newer version knows.
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

// beat is the message by which an owner announces itself to all clients. It is also the answer to a hello.
type beat struct {
	term     uint64
	stamp    Stamp
	lease    string // the lease of the term: when it is dead, the term is over
	bye      bool   // the term ends: send this owner nothing more
	rank     int
	min, max uint64 // versions of frames
	next     uint64 // longest time in milliseconds until the next beat; 0: none is promised
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
	r.byte() // any version: min and max say which frames are understood
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
