package coalesce

import (
	"encoding/hex"
	"hash/fnv"
	"strconv"
	"strings"
)

// Stamp identifies what an owner and its clients must have in common: the locks bucket, and how its
// keys are divided into shards. Every frame contains it.
type Stamp [8]byte

// NewStamp returns the stamp of a locks bucket's incarnation, with the epoch and the number of its shards.
func NewStamp(incarnation string, epoch uint64, shards int) (s Stamp) {
	h := fnv.New64a()
	for _, part := range []string{incarnation, strconv.FormatUint(epoch, 10), strconv.Itoa(shards)} {
		_, _ = h.Write([]byte(part))
		_, _ = h.Write([]byte{0})
	}
	h.Sum(s[:0])
	return s
}

func (s Stamp) String() string { return hex.EncodeToString(s[:]) }

// The subjects. F is the fabric, s the shard, T the term, M a manager:
//
//	lf.F.s.T.op    client -> owner of the term: frames. The reply subject is lf.F.n.M.f.<frame>
//	lf.F.s.hello   client -> any owner of the shard, answered to lf.F.n.M.h
//	lf.F.s.beat    owner -> all clients
//	lf.F.n.M.>     owner -> client: replies at lf.F.n.M.r
//
// lf.F.n.M is for shard 0. Every other shard has lf.F.n.s.M instead.
func opSubject(fabric string, shard int, term uint64) string {
	return "lf." + fabric + "." + strconv.Itoa(shard) + "." + strconv.FormatUint(term, 10) + ".op"
}

// HelloSubject is the subject on which clients look for an owner. One member of QueueGroup answers.
func HelloSubject(fabric string, shard int) string {
	return "lf." + fabric + "." + strconv.Itoa(shard) + ".hello"
}

// AnyHello matches every HelloSubject.
const AnyHello = "lf.*.*.hello"

// BeatSubject is the subject on which an owner sends its beats to all clients.
func BeatSubject(fabric string, shard int) string {
	return "lf." + fabric + "." + strconv.Itoa(shard) + ".beat"
}

// inbox returns the common prefix of all subjects on which a manager receives messages.
func inbox(fabric string, shard int, manager string) string {
	return inboxes(fabric, shard) + manager + "."
}

func inboxes(fabric string, shard int) string {
	if shard == 0 {
		return "lf." + fabric + ".n."
	}
	return "lf." + fabric + ".n." + strconv.Itoa(shard) + "."
}

// managerOf returns the manager in the reply subject of a frame or a hello. It returns "" for every other
// subject, so an owner never publishes to a subject that a client has made up.
func managerOf(reply, inboxes string) string {
	rest, ok := strings.CutPrefix(reply, inboxes)
	manager, _, more := strings.Cut(rest, ".")
	if !ok || !more || !validManager(manager) {
		return ""
	}
	return manager
}

// maxManager bounds the length of a manager's id.
const maxManager = 64

func validManager(s string) bool {
	if s == "" || len(s) > maxManager {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		default:
			return false
		}
	}
	return true
}

// isLeaseOf reports whether the id of a lease says that the lease belongs to the manager.
func isLeaseOf(lease, manager string) bool {
	return len(lease) > len(manager) && lease[len(manager)] == '-' && lease[:len(manager)] == manager
}
