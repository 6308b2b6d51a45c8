package explore

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lockfabric/lockfabric/internal/record"
)

// turnProgram is clients that lock one key in mode X, each so many times. Owners pass turns on: any number of them, who know
// any record that was ever committed, at any time after the release was sent. So turns come late, many times, or never.
// Messages of operations arrive in any order. The bounds are what else can happen how often; all else is exhausted.
type turnProgram struct {
	rounds               []uint64 // of each client
	copies               int      // operations that arrive once more, later
	lost                 int      // operations that don't arrive
	cancels, conversions int
	deaths               int
	removals, revokes    int    // by an operator, of the holders that it saw
	without              string // the rule that is taken out
}

type turnPhase byte

const (
	turnIdle turnPhase = iota
	turnWaits
	turnHolds
	turnDead // its lease is over, and its entries are evicted
)

// known is a committed record, as somebody has read it.
type known struct {
	rec  *record.Record // resolved, nil: nobody holds or waits
	rev  uint64
	text string
}

type turnClient struct {
	phase  turnPhase
	seq    uint64 // of the last acquire
	token  uint64
	asked  bool              // to convert
	byTurn bool              // it holds by a turn
	marked bool              // the record that granted it says that turns are over here
	robbed bool              // its entry was removed: it may lose what it has
	seen   bool              // its entry was seen in a record since it asked
	ledger map[string]uint64 // ids that are to be released, and the newest revision when that was sent
	known  known
}

// turnOps are operations that were sent together.
type turnOps struct {
	ops  []record.Op
	text string
}

// ticketed names an entry.
type ticketed struct {
	id    string
	token uint64
}

// turnPair is an entry directly behind another in some record that was committed, the last one with the revision.
type turnPair struct {
	from, to ticketed
	rev      uint64
}

type turnState struct {
	p       *turnProgram
	now     known
	clients []turnClient
	flight  []turnOps
	pairs   []turnPair
	ended   []ticketed // who said that it has held and holds no more
	granted uint64     // greatest token
	let     int        // holds that were lost by a revocation
	left    [7]int     // copies, lost, cancels, conversions, deaths, removals, revocations
}

func (s *turnState) clone() *turnState {
	c := *s
	c.clients, c.flight = slices.Clone(s.clients), slices.Clone(s.flight)
	c.pairs, c.ended = slices.Clone(s.pairs), slices.Clone(s.ended)
	for i := range c.clients {
		c.clients[i].ledger = maps.Clone(s.clients[i].ledger)
	}
	return &c
}

// key is the same for equal states, in whatever order messages were sent.
func (s *turnState) key(b []byte) []byte {
	number := func(n uint64) { b = append(binary.AppendUvarint(b, n), '|') }
	b = append(b, s.now.text...)
	number(s.now.rev)
	number(s.granted)
	number(uint64(s.let))
	for _, n := range s.left {
		b = append(b, byte(n))
	}
	for i := range s.clients {
		c := &s.clients[i]
		b = append(b, byte(c.phase), byte(c.seq), bit(c.asked), bit(c.seen), bit(c.byTurn), bit(c.marked), bit(c.robbed), byte(len(c.ledger)))
		number(c.token)
		for _, id := range slices.Sorted(maps.Keys(c.ledger)) {
			b = append(b, id...)
			number(c.ledger[id])
		}
		b = append(b, c.known.text...)
		number(c.known.rev)
	}
	for _, m := range s.flight {
		b = append(append(b, m.text...), '|')
	}
	b = append(b, '|')
	for _, p := range s.pairs {
		b = append(append(b, p.from.id...), p.to.id...)
		number(p.from.token)
		number(p.to.token)
		number(p.rev)
	}
	b = append(b, '|')
	for _, e := range s.ended {
		b = append(b, e.id...)
		number(e.token)
	}
	return b
}

// send puts operations under way.
func (s *turnState) send(ops ...record.Op) {
	m := turnOps{ops: ops}
	for _, op := range ops {
		m.text += fmt.Sprint(" ", op.Verb, " ", op.ID, " ", op.Token+op.UpTo)
	}
	i, _ := slices.BinarySearchFunc(s.flight, m, func(a, b turnOps) int { return strings.Compare(a.text, b.text) })
	s.flight = slices.Insert(s.flight, i, m)
}

