package explore

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// program is a small world: one key, a few clients, so many faults.
type program struct {
	name    string
	kind    record.Kind
	clients [][]step
	faults  faults
	expire  bool // delete markers may expire
	batch   bool // two operations may share a write
	oneSize bool // all clients name the same size, parties or count
	twins   bool // the first two clients share a lease: two goroutines of one process
	larger  bool // only explored in the long form
	lim     record.Limits

	// change looks at a committed change, and may note it in c.after.ghost. It returns what is wrong.
	change func(c *change) string
	// told looks at what a client is told.
	told func(s *state, k *client, a *answer) string
	// each looks at every state.
	each func(s *state) string
	// rest looks at a state in which nothing more happens; nil: all clients are done and the key
	// holds nothing.
	rest func(p *program, s *state) string

	// Rules of the client that can be taken away.
	keepsGhosts bool // P25: entries that their owner knows nothing of stay
	noProof     bool // P26: whoever gives up returns at once and lets the operation be
}

// step is one operation of a client.
type step struct {
	name string
	// op makes the operation from what the client has read and holds. The id is new.
	op func(k *client, id string) record.Op
	// then says where the client goes on; nil: with the next step if it is done, else it ends.
	then func(n *state, k *client, a *answer) int8
	// when says whether the client can send it yet; nil: yes.
	when func(s *state, k *client) bool
	ends bool // the hold is given up before it is sent
	stay bool // the client never gives it up
}

// end is where a client has nothing more to do.
const end = int8(100)

type outcome uint8

const (
	_         outcome = iota
	applied           // done, or granted
	refused           // by a verdict
	cancelled         // given up, and it was not done and won't be
	uncertain         // given up without proof
	missing           // it waited, and is gone
)

var outcomeNames = [...]string{applied: "done", refused: "refused", cancelled: "not done", uncertain: "uncertain", missing: "gone"}

func (o outcome) String() string { return outcomeNames[o] }

// answer is what a client is told about its operation.
type answer struct {
	outcome outcome
	op      *record.Op
	verdict record.Verdict
	state   record.State
	rec     *record.Record // that the outcome was read from
	rev     uint64
}

// change is one committed write, or an attempt that changed nothing.
type change struct {
	before  *record.Record
	rev     uint64 // of before
	ops     []record.Op
	results []record.Result
	after   *state
	changed bool
}

// ttl is that of all leases; nothing here takes time.
const ttl = time.Second

// leaseOf is the lease of a client, and its name in what is printed.
func leaseOf(client int) string { return string(rune('a' + client)) }

// leader is the first client under the lease of client i.
func (p *program) leader(i int) int {
	if p.twins && i == 1 {
		return 0
	}
	return i
}

// lease is the lease of client i.
func (p *program) lease(i int) string { return leaseOf(p.leader(i)) }

// twinSequence is where the ids of the second of two clients under one lease begin.
const twinSequence = 10

// read is what a client learns of the key before it sends an operation.
func (k *client) read(s *state) {
	f := s.key.rec.Facts()
	k.seen, k.gen, k.base, k.life = s.rev, f.Gen, f.Sized, s.rev
	if s.key.rec != nil {
		k.life = s.key.rec.Life
	}
}

// knows reports whether a client has to do with an entry: it holds it, asks for it, or is about to
// take it away.
func (s *state) knows(p *program, lease int, id string) bool {
	for i := range p.clients {
		if p.leader(i) == lease && s.clientKnows(i, id) {
			return true
		}
	}
	return false
}

func (s *state) clientKnows(i int, id string) bool {
	k := &s.clients[i]
	if k.hold == id || k.op != nil && (k.op.ID == id || k.op.Holder == id && k.phase == sent) {
		return true
	}
	for _, m := range s.flight {
		if int(m.client) == i && m.role != late && (m.op.ID == id || m.op.Holder == id) {
			return true
		}
	}
	return false
}

// harmless reports whether an operation may come late, after its client has got its answer: it asks
// for an entry, and its client withdraws what it knows nothing of, or it is that which withdraws.
func harmless(op *record.Op) bool {
	return op.Waits() && !op.Proven() && !op.WaitsAfterUndo() || op.Verb == record.OpRelease
}
