package explore

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// keptProgram is two processes whose goroutines lock one key in mode X, each so many times, and which keep the lock between.
// A process learns of a record at any time after it was committed, or never while something else happens: its watch may be
// slow or silent. Acquires and releases arrive in any order. The bounds are what else can happen how often.
type keptProgram struct {
	rounds                               [2][]int // of each goroutine, by process
	copies, lost, cancels, deaths, pokes int
	without                              string // the rule that is taken out
}

type keptUser struct {
	phase  turnPhase // idle, waits or holds
	left   int       // rounds
	id     string    // of its acquire, or of its hold; "" while it waits in the process
	token  uint64
	listed bool // its entry was seen in a record
}

// keptProcess is one process, with an entry that it keeps, or has kept until its user leaves.
type keptProcess struct {
	dead       bool
	seq        uint64
	users      []keptUser
	backlog    []int
	id         string // of the kept entry; "" for none
	token      uint64
	open, used bool
	uses       int
	ledger     map[string]uint64 // as of turnClient
	known      known
}

type keptState struct {
	p       *keptProgram
	turnBox // what is committed, and what is under way
	procs   [2]keptProcess
	granted [2]uint64 // token and use of the last hold
	left    [5]int    // copies, lost, cancels, deaths, pokes
}

// turnBox is a record and the operations on their way to it.
type turnBox struct {
	now    known
	flight []string // "<verb> <id>", in their order
}

func (s *keptState) clone() *keptState {
	c := *s
	c.flight = slices.Clone(s.flight)
	for i := range c.procs {
		p := &c.procs[i]
		p.users, p.backlog, p.ledger = slices.Clone(p.users), slices.Clone(p.backlog), maps.Clone(p.ledger)
	}
	return &c
}

func (s *keptState) key(b []byte) []byte {
	number := func(n uint64) { b = append(binary.AppendUvarint(b, n), '|') }
	text := func(t string) { b = append(append(b, t...), '|') }
	text(s.now.text)
	number(s.now.rev)
	number(s.granted[0])
	number(s.granted[1])
	for _, n := range s.left {
		b = append(b, byte(n))
	}
	for i := range s.procs {
		p := &s.procs[i]
		text(p.known.text)
		number(p.known.rev)
		text(p.id)
		number(p.token)
		b = append(b, bit(p.dead), bit(p.open), bit(p.used), byte(p.uses), byte(p.seq), byte(len(p.ledger)), byte(len(p.backlog)))
		for _, u := range p.users {
			b = append(b, byte(u.phase), byte(u.left), bit(u.listed))
			text(u.id)
			number(u.token)
		}
		for _, u := range p.backlog {
			b = append(b, byte(u))
		}
		for _, id := range slices.Sorted(maps.Keys(p.ledger)) {
			text(id)
			number(p.ledger[id])
		}
	}
	for _, f := range s.flight {
		text(f)
	}
	return b
}

func (s *keptState) tidy() {
	for i := range s.procs {
		if p := &s.procs[i]; p.dead || p.id == "" && len(p.ledger) == 0 && !slices.ContainsFunc(p.users, func(u keptUser) bool { return u.phase != turnIdle }) {
			p.known = known{}
		}
	}
}

func (s *keptState) stuck() string {
	for i := range s.procs {
		p := &s.procs[i]
		if !p.dead && slices.ContainsFunc(p.users, func(u keptUser) bool { return u.phase != turnIdle }) {
			return "nothing more happens, and somebody waits: " + s.now.text
		}
	}
	if e := s.now.rec.OnlyHolder(); s.now.rec != nil && (e == nil || !slices.ContainsFunc(s.procs[:], func(p keptProcess) bool { return p.id == e.ID && p.open })) {
		return "nothing more happens, and the record is " + s.now.text
	}
	return ""
}

func (s *keptState) send(verb, id string) {
	s.flight = append(s.flight, verb+" "+id)
	slices.Sort(s.flight)
}

func (s *keptState) write(op record.Op) {
	next, _, changed := record.Apply(s.now.rec, s.now.rev, []record.Op{op}, record.Limits{})
	if !changed {
		return
	}
	s.now.rev++
	if s.now.rec, s.now.text = nil, ""; !next.Idle() {
		next.Resolve(s.now.rev)
		s.now.rec, s.now.text = next, string(next.Append(nil))
	}
}

func (s *keptState) arrive(what string) {
	verb, id, _ := strings.Cut(what, " ")
	op := turnRelease(id, 0)
	if verb == "acquire" {
		op = record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: id, Lease: record.LeaseOf(id), Mode: record.X, TTL: time.Second}
	}
	s.write(op)
}

