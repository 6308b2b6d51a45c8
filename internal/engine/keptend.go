package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// letGo has nobody join the entry any more, and releases it if nobody uses it. calledBack says that others
// have asked for it. Called with mu held.
func (w *writer) letGo(calledBack bool) {
	k := w.kept
	if k == nil {
		return
	}
	if k.open {
		k.open, w.keeping.on = false, false
		if k.marked && (calledBack || w.foreign()) {
			w.keeping.calledBack(k.uses - 1)
		}
		w.start()
	}
	if k.used || w.closed {
		return
	}
	w.forget(k)
	w.tellEnd(k, nil)
	w.part(k)
}

// forget ends the keeping of an entry that is no more, or is on its way out. Called with mu held.
func (w *writer) forget(k *kept) {
	w.kept, w.followed = nil, false
	if k.timer != nil {
		k.timer.Stop()
	}
	s := w.keeps
	if !k.used {
		s.idle.Add(-1)
	}
	s.mu.Lock()
	delete(s.all, k)
	s.mu.Unlock()
}

func (w *writer) tellEnd(k *kept, err error) {
	key, used := w.key, k.used
	w.mu.then(func() { k.keeper.Ended(key, k.entry.ID, used, err) })
}

// foreign reports whether others than those who would keep the key stand in the record. Called with mu held.
func (w *writer) foreign() bool { return w.rec.HasOthers(w.keeping.lease) }

// part releases an entry that is kept no more and that nobody uses. Called with mu held.
func (w *writer) part(k *kept) {
	w.parting = parting{id: k.entry.ID, yielding: w.parting.yielding}
	op := record.Op{Verb: record.OpRelease, ID: k.entry.ID, Lease: k.lease, Hold: k.hold, Token: k.entry.Token}
	w.carryOut(&Request{Key: w.key, Op: op, Done: func(_ Outcome, err error) { w.parted(op.ID, err) }})
}

// parted is told what has become of a release.
func (w *writer) parted(id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parting.id != id {
		return
	}
	askers := w.parting.askers
	w.parting.id, w.parting.askers = "", nil
	if !w.parting.yielding {
		return
	}
	took, _ := w.core.cfg.RTT.RTT()
	time.AfterFunc(yieldTime(took), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.parting.yielding = false; len(w.backlog) > 0 {
			w.start()
		}
	})
	if err == nil {
		w.mu.then(func() {
			for _, answer := range askers {
				answer(false)
			}
		})
	}
}

// yieldTime is how long the acquires of a process wait after it has given an entry up for the try of another one,
// which hears of it, reads the record and writes.
func yieldTime(rtt time.Duration) time.Duration { return max(4*rtt, time.Millisecond) }
