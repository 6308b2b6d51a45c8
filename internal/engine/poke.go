package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Pokes are messages to the process of a kept entry, which make up for a watch that is silent and for those who don't
// queue. Like hints they may get lost, come twice or late. Of those who wait behind the entry they are hints: the
// process looks at the record. Of a try they ask for the entry: see Engine.GiveUp.

// firstPoke is how long others wait for a kept entry at least until they ask for it, or ask no more.
const firstPoke = 50 * time.Millisecond

// PokeTime is how long to wait for a process that was asked for a kept entry.
func PokeTime(rtt time.Duration) time.Duration { return max(firstPoke, 4*rtt) }

// GiveUp releases a kept entry if nobody uses it, for a try of another process, and reports whether it knows the id.
// Then answer is called, from any goroutine and with no lock held, with whether it is used, else when it is released. It
// is not called if it can't be.
func (e *Engine) GiveUp(key, id string, answer func(used bool)) bool {
	w := e.find(key)
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch k := w.kept; {
	case k != nil && k.entry.ID == id && k.used:
		w.mu.then(func() { answer(true) })
		return true
	case k != nil && k.entry.ID == id:
		w.letGo(true)
	}
	if id == "" || w.parting.id != id {
		return false
	}
	w.parting.yielding = true
	w.parting.askers = append(w.parting.askers, answer)
	return true
}

// Unused returns the sequences of all kept entries under a lease that nobody uses.
func (e *Engine) Unused(lease string) (seqs []string) {
	for _, k := range e.keeps.under(lease) {
		if k.idle.Load() > 0 {
			seqs = append(seqs, k.entry.ID[len(lease)+1:])
		}
	}
	return seqs
}

// yields has an acquire of this process wait here for a moment, if another one's try is to come first. Called with mu held.
func (w *writer) yields(r *Request) bool {
	if !w.parting.yielding || r.Guest != nil || r.Op.Verb != record.OpAcquire && r.Op.Verb != record.OpTry || len(w.backlog) >= maxBacklog {
		return false
	}
	w.delay(r)
	return true
}

// keptAhead returns the kept entry that operations of this process wait for. Called with mu held.
func (v *view) keptAhead() *record.Entry {
	if e := v.rec.Sole(); len(v.waiting) > 0 && !v.closed && e != nil && record.MayBeKept(e.Meta) {
		return e
	}
	return nil
}

// pokeKept has the process of a kept entry told that somebody waits, at once and then again and again: its watch may be
// silent, or not open yet. Called with mu held.
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
	time.AfterFunc(pause.Near(min(first<<min(v.pokes, 16), max(mostLook, first)))+first/4, func() {
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
	v.mu.then(func() { h.Tell([]string{e.Lease()}, key, rev) })
}