func (s *keptState) out(rule string) bool { return s.p.without == rule }

// holds makes a goroutine the holder of its process's entry, and returns what is wrong with that.
func (s *keptState) holds(i, u int, id string, token, use uint64) string {
	for k := range s.procs {
		for o := range s.procs[k].users {
			if s.procs[k].users[o].phase == turnHolds {
				return fmt.Sprintf("%s and %s hold together", id, s.procs[k].users[o].id)
			}
		}
	}
	p := &s.procs[i]
	p.users[u].phase, p.users[u].id, p.users[u].token = turnHolds, id, token
	if token < s.granted[0] || token == s.granted[0] && use <= s.granted[1] {
		return fmt.Sprintf("%s holds with %d/%d after %v", id, token, use, s.granted)
	}
	s.granted = [2]uint64{token, use}
	return ""
}

// passable is what a process asks before it passes its entry on: the rule of the record.
func (s *keptState) passable(i int) bool {
	p := &s.procs[i]
	return p.id != "" && (p.open || s.out("draining")) && (!p.dead || s.out("lease")) && (p.known.rec.CanPassOn(p.id, p.token) || s.out("waiters"))
}

// join has a goroutine take the entry over.
func (s *keptState) join(i, u int) string {
	p := &s.procs[i]
	p.used, p.uses = true, p.uses+1
	if p.known.rec.HasQueue() && !p.dead {
		return "a kept entry is passed on beside one who is known to wait"
	}
	return s.holds(i, u, p.id, p.token, uint64(p.uses))
}

func (s *keptState) ask(i, u int) {
	p := &s.procs[i]
	p.seq++
	p.users[u].id, p.users[u].listed = record.ID(turnLease(i), p.seq), false
	s.send("acquire", p.users[u].id)
}

func (s *keptState) release(i int, id string) {
	s.procs[i].ledger[id] = s.now.rev
	s.send("release", id)
}

// letGo has nobody join the entry any more, and releases it if nobody uses it.
func (s *keptState) letGo(i int) {
	p := &s.procs[i]
	p.open = false
	for _, u := range p.backlog {
		s.ask(i, u)
	}
	p.backlog = nil
	if id := p.id; !p.used && !s.out("drain") {
		if s.release(i, id); !s.out("draining") {
			p.id = ""
		}
	}
}

// keepUp looks what is to become of the entry.
func (s *keptState) keepUp(i int) string {
	p := &s.procs[i]
	switch {
	case p.id == "" || !p.open:
	case !s.passable(i):
		s.letGo(i)
	case !p.used && len(p.backlog) > 0:
		u := p.backlog[0]
		p.backlog = p.backlog[1:]
		return s.join(i, u)
	}
	return ""
}

// hear has a process learn of the newest record.
func (s *keptState) hear(i int) string {
	p := &s.procs[i]
	p.known = s.now
	for id, sent := range p.ledger {
		if !s.now.rec.Has(id) && s.now.rev > sent {
			delete(p.ledger, id)
		}
	}
	if p.id != "" && !s.now.rec.Has(p.id) && !s.out("draining") {
		return "the entry " + p.id + " is gone under a lease that lives"
	}
	for u := range p.users {
		k := &p.users[u]
		k.listed = k.listed || k.id != "" && s.now.rec.Has(k.id)
		token, ok := turnHolder(s.now.rec, k.id)
		if k.phase != turnWaits || k.id == "" || !ok {
			continue
		}
		if p.id == "" && !s.now.rec.HasQueue() {
			p.id, p.token, p.open, p.used, p.uses = k.id, token, true, true, 1
		}
		if bad := s.holds(i, u, k.id, token, 1); bad != "" {
			return bad
		}
	}
	for id := range s.now.rec.States() {
		_, owed := p.ledger[id]
		own := slices.ContainsFunc(p.users, func(u keptUser) bool { return u.id == id })
		if record.LeaseOf(id) == turnLease(i) && !owed && !own && (id != p.id || s.out("ghosts")) {
			s.release(i, id) // it came late
		}
	}
	return s.keepUp(i)
}

// leave ends a goroutine's hold.
func (s *keptState) leave(i, u int) string {
	p := &s.procs[i]
	id := p.users[u].id
	if !s.out("handle") {
		p.users[u].phase, p.users[u].id = turnIdle, ""
	}
	p.users[u].left--
	if id != p.id {
		s.release(i, id)
		return ""
	}
	if p.used = false; p.open {
		return s.keepUp(i)
	}
	if s.release(i, id); !s.out("draining") {
		p.id = ""
	}
	return ""
}
