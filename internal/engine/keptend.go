package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// drain stops the passing on of the kept entry, and releases it if it is unused. calledBack says that others
// have asked for it.
func (w *writer) drain(calledBack bool) {
	k := w.kept
	if k == nil {
		return
	}
	if k.open {
		k.open, w.keeping.on = false, false
		if k.marked && (calledBack || w.hasOthers()) {
			w.keeping.calledBack(k.uses - 1)
		}
		w.start()
	}
	if k.used || w.closed {
		return
	}
	w.removeKept(k)
	w.reportEnded(k, nil)
	w.releaseKept(k)
}

// removeKept forgets a kept entry that was lost, or is being released.
func (w *writer) removeKept(k *kept) {
	w.kept, w.followed = nil, false
	if k.timer != nil {
		k.timer.Stop()
	}
	s := w.keptSet
	if !k.used {
		s.idle.Add(-1)
	}
	s.mu.Lock()
	delete(s.all, k)
	s.mu.Unlock()
}

func (w *writer) reportEnded(k *kept, err error) {
	key, used := w.key, k.used
	w.mu.afterUnlock(func() { k.keeper.Ended(key, k.entry.ID, used, err) })
}

// hasOthers reports whether the record has entries of other leases than the one that would keep the key.
func (w *writer) hasOthers() bool { return w.rec.HasOthers(w.keeping.lease) }

// releaseKept releases an entry that was kept and is unused.
func (w *writer) releaseKept(k *kept) {
	w.releasing, w.askers = k.entry.ID, nil
	op := record.Op{Verb: record.OpRelease, ID: k.entry.ID, Lease: k.lease, Hold: k.hold, Token: k.entry.Token}
	w.submitOwed(&Request{Key: w.key, Op: op, Done: func(_ Outcome, err error) { w.keptReleased(op.ID, err) }})
}

// keptReleased is called with the outcome of such a release.
func (w *writer) keptReleased(id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.releasing != id {
		return
	}
	askers := w.askers
	w.releasing, w.askers = "", nil
	if !w.delayAcquires {
		return
	}
	took, _ := w.core.cfg.RTT.RTT()
	time.AfterFunc(tryHeadStart(took), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.delayAcquires = false; len(w.backlog) > 0 {
			w.start()
		}
	})
	if err == nil {
		w.mu.afterUnlock(func() {
			for _, answer := range askers {
				answer(false)
			}
		})
	}
}

// tryHeadStart is how long acquires of this process wait after an entry was released for a try of another process. In
// that time the try gets the message, reads the record and writes.
func tryHeadStart(rtt time.Duration) time.Duration { return max(4*rtt, time.Millisecond) }

// armTimer has onTimer called in d at the latest.
func (w *writer) armTimer(k *kept, d time.Duration) {
	due := time.Now().Add(d)
	switch {
	case k.timer == nil:
		k.timer = time.AfterFunc(d, func() { w.onTimer(k) })
	case k.due.IsZero() || due.Before(k.due):
		k.timer.Reset(d)
	default:
		return
	}
	k.due = due
}

// onTimer drains an entry that was unused for too long, or for which a request of this process has waited too long.
func (w *writer) onTimer(k *kept) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k.due = time.Time{}
	switch {
	case w.kept != k || !k.open:
	case len(w.backlog) > 0:
		if left := w.core.cfg.KeepWait - time.Since(w.backlog[0].submitted); left > 0 {
			w.armTimer(k, left)
		} else {
			w.drain(false)
		}
	case !k.used:
		if left := k.linger - time.Since(time.Unix(0, k.idle.Load())); left > 0 {
			w.armTimer(k, left)
		} else {
			w.drain(false)
		}
	}
}

// limitUnused drains the entry of the engine that is unused for longest, if there are too many.
func (w *writer) limitUnused() {
	s := w.keptSet
	if s.idle.Load() <= int64(w.core.cfg.MaxKept) {
		return
	}
	w.mu.afterUnlock(func() {
		var oldest *kept
		var since int64
		s.mu.Lock()
		for k := range s.all {
			if at := k.idle.Load(); at > 0 && (oldest == nil || at < since) {
				oldest, since = k, at
			}
		}
		s.mu.Unlock()
		if oldest == nil {
			return
		}
		oldest.w.mu.Lock()
		defer oldest.w.mu.Unlock()
		if oldest.w.kept == oldest && !oldest.used && oldest.idle.Load() == since {
			oldest.w.drain(false)
		}
	})
}