func (s *turnState) out(rule string) bool { return s.p.without == rule }

func turnLease(i int) string { return string(rune('a' + i)) }

func (s *turnState) id(i int) string { return record.ID(turnLease(i), s.clients[i].seq) }

// write applies operations to the newest record, as a compare-and-set does in the end.
func (s *turnState) write(ops []record.Op) {
	if ops[0].Verb == record.OpRemove && s.now.rec != nil {
		for i := range s.clients {
			e, held := s.now.rec.Holder(s.id(i))
			s.clients[i].robbed = s.clients[i].robbed || held && e.Token <= ops[0].UpTo
		}
		if s.out("H12 removal") {
			for _, w := range s.now.rec.Waiters {
				ops = append(slices.Clip(ops), turnRelease(w.ID, 0))
			}
		}
	}
	next, _, changed := record.Apply(s.now.rec, s.now.rev, ops, record.Limits{})
	if !changed {
		return
	}
	s.now.rev++
	if s.now.rec, s.now.text = nil, ""; next.Idle() {
		return
	}
	next.Resolve(s.now.rev)
	s.now.rec, s.now.text = next, string(next.Append(nil))
	for _, from := range slices.Concat(next.Holders, next.Waiters) {
		if to, ok := next.Behind(from.ID, from.Token); ok {
			s.stood(from, to)
		}
		if last := len(next.Waiters) - 1; last >= 0 && s.out("H4 predecessor") {
			s.stood(from, next.Waiters[last])
		}
	}
	slices.SortFunc(s.pairs, func(a, b turnPair) int {
		return cmp.Or(cmp.Compare(a.from.token, b.from.token), cmp.Compare(a.to.token, b.to.token), cmp.Compare(a.rev, b.rev))
	})
}

// atRest reports whether the client neither waits, holds, nor has anything to release.
func (s *turnState) atRest(i int) bool {
	return s.clients[i].phase == turnIdle && len(s.clients[i].ledger) == 0
}

// tidy forgets what can't matter any more: what a client at rest has read, and turns for nobody.
func (s *turnState) tidy() {
	for i := range s.clients {
		if s.atRest(i) {
			s.clients[i].known = known{}
		}
	}
	if s.out("H6") {
		return
	}
	s.pairs = slices.DeleteFunc(s.pairs, func(p turnPair) bool {
		i := int(p.to.id[0] - 'a')
		phase := s.clients[i].phase
		return p.to.id != s.id(i) || phase != turnWaits && phase != turnDead
	})
}

// stood notes that an entry stands directly before another.
func (s *turnState) stood(from, to record.Entry) {
	p := turnPair{ticketed{from.ID, from.Token}, ticketed{to.ID, to.Token}, s.now.rev}
	if i := slices.IndexFunc(s.pairs, func(o turnPair) bool { return o.from == p.from && o.to == p.to }); i >= 0 {
		s.pairs[i] = p
	} else {
		s.pairs = append(s.pairs, p)
	}
}

func turnRelease(id string, token uint64) record.Op {
	return record.Op{Kind: record.KindLock, Verb: record.OpRelease, ID: id, Lease: record.LeaseOf(id), Token: token}
}

// release has an entry of the client released: it stays in the ledger until a record shows that it is gone.
func (s *turnState) release(i int, id string, token uint64, held bool) {
	s.clients[i].ledger[id] = s.now.rev
	s.send(turnRelease(id, token))
	if held {
		s.ended = append(s.ended, ticketed{id, token})
		slices.SortFunc(s.ended, func(a, b ticketed) int { return cmp.Compare(a.token, b.token) })
	}
}

// holds makes the client a holder, and returns what is wrong with that.
func (s *turnState) holds(i int, token uint64, byTurn bool) string {
	c := &s.clients[i]
	c.phase, c.token, c.asked, c.byTurn, c.marked = turnHolds, token, false, byTurn, false
	if c.robbed {
		return ""
	}
	for k := range s.clients {
		if k != i && s.clients[k].phase == turnHolds && !s.clients[k].robbed {
			return fmt.Sprintf("%s and %s hold together", s.id(i), s.id(k))
		}
	}
	if token <= s.granted {
		return fmt.Sprintf("%s holds with token %d after %d", s.id(i), token, s.granted)
	}
	s.granted = token
	return ""
}

