package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Pokes are messages to the process that keeps an entry. They are needed because its watch may be late, and because a try
// does not queue. Like hints they may get lost, come twice or late. A waiter behind the entry sends a hint: the
// process looks at the record. A try asks for the entry: see Engine.GiveUp.

// firstPoke is the least time to wait for a kept entry before the next poke, or, for a try, before it fails.
const firstPoke = 50 * time.Millisecond

// PokeTime is how long to wait for the answer of a process that was poked.
func PokeTime(rtt time.Duration) time.Duration { return max(firstPoke, 4*rtt) }

// GiveUp releases a kept entry if it is unused, for a try of another process. It reports whether it knows the id.
// If so it calls answer, from any goroutine and with no lock held: at once with true if the entry is used, else with false
// after the release. It never calls answer if the release fails.
func (e *Engine) GiveUp(key, id string, answer func(used bool)) bool {
	w := e.lockKnown(key)
	if w == nil {
		return false
	}
	defer w.mu.Unlock()
	switch k := w.kept; {
	case k != nil && k.entry.ID == id && k.used:
		w.mu.afterUnlock(func() { answer(true) })
		return true
	case k != nil && k.entry.ID == id:
		w.drain(true)
	}
	if id == "" || w.releasing != id {
		return false
	}
	w.delayAcquires = true
	w.askers = append(w.askers, answer)
	return true
}

// Unused returns the sequences of all unused kept entries under a lease.
func (e *Engine) Unused(lease string) (seqs []string) {
	for _, k := range e.keptSet.under(lease) {
		if k.idle.Load() > 0 {
			seqs = append(seqs, k.entry.ID[len(lease)+1:])
		}
	}
	return seqs
}

// delayForTry holds back an acquire of this process for a moment, if a try of another process is to come first.
func (w *writer) delayForTry(r *Request) bool {
	if !w.delayAcquires || r.Guest != nil || r.Op.Verb != record.OpAcquire && r.Op.Verb != record.OpTry || len(w.backlog) >= maxBacklog {
		return false
	}
	w.backlog = append(w.backlog, r)
	return true
}

// keptAhead returns the kept entry that operations of this process wait for, or nil.
func (v *view) keptAhead() *record.Entry {
	if e := v.rec.OnlyHolder(); len(v.waiting) > 0 && !v.closed && e != nil && record.MayBeKept(e.Meta) {
		return e
	}
	return nil
}

// pokeKept pokes the process of a kept entry ahead, at once and then again and again: its watch may be late or not
// open yet.
func (v *view) pokeKept() {
	e := v.keptAhead()
	if e == nil || v.core.cfg.Hints == nil {
		v.poked = ""
		return
	}
	if v.poked != e.ID {
		v.poked, v.pokes = e.ID, 0
		v.poke(e)
	}
	if v.poking {
		return
	}
	v.poking = true
	took, _ := v.core.cfg.RTT.RTT()
	first := PokeTime(took)
	time.AfterFunc(pause.Near(min(first<<min(v.pokes, 16), max(maxLookGap, first)))+first/4, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.poking = false
		if e := v.keptAhead(); e != nil && e.ID == v.poked {
			v.pokes++
			v.poke(e)
		}
		v.pokeKept()
	})
}

func (v *view) poke(e *record.Entry) {
	h, key, rev := v.core.cfg.Hints, v.key, v.rev
	v.mu.afterUnlock(func() { h.Tell([]string{e.Lease()}, key, rev) })
}
