package explore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strconv"

	"github.com/lockfabric/lockfabric/internal/record"
)

// maxClients bounds the clients of a program.
const maxClients = 4

// state is everything there is at one moment. It is copied to get the next one.
type state struct {
	key     *committed
	rev     uint64 // of the record or the delete marker; 0 = the key is absent
	top     uint64 // the newest revision there ever was
	clients [maxClients]client
	flight  []message // in the order of compareMessages; not modified but replaced
	dead    uint8     // leases, one bit for each client
	used    faults
	ghost   ghost
}

// committed is the record of the key. One value is shared by many states.
type committed struct {
	rec  *record.Record // nil = none
	text []byte         // its stored form without the revisions
	revs []uint64       // the revisions, in their order in the stored form
}

var nothing = &committed{}

// faults counts what may go wrong, and what has.
type faults struct {
	lost    int8 // answers
	late    int8 // copies of operations
	cancels int8
	deaths  int8
}

// ghost is what only the checks of a kind know.
type ghost struct {
	n    [10]int32
	revs [4]uint64
	text string
}

type phase uint8

const (
	ready   phase = iota // sends the next operation of its program
	sent                 // waits for the answer
	waits                // its operation waits in the committed record
	proving              // has given up, and waits for the answer to what undoes its operation
	undoing              // likewise, and what undoes it waits in the committed record
	done
	lost // its lease is dead
)

// client is one client of a program.
type client struct {
	phase phase
	pc    int8
	seq   uint8      // of the last id
	tries int8       // of the present step
	op    *record.Op // that it waits for, or what it has given up
	undo  *record.Op // that it waits for then
	// What it read before it sent op.
	life, base, seen, gen uint64
	// What it was told that it holds; "" = nothing.
	hold  string
	token uint64 // 0 = not certain, after a change of mode
	mode  record.Mode
	n     int
	// What it gave up last, and whether it has asked to get back what it waits for (Op.Stays).
	gave      string
	gaveToken uint64
	quit      bool
	result    [4]outcome // of its steps
	note      [4]uint64  // what its program remembers; no revisions
}

// role says who wants what becomes of a message.
type role uint8

const (
	asked  role = iota // its client waits
	ledger             // nobody waits, but it is carried out until that is certain
	late               // a copy, which may arrive once
)

// message is an operation in flight.
type message struct {
	op     *record.Op
	client int8
	role   role
	tried  bool // it was applied, and the answer was lost
	told   bool // its client knows the outcome
}

func compareMessages(a, b message) int {
	flags := func(m message) int8 {
		f := int8(m.role) << 2
		if m.tried {
			f |= 1
		}
		if m.told {
			f |= 2
		}
		return f
	}
	return cmp.Or(cmp.Compare(a.client, b.client), cmp.Compare(a.op.ID, b.op.ID), cmp.Compare(a.op.Verb, b.op.Verb), cmp.Compare(flags(a), flags(b)))
}

// with returns a copy of the messages without those at the given indexes, and with more.
func with(flight []message, without []int, more ...message) []message {
	out := make([]message, 0, len(flight)+len(more))
	for i, m := range flight {
		if !slices.Contains(without, i) {
			out = append(out, m)
		}
	}
	out = append(out, more...)
	slices.SortFunc(out, compareMessages)
	return out
}

// marked takes the revisions out of a record's stored form.
func marked(rec *record.Record) *committed {
	raw := rec.Append(nil)
	c := &committed{rec: rec, text: make([]byte, 0, len(raw))}
	const width = 20
	for i := 0; i < len(raw); {
		if raw[i] == '"' && i+width+1 < len(raw) && raw[i+width+1] == '"' {
			if rev, err := strconv.ParseUint(string(raw[i+1:i+1+width]), 10, 64); err == nil {
				c.text, c.revs = append(c.text, 0), append(c.revs, rev)
				i += width + 2
				continue
			}
		}
		if field := revisionField(raw[i:]); field > 0 {
			n := 0
			for rest := raw[i+field:]; rest[n] >= '0' && rest[n] <= '9'; {
				n++
			}
			rev, _ := strconv.ParseUint(string(raw[i+field:i+field+n]), 10, 64)
			c.text, c.revs = append(append(c.text, raw[i:i+field]...), 0), append(c.revs, rev)
			i += field + n
			continue
		}
		c.text = append(c.text, raw[i])
		i++
	}
	return c
}