// look has the client read the newest record.
func (s *turnState) look(i int) string {
	c := &s.clients[i]
	c.known = s.now
	for id, sent := range c.ledger {
		if !c.known.rec.Has(id) && c.known.rev > sent {
			delete(c.ledger, id)
		}
	}
	id := s.id(i)
	_, holds := turnHolder(c.known.rec, id)
	stands := c.known.rec.Has(id)
	switch {
	case c.phase == turnWaits && holds:
		token, _ := turnHolder(c.known.rec, id)
		if bad := s.holds(i, token, false); bad != "" {
			return bad
		}
		e, _ := c.known.rec.Holder(id)
		c.marked = e.LetTurn && !s.out("H12 release")
	case c.robbed && !stands && (c.seen || c.phase == turnHolds):
		c.phase = turnIdle
	case c.phase == turnHolds && !stands, c.phase == turnWaits && c.seen && !stands:
		return fmt.Sprintf("the entry %s is gone under a lease that lives", id)
	}
	c.seen = c.seen || stands
	if revoked, _ := c.known.rec.Held(id, turnOf(c)); revoked && c.phase == turnHolds {
		if c.phase = turnIdle; c.ledger[id] == 0 {
			s.release(i, id, 0, false)
		}
		if s.let++; s.let > s.p.revokes-s.left[6] {
			return fmt.Sprintf("%d holds were lost by %d revocations", s.let, s.p.revokes-s.left[6])
		}
	}
	for e := range c.known.rec.States() {
		_, owed := c.ledger[e]
		mine := record.LeaseOf(e) == turnLease(i)
		if mine && !owed && (e != id || c.phase == turnIdle) && !s.out("H16") {
			s.release(i, e, 0, false) // a ghost
		}
	}
	return ""
}

// turnOf is the ticket of one that holds by a turn.
func turnOf(c *turnClient) uint64 {
	if c.byTurn {
		return c.token
	}
	return 0
}

func turnHolder(rec *record.Record, id string) (token uint64, ok bool) {
	if rec == nil {
		return 0, false
	}
	e, ok := rec.Holder(id)
	return e.Token, ok
}

// accepts is what the receiver of a turn looks at.
func (s *turnState) accepts(i int, t turnPair) bool {
	c := &s.clients[i]
	passed := slices.ContainsFunc(s.ended, func(e ticketed) bool { return e == t.from || s.out("H5 owner") && e.id == t.from.id })
	if !passed || t.to.id != s.id(i) || c.phase == turnDead && !s.out("H4 lease") {
		return false
	}
	_, cancelled := c.ledger[t.to.id]
	if c.phase != turnWaits && !(c.phase == turnDead) && !(s.out("H6") && c.phase == turnIdle && cancelled) {
		return false
	}
	if t.rev > c.known.rev || c.known.rec == nil {
		return t.rev > c.known.rev
	}
	e, before, ok := c.known.rec.Waiter(t.to.id)
	switch {
	case !ok, e.Token != t.to.token, e.LetTurn:
		return false
	case s.out("H4 predecessor"):
		return true
	case before == 0 && len(c.known.rec.Holders) != 1:
		return false
	}
	from := c.known.rec.Holders[0]
	if before > 0 {
		from = c.known.rec.Waiters[before-1]
	}
	return from.ID == t.from.id && from.Token == t.from.token
}

// explore visits every state, the nearest first, and returns how many there are and a way to a violation.
func (p *turnProgram) explore(limit int) (states int, violation string, complete bool) {
	first := &turnState{p: p, clients: make([]turnClient, len(p.rounds)), left: [7]int{p.copies, p.lost, p.cancels, p.conversions, p.deaths, p.removals, p.revokes}}
	for i := range first.clients {
		first.clients[i].ledger = map[string]uint64{}
	}
	return exhaust(first, limit)
}

// stuck is what is wrong if nothing more happens.
func (s *turnState) stuck() string {
	if s.now.rec == nil {
		return ""
	}
	return "nothing more happens, and the record is " + s.now.text
}