// revisionField returns the length of the name of a field with a revision that text begins with, or 0.
func revisionField(text []byte) int {
	for _, field := range [...]string{`"life":`, `"fenced":`, `"shut":`} {
		if bytes.HasPrefix(text, []byte(field)) {
			return len(field)
		}
	}
	return 0
}

// canon makes the form in which states are compared.
type canon struct {
	buf    []byte
	revs   []uint64
	sorted []uint64
}

var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// hash returns the same for states that differ in the numbers of revisions only, not in their order.
func (c *canon) hash(s *state) [2]uint64 {
	c.buf, c.revs = c.buf[:0], c.revs[:0]
	c.text(string(s.key.text))
	c.revs = append(c.revs, s.key.revs...)
	c.revs = append(c.revs, s.rev)
	for i := range s.clients {
		c.client(&s.clients[i])
	}
	for _, m := range s.flight {
		c.bytes(byte(m.client), byte(m.role), bit(m.tried), bit(m.told))
		c.op(m.op)
	}
	c.bytes(255, s.dead, byte(s.used.lost), byte(s.used.late), byte(s.used.cancels), byte(s.used.deaths))
	for _, n := range s.ghost.n {
		c.buf = binary.AppendVarint(c.buf, int64(n))
	}
	c.revs = append(c.revs, s.ghost.revs[:]...)
	c.text(s.ghost.text)

	c.sorted = append(c.sorted[:0], c.revs...)
	slices.Sort(c.sorted)
	c.sorted = slices.Compact(c.sorted)
	if len(c.sorted) > 0 && c.sorted[0] != 0 {
		c.sorted = slices.Insert(c.sorted, 0, 0)
	}
	for _, rev := range c.revs {
		rank, _ := slices.BinarySearch(c.sorted, rev)
		c.bytes(byte(rank))
	}
	return [2]uint64{maphash.Bytes(seeds[0], c.buf), maphash.Bytes(seeds[1], c.buf)}
}

func (c *canon) client(k *client) {
	c.bytes(byte(k.phase), byte(k.pc), k.seq, byte(k.tries), byte(k.mode), bit(k.quit))
	c.op(k.op)
	c.op(k.undo)
	c.text(k.hold)
	c.text(k.gave)
	c.buf = binary.AppendUvarint(c.buf, k.gen)
	c.buf = binary.AppendVarint(c.buf, int64(k.n))
	for i := range k.result {
		c.bytes(byte(k.result[i]))
		c.buf = binary.AppendUvarint(c.buf, k.note[i])
	}
	c.revs = append(c.revs, k.life, k.base, k.seen, k.token, k.gaveToken)
}

func (c *canon) op(op *record.Op) {
	if op == nil {
		c.bytes(0)
		return
	}
	c.bytes(byte(op.Verb), byte(op.Mode), byte(op.From), bit(op.All), bit(op.Fail), bit(op.Value.Set))
	for _, s := range [...]string{op.ID, op.Holder, op.Queue, op.Value.Data} {
		c.text(s)
	}
	c.buf = binary.AppendVarint(c.buf, int64(op.N))
	c.buf = binary.AppendVarint(c.buf, int64(op.Limit))
	c.buf = binary.AppendUvarint(c.buf, op.Gen)
	c.revs = append(c.revs, op.Life, op.Base, op.Token, op.UpTo)
}

func (c *canon) text(s string) {
	c.buf = binary.AppendUvarint(c.buf, uint64(len(s)))
	c.buf = append(c.buf, s...)
}

func (c *canon) bytes(b ...byte) { c.buf = append(c.buf, b...) }

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}
